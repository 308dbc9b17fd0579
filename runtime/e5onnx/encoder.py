"""The encoder: text in, embeddings out. Combines tokenizer, batching and engine, each of which also works alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .batching import pad_batch, plan_batches
from .checks import check_texts, iterate_texts, whole_number
from .cpu import check_threads, default_threads
from .engine import LoadedGraph, Output, engine_for
from .errors import (
    InferenceError,
    InputTypeError,
    InputValueError,
    MissingDependencyError,
    MissingPromptWarning,
    ModelFolderError,
    TruncationWarning,
)
from .manifest import Manifest
from .model_folder import open_model
from .similarity import similarity
from .tokenizer import PROMPT_NAMES, TokenizedText, Tokenizer

Precision = Literal["fp32", "int8", "bf16"]
Provider = Literal["cpu", "kernels", "openvino"]
Embeddings = NDArray[np.float32]

_WINDOW = 1024
"""Texts that are tokenised before the model runs: enough to sort by length, few enough to hold in memory."""
_WINDOW_CHARACTERS = 2**24
"""Characters after which no more texts are read before the model runs, in case the texts are long."""


class Encoder:
    """A loaded model that embeds text. Threads may share it; it can be pickled, and works after a fork.

    Attributes:
        manifest: the manifest of the model folder.
        tokenizer: the model's :class:`Tokenizer`.
        precision: the precision that really runs: "fp32", "int8" or "bf16".
        provider: "cpu", "kernels" or "openvino".
        threads: number of threads that one call uses.

    Example:
        >>> encoder = Encoder("models/sample")
        >>> encoder.encode("What is an embedding?").shape
        (384,)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        precision: Precision | None = None,
        provider: Provider = "cpu",
        threads: int | None = None,
        compile_cache: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        """Load a model.

        Args:
            model: a model folder that `e5onnx export` wrote, a checkpoint's folder, or the hub id of either. Only a hub
                id downloads anything; HF_HOME, HF_HUB_OFFLINE and HF_TOKEN apply. The model folder of a checkpoint is
                built on first use and kept in the cache (E5ONNX_CACHE, or the platform's place for caches). This needs
                the extra `export`, and the logger "e5onnx" says so.
            precision: with "cpu": "fp32", the default, or "int8", if the model has it. With "kernels": "bf16", the
                default, or "int8". With "openvino": "bf16", the default if the processor has it, or "fp32".
            provider: "cpu" for onnxruntime's own kernels; "kernels" for ours in onnxruntime, which need the extra
                `kernels`; "openvino" for OpenVINO, which needs the extra `openvino` and a folder with the portable
                graph. Vectors differ a little, and so do fingerprints.
            threads: threads that one call uses. The default is the environment variable E5ONNX_THREADS, or else the
                number of processors that are really available (affinity and control-group quotas).
            compile_cache: folder where OpenVINO keeps the compiled graph, to load faster the next time.
            revision: branch, tag or commit of a hub id; None for the main branch.
            local_files_only: load a hub id from the caches without using the network.

        Raises:
            ModelNotFoundError: there is no such folder or repository, or a file of it is missing.
            ModelFolderError: a file of the folder is damaged, or does not belong to the model.
            ModelDownloadError: the hub could not be reached.
            CheckpointError: the checkpoint is damaged, or cannot be exported.
            CacheError: the cache cannot be written.
            InputValueError: the folder has no graph for this precision or provider, the processor or provider does
                not support the precision, or `threads` (E5ONNX_THREADS) is below 1 or far above the number of
                processors.
            MissingDependencyError: the provider is not installed, or first use needs the extra `export`.
        """
        if threads is not None:
            threads = check_threads(whole_number("threads", threads), "threads")
        load, given = engine_for(provider, precision, compile_cache)
        folder = open_model(
            model, precision=given, provider=provider, revision=revision, local_files_only=local_files_only
        )
        self.manifest: Manifest = folder.manifest
        self.provider: Provider = provider
        self.threads: int = threads or default_threads()
        opened = partial(folder.graph, given, provider)
        with opened() as graph:
            self.tokenizer = Tokenizer(folder)
            self._graph = LoadedGraph(
                graph, dimension=folder.manifest.dimension, load=partial(load, threads=self.threads), reopen=opened
            )
        self.precision = self._graph.precision
        self._pickled = (os.fspath(folder.path), precision, provider, threads, compile_cache, self.fingerprint)
        self._may_warn_of_prompts = all(
            any(folder.manifest.prompts.get(name) for name in PROMPT_NAMES[role]) for role in ("query", "document")
        )

    @property
    def dimension(self) -> int:
        """Number of components of a vector."""
        return self.manifest.dimension

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text, special tokens included. Longer texts are cut."""
        return self.manifest.max_tokens

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts: the text put before each input, by name."""
        return dict(self.manifest.prompts)

    @property
    def fingerprint(self) -> str:
        """Short hash of everything that changes vectors. Do not compare vectors with different fingerprints."""
        return self.manifest.fingerprint(self.precision, self.provider)

    def encode(
        self,
        inputs: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        normalize_embeddings: bool | None = None,
        truncate: Literal["warn", "error"] = "warn",
    ) -> Embeddings:
        """Embed texts as they are, or with a prompt.

        For retrieval with a model that has prompts, use :meth:`encode_query` and :meth:`encode_document`.

        Args:
            inputs: one text, or any iterable of texts. A generator is read while the model runs.
            prompt_name: name of the model's prompt to put before each text; see :meth:`Tokenizer.prompted` for texts
                that already start with it.
            prompt: the text of a prompt, used instead of `prompt_name`; "" for none.
            batch_size: most texts in one run of the model. The results do not depend on it, and batches are cut to
                the size that runs fastest anyway.
            show_progress_bar: show a tqdm bar that counts texts.
            normalize_embeddings: True for vectors of unit length, False for the pooled vectors before normalisation
                (as features for a classifier), None for what the checkpoint itself does.
            truncate: "warn" cuts texts that exceed the model's maximum and issues a :class:`TruncationWarning`;
                "error" refuses them.

        Returns:
            Float32 array of shape `[dimension]` for a `str`, `[texts, dimension]` in input order for an iterable.

        Raises:
            InputTypeError: an input is not a str; the message names its position. A list or tuple is checked as a
                whole before the model runs.
            InputValueError: an input is not valid Unicode, or the model has no prompt of that name.
            TextTooLongError: a text is too long and `truncate` is "error", or a text has a million characters without
                a space.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> encoder.encode(["one text", "another"], normalize_embeddings=True).shape
            (2, 384)
        """
        prefix = self.tokenizer.prompt_for(prompt=prompt, prompt_name=prompt_name)
        warn = prompt is None and prefix == "" and self._may_warn_of_prompts
        return self._encode(inputs, prefix, warn, batch_size, show_progress_bar, normalize_embeddings, truncate)

    def encode_query(
        self,
        inputs: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        normalize_embeddings: bool | None = None,
        truncate: Literal["warn", "error"] = "warn",
    ) -> Embeddings:
        """Embed queries: :meth:`encode` with the model's prompt for queries ("query: " for E5).

        Use it also for both sides of a symmetric task: similarity, paraphrases, clustering.

        Example:
            >>> Encoder("models/sample").encode_query("how much protein should a female eat").shape
            (384,)
        """
        prefix = self.tokenizer.prompt_for("query", prompt=prompt, prompt_name=prompt_name)
        return self._encode(inputs, prefix, False, batch_size, show_progress_bar, normalize_embeddings, truncate)

    def encode_document(
        self,
        inputs: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        normalize_embeddings: bool | None = None,
        truncate: Literal["warn", "error"] = "warn",
    ) -> Embeddings:
        """Embed documents: :meth:`encode` with the model's prompt for documents ("passage: " for E5).

        Example:
            >>> Encoder("models/sample").encode_document(["a first passage", "a second one"]).shape
            (2, 384)
        """
        prefix = self.tokenizer.prompt_for("document", prompt=prompt, prompt_name=prompt_name)
        return self._encode(inputs, prefix, False, batch_size, show_progress_bar, normalize_embeddings, truncate)

    def encode_tokenized(
        self, texts: Sequence[TokenizedText], *, normalize_embeddings: bool | None = None
    ) -> Embeddings:
        """Embed the output of :meth:`Tokenizer.tokenize`, for servers that count tokens before they schedule a run.

        Args:
            texts: token ids, prompts included.
            normalize_embeddings: as in :meth:`encode`.

        Returns:
            Float32 array of shape `[texts, dimension]` in input order.

        Raises:
            InputTypeError: an input is not a :class:`TokenizedText`; the message names its position.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> encoder.encode_tokenized(encoder.tokenizer.tokenize(["one text", "another"])).shape
            (2, 384)
        """
        if not isinstance(texts, Sequence):
            raise InputTypeError(f"expected a sequence of TokenizedText, got {type(texts).__name__}")
        for position, text in enumerate(texts):
            if not isinstance(text, TokenizedText):
                raise InputTypeError(f"expected a TokenizedText at position {position}, got {type(text).__name__}")
        embeddings: Embeddings = np.empty((len(texts), self.dimension), np.float32)
        self._run(texts, embeddings, self._output(normalize_embeddings))
        return embeddings

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Embeddings:
        """Compare every vector of the first array with every vector of the second.

        The score is the cosine, or the dot product if the checkpoint asks for it (`similarity_fn_name` in the
        manifest).

        Args:
            embeddings1: `[n, dimension]`, or one vector `[dimension]`. Vectors need not have unit length.
            embeddings2: `[m, dimension]`, or one vector.

        Returns:
            Float32 array `[n, m]`. Cosines lie between -1 and 1, and are 0 for a vector of zeros.

        Raises:
            InputTypeError: an array does not hold numbers.
            InputValueError: the vectors differ in dimension, or hold NaN or infinity.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> encoder.similarity([[3.0, 4.0]], [[6.0, 8.0], [-4.0, 3.0]]).round(6).tolist()
            [[1.0, 0.0]]
        """
        return similarity(embeddings1, embeddings2, self.manifest.similarity_fn_name)

    @overload
    def count_tokens(  # type: ignore[overload-overlap]  # a str is an iterable of str, and comes first
        self, inputs: str, *, prompt_name: str | None = ..., prompt: str | None = ...
    ) -> int: ...
    @overload
    def count_tokens(
        self, inputs: Iterable[str], *, prompt_name: str | None = ..., prompt: str | None = ...
    ) -> list[int]: ...
    def count_tokens(
        self, inputs: str | Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> int | list[int]:
        """Return the number of tokens of each text; see :meth:`Tokenizer.count_tokens`, which needs no weights.

        Example:
            >>> Encoder("models/sample").count_tokens("How many tokens is this?")
            9
        """
        return self.tokenizer.count_tokens(inputs, prompt_name=prompt_name, prompt=prompt)

    def warmup(self) -> None:
        """Run the model once, so that memory is allocated before the first real call.

        Example:
            >>> Encoder("models/sample").warmup()
        """
        self._encode("warm", "", False, None, False, None, "warn")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that load this model in another process, except `threads`.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> Encoder(**encoder.arguments(), threads=1).fingerprint == encoder.fingerprint
            True
        """
        path, precision, provider, _, compile_cache, _ = self._pickled
        return {"model": path, "precision": precision, "provider": provider, "compile_cache": compile_cache}

    def _encode(
        self,
        inputs: str | Iterable[str],
        prefix: str,
        warn_of_prompts: bool,
        batch_size: int | None,
        show_progress_bar: bool,
        normalize: bool | None,
        truncate: str,
    ) -> Embeddings:
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size)  # numpy's small integers would overflow
            if batch_size < 1:
                raise InputValueError(f"batch_size must be at least 1, got {batch_size}")
        if truncate not in ("warn", "error"):
            raise InputValueError(f'truncate must be "warn" or "error", got {truncate!r}')
        output = self._output(normalize)
        single = isinstance(inputs, str)
        texts: Iterable[str] = [inputs] if isinstance(inputs, str) else iterate_texts(inputs)
        if isinstance(texts, (list, tuple)):
            check_texts(texts)

        embeddings: Embeddings = np.empty((len(texts) if isinstance(texts, Sized) else 0, self.dimension), np.float32)
        start = 0
        cut: list[tuple[int, int]] = []
        with _progress_bar(show_progress_bar, texts) as advance:
            for window in _windows(texts):
                tokenized = self.tokenizer.tokenize(window, prefix, start=start)
                if warn_of_prompts:
                    self._warn_of_missing_prompt(window)
                cut += self._cut_texts(tokenized, start, truncate)
                end = start + len(window)
                if end > len(embeddings):  # the number of texts is not known
                    embeddings.resize((max(end, len(embeddings) * 3 // 2), self.dimension), refcheck=False)
                self._run(tokenized, embeddings[start:end], output, batch_size, advance)
                start = end
        if cut:
            tokens, position = max(cut, key=itemgetter(0))
            warning = TruncationWarning(len(cut), start, tokens, position, self.max_tokens)
            warnings.warn(warning, stacklevel=3)  # the caller of encode
        if start != len(embeddings):
            embeddings.resize((start, self.dimension), refcheck=False)
        return embeddings[0] if single else embeddings

    def _run(
        self,
        tokenized: Sequence[TokenizedText],
        embeddings: Embeddings,
        output: Output,
        batch_size: int | None = None,
        advance: Callable[[int], object] = lambda texts: None,
    ) -> None:
        """Fill `embeddings` with the vectors of the texts."""
        lengths = [len(text.ids) for text in tokenized]
        for rows in plan_batches(lengths, token_budget=self._graph.token_budget, max_texts=batch_size):
            input_ids, attention_mask = pad_batch([tokenized[row].ids for row in rows])
            vectors = self._graph.run(input_ids, attention_mask, output)
            if not np.isfinite(vectors).all():
                raise InferenceError(f"the model gives NaN or infinity for token ids of shape {input_ids.shape}")
            embeddings[rows] = vectors
            advance(len(rows))

    def _cut_texts(self, texts: Sequence[TokenizedText], start: int, truncate: str) -> list[tuple[int, int]]:
        """Return the number of tokens and the position of each text that was cut, or refuse the first."""
        cut = []
        for position, text in enumerate(texts, start):
            if truncate == "error":
                self.tokenizer.check_length(text, f"the text at position {position}", 'truncate="warn"')
            elif text.is_cut:
                cut.append((text.tokens, position))
        return cut

    def _output(self, normalize: bool | None) -> Output:
        if normalize is None:
            normalize = self.manifest.normalize
        return "sentence_embedding" if normalize else "pooled_embedding"

    def _warn_of_missing_prompt(self, texts: Sequence[str]) -> None:
        """Warn once about a text without a prompt, if the model was trained with a prompt on every text."""
        prompts = [prompt for prompt in self.manifest.prompts.values() if prompt]
        if self._may_warn_of_prompts and not all(text.startswith(tuple(prompts)) for text in texts):
            self._may_warn_of_prompts = False
            warnings.warn(
                f"encode() got texts that do not start with {' or '.join(map(repr, prompts))}; the model was trained "
                'with these prompts. Use encode_query or encode_document, or pass prompt="" to embed texts as is.',
                MissingPromptWarning,
                stacklevel=4,  # the caller of encode
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, self._pickled

    def __repr__(self) -> str:
        return (
            f"Encoder({self._pickled[0]!r}, precision={self.precision!r}, provider={self.provider!r}, "
            f"threads={self.threads}): dimension {self.dimension}, at most {self.max_tokens} tokens"
        )


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0  # anything else is refused later
        if len(window) == _WINDOW or characters > _WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


@contextmanager
def _progress_bar(show: bool, texts: Iterable[str]) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of texts done since the last call."""
    if not show:
        yield lambda texts: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingDependencyError("show_progress_bar needs tqdm: pip install tqdm") from error
    total = len(texts) if isinstance(texts, Sized) else None
    with tqdm(total=total, desc="Encoding", unit="text") as bar:
        yield bar.update


def _unpickle(
    path: str,
    precision: Precision | None,
    provider: Provider,
    threads: int | None,
    compile_cache: str | None,
    fingerprint: str,
) -> Encoder:
    encoder = Encoder(path, precision=precision, provider=provider, threads=threads, compile_cache=compile_cache)
    if encoder.fingerprint != fingerprint:
        raise ModelFolderError(
            f"{path} changed after this encoder was pickled: its fingerprint is {encoder.fingerprint}, expected "
            f"{fingerprint}. Load it again with Encoder({path!r})"
        )
    return encoder
