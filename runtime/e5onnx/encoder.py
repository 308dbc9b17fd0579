"""The encoder: text in, embeddings out. Puts tokenizer, batching and session together; each of them stands alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .batching import pad_batch, plan_batches
from .cpu import check_threads, default_threads, whole_number
from .engine import Engine, LoadedGraph, OnnxRuntimeEngine, Output
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
from .tokenizer import PROMPT_NAMES, TokenizedText, Tokenizer, check_texts, iterate_texts

Precision = Literal["fp32", "int8", "bf16"]
Provider = Literal["cpu", "openvino"]
Embeddings = NDArray[np.float32]

_WINDOW = 1024
"""Texts that are read and tokenised before the model runs on them: enough to sort, few enough to hold in memory."""
_WINDOW_CHARACTERS = 2**24
"""Characters that are read at most, save those of the last text, in case the texts are long."""


class Encoder:
    """A model folder, loaded and ready to embed text. Threads may share it; it can be pickled and used after a fork.

    Attributes:
        manifest: what the model folder says of itself.
        tokenizer: the model's :class:`Tokenizer`.
        precision: "fp32", "int8" or "bf16": what really runs, read back from the provider.
        provider: "cpu" or "openvino".
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
        """Load an exported model.

        Args:
            model: a model folder that `e5onnx export` wrote, or the hub id of one. Only a hub id ever downloads;
                HF_HOME, HF_HUB_OFFLINE and HF_TOKEN apply.
            precision: None for the provider's own choice. With "cpu": "fp32", the default, or "int8", the folder's
                graph of that name. With "openvino": "bf16", the default where the processor has it, or "fp32".
            provider: "cpu" for onnxruntime's own kernels; "openvino" for OpenVINO, which needs the extra `openvino`
                and a folder with the portable graph.
            threads: threads that one call uses; None for the environment variable E5ONNX_THREADS, or else for the
                processors that are really available (affinity and control-group quotas).
            compile_cache: folder where OpenVINO keeps the compiled graph, which halves the time to load; None to
                write nothing.
            revision: branch, tag or commit of a hub id; None for the main branch.
            local_files_only: take a hub id from the hub's cache, never from the network.

        Raises:
            ModelNotFoundError: there is no such folder or repository, or a file of it is missing.
            ModelFolderError: a file of the folder is damaged or foreign.
            ModelDownloadError: the hub could not be reached.
            InputValueError: the folder has no graph of this precision or for this provider, the processor or the
                provider does not know the precision, or `threads` (E5ONNX_THREADS) is below 1 or far beyond the
                host's processors.
            MissingDependencyError: the provider is not installed.
        """
        if threads is not None:
            threads = check_threads(whole_number("threads", threads), "threads")
        load, given = _engine(provider, precision, compile_cache)
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
                graph, dimension=folder.manifest.dimension, load=partial(load, threads=self.threads), reopened=opened
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
        """Most tokens of a text, special tokens included; longer texts are cut."""
        return self.manifest.max_tokens

    @property
    def prompts(self) -> dict[str, str]:
        """The text put before each input, by name of the prompt."""
        return dict(self.manifest.prompts)

    @property
    def fingerprint(self) -> str:
        """Short hash over all that changes vectors. Vectors with different fingerprints must not be compared."""
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
        """Embed texts as they are given, or with a prompt that is named.

        For retrieval with a model that knows prompts, :meth:`encode_query` and :meth:`encode_document` are easier.

        Args:
            inputs: one text, or any iterable of texts. A generator is read as the vectors are made, not before.
            prompt_name: name of one of the model's prompts, put before each text; see :meth:`Tokenizer.prompted` for
                texts that start with it already.
            prompt: the text of a prompt itself; wins over `prompt_name`. "" for none.
            batch_size: most texts in one run of the model. The results do not depend on it, and batches are cut to
                the size that runs fastest anyway.
            show_progress_bar: show a tqdm bar that counts texts.
            normalize_embeddings: True for vectors of unit length, False for the pooled vectors before normalisation
                (as features for a classifier), None for what the checkpoint does by itself.
            truncate: "warn" cuts texts that are longer than the model's maximum and says so in a
                :class:`TruncationWarning`; "error" refuses them.

        Returns:
            Float32 array of shape `[dimension]` for a `str`, `[texts, dimension]` in input order for an iterable.

        Raises:
            InputTypeError: an input is not a str; the message names its position. A list or tuple is checked as a
                whole before anything runs.
            InputValueError: an input is not valid Unicode, or there is no prompt of that name.
            TextTooLongError: `truncate="error"`, and a text is too long; or a text has a stretch of a million
                characters without a space.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> encoder.encode(["one text", "another"], normalize_embeddings=True).shape
            (2, 384)
        """
        prefix = self.tokenizer.prompt_for(prompt=prompt, prompt_name=prompt_name)
        warn_of_prompts = prompt is None and prefix == "" and self._may_warn_of_prompts
        return self._encode(
            inputs, prefix, warn_of_prompts, batch_size, show_progress_bar, normalize_embeddings, truncate
        )

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
        """Embed texts that search, as :meth:`encode` does, with the model's prompt for queries ("query: " for E5).

        Also right for both sides of a symmetric task: similarity, paraphrases, clustering.

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
        """Embed texts that are searched, as :meth:`encode` does, with the prompt for documents ("passage: " for E5).

        Example:
            >>> Encoder("models/sample").encode_document(["a first passage", "a second one"]).shape
            (2, 384)
        """
        prefix = self.tokenizer.prompt_for("document", prompt=prompt, prompt_name=prompt_name)
        return self._encode(inputs, prefix, False, batch_size, show_progress_bar, normalize_embeddings, truncate)

    def encode_tokenized(
        self, texts: Sequence[TokenizedText], *, normalize_embeddings: bool | None = None
    ) -> Embeddings:
        """Embed texts that :meth:`Tokenizer.tokenize` prepared: for servers, which count and schedule in between.

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
        """Compare every vector of the first array with every one of the second.

        The result is their cosine, or their dot product where the checkpoint asks for it (`similarity_fn_name` in the
        manifest).

        Args:
            embeddings1: `[n, dimension]`, or one vector `[dimension]`. Of any length: unit length is not needed.
            embeddings2: `[m, dimension]`, or one vector.

        Returns:
            Float32 array `[n, m]`. Cosines lie between -1 and 1, and are 0 for a vector of length zero.

        Raises:
            InputTypeError: an array does not hold numbers.
            InputValueError: the arrays are not of vectors with the same dimension, or hold NaN or infinity.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> encoder.similarity([[3.0, 4.0]], [[6.0, 8.0], [-4.0, 3.0]]).round(6).tolist()
            [[1.0, 0.0]]
        """
        first, second = _vectors("embeddings1", embeddings1), _vectors("embeddings2", embeddings2)
        if first.shape[1] != second.shape[1]:
            raise InputValueError(f"cannot compare arrays of shapes {first.shape} and {second.shape}")
        if self.manifest.similarity_fn_name == "dot":
            scores = first @ second.T
        else:
            scores = np.clip(_unit_length(first) @ _unit_length(second).T, -1, 1)
        return scores.astype(np.float32, copy=False)

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
        """Run the model once, so that the first real call does not pay for memory that is allocated on first use.

        Example:
            >>> Encoder("models/sample").warmup()
        """
        self._encode("warm", "", False, None, False, None, "warn")

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
        truncation = _Truncation(self.tokenizer, refuse=truncate == "error")
        with _progress_bar(show_progress_bar, texts) as advance:
            for window in _windows(texts):
                tokenized = self.tokenizer.tokenize(window, prefix, start=start)
                if warn_of_prompts:
                    self._warn_of_missing_prompt(window)
                truncation.note(tokenized, start)
                end = start + len(window)
                if end > len(embeddings):  # the number of texts was not known
                    embeddings.resize((max(end, len(embeddings) * 3 // 2), self.dimension), refcheck=False)
                self._run(tokenized, embeddings[start:end], output, batch_size, advance)
                start = end
        truncation.warn(texts=start)
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
        """Fill `embeddings` with the vectors of texts."""
        for rows in plan_batches([len(text.ids) for text in tokenized], max_texts=batch_size):
            input_ids, attention_mask = pad_batch([tokenized[row].ids for row in rows])
            vectors = self._graph.run(input_ids, attention_mask, output)
            if not np.isfinite(vectors).all():
                raise InferenceError(f"the model gives NaN or infinity for token ids of shape {input_ids.shape}")
            embeddings[rows] = vectors
            advance(len(rows))

    def _output(self, normalize: bool | None) -> Output:
        if normalize is None:
            normalize = self.manifest.normalize
        return "sentence_embedding" if normalize else "pooled_embedding"

    def _warn_of_missing_prompt(self, texts: Sequence[str]) -> None:
        """Warn once of a text without prompt, if this model was trained with one on every text."""
        prompts = [prompt for prompt in self.manifest.prompts.values() if prompt]
        if self._may_warn_of_prompts and not all(text.startswith(tuple(prompts)) for text in texts):
            self._may_warn_of_prompts = False
            warnings.warn(
                f"encode() got texts that start with none of {', '.join(map(repr, prompts))}, with which this model "
                'was trained. Use encode_query and encode_document, or pass prompt="" to embed texts as they are.',
                MissingPromptWarning,
                stacklevel=4,  # the caller of encode
            )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that load this model in another process, save `threads`.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> Encoder(**encoder.arguments(), threads=1).fingerprint == encoder.fingerprint
            True
        """
        path, precision, provider, _, compile_cache, _ = self._pickled
        return {"model": path, "precision": precision, "provider": provider, "compile_cache": compile_cache}

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, self._pickled

    def __repr__(self) -> str:
        return (
            f"Encoder({self._pickled[0]!r}, precision={self.precision!r}, provider={self.provider!r}, "
            f"threads={self.threads}): "
            f"dimension {self.dimension}, at most {self.max_tokens} tokens"
        )


def _engine(
    provider: str, precision: str | None, compile_cache: str | os.PathLike[str] | None
) -> tuple[Callable[..., Engine], str | None]:
    """Return what loads a provider's engine, and the precision it is asked for."""
    if provider == "cpu":
        if precision == "bf16":
            raise InputValueError('bf16 needs provider="openvino": onnxruntime\'s own kernels do not have it')
        if compile_cache is not None:
            raise InputValueError('compile_cache is for provider="openvino": onnxruntime compiles nothing')
        given = precision or "fp32"
        return partial(OnnxRuntimeEngine, precision=given), given
    if provider != "openvino":
        raise InputValueError(f"provider must be 'cpu' or 'openvino', got {provider!r}")
    if compile_cache is not None and not isinstance(compile_cache, (str, os.PathLike)):
        raise InputTypeError(f"compile_cache is a folder, got {type(compile_cache).__name__}")
    if precision not in ("bf16", "fp32", None):
        raise InputValueError(f"provider='openvino' runs 'bf16' or 'fp32', not {precision!r}")
    from .openvino_engine import OpenVinoEngine

    return partial(OpenVinoEngine, precision=precision, compile_cache=compile_cache), precision


class _Truncation:
    """Counts the texts that were too long."""

    def __init__(self, tokenizer: Tokenizer, *, refuse: bool) -> None:
        self._tokenizer = tokenizer
        self._refuse = refuse
        self._truncated = 0
        self._longest = self._longest_position = 0

    def note(self, texts: Iterable[TokenizedText], start: int) -> None:
        for position, text in enumerate(texts, start):
            if not text.is_cut:
                continue
            if self._refuse:
                self._tokenizer.check_length(text, f"the text at position {position}", 'truncate="warn"')
            self._truncated += 1
            if text.tokens > self._longest:
                self._longest, self._longest_position = text.tokens, position

    def warn(self, texts: int) -> None:
        if self._truncated:
            warnings.warn(
                TruncationWarning(
                    self._truncated, texts, self._longest, self._longest_position, self._tokenizer.max_tokens
                ),
                stacklevel=4,  # the caller of encode
            )


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0  # what is not is refused later
        if len(window) == _WINDOW or characters > _WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


@contextmanager
def _progress_bar(show: bool, texts: Iterable[str]) -> Iterator[Callable[[int], object]]:
    """Yield a function that is told how many more texts are done."""
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


def _vectors(name: str, given: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return what a caller compares as floats, float32 or wider, `[vectors, dimension]`."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of torch that needs its gradient
        raise InputTypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputTypeError(f"{name} must be an array of numbers, got one of {array.dtype}")
    vectors = np.atleast_2d(array.astype(np.result_type(array.dtype, np.float32), copy=False))
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise InputValueError(f"{name} must be one vector or a matrix of them, got shape {array.shape}")
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise InputValueError(f"{name} holds NaN or infinity in row {row}")
    return vectors


def _unit_length(vectors: NDArray[np.floating[Any]]) -> Embeddings:
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True)  # squares of what is far from 1 are 0 or infinite
    scaled = (vectors / np.where(largest == 0, 1, largest)).astype(np.float64)
    unit: Embeddings = (scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1)).astype(np.float32)
    return unit


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
            f"{path} holds another model than when this encoder was pickled: its fingerprint is {encoder.fingerprint}, "
            f"expected {fingerprint}. Load it anew with Encoder({path!r})"
        )
    return encoder
