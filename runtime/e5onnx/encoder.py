"""The encoder: text in, embeddings out. Combines tokenizer, batching and engine, each of which also works alone."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property, partial, update_wrapper
from operator import itemgetter, length_hint
from types import MappingProxyType
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .batching import pad_batch, plan_batches
from .checks import check_texts, iterate_texts, whole_number
from .cpu import check_threads, default_threads
from .dimensions import shorten
from .engine import LoadedGraph, Output, engine_for
from .errors import (
    InferenceError,
    InputTypeError,
    InputValueError,
    MissingPromptWarning,
    ModelFolderError,
    TruncationWarning,
)
from .manifest import Manifest
from .model_folder import open_model
from .progress import bar
from .quantization import OUTPUT_PRECISIONS, OutputPrecision, quantize_embeddings
from .similarity import similarity, similarity_pairwise
from .tokenizer import PROMPT_NAMES, TokenizedText, Tokenizer

Precision = Literal["fp32", "int8", "bf16"]
Provider = Literal["cpu", "kernels", "openvino"]
Embeddings = NDArray[np.float32]
Advance = Callable[[int, int], object]
"""Called after each run of the model with its number of texts and of tokens."""

_WINDOW = 1024
"""Texts that are tokenised before the model runs: enough to sort by length, few enough to hold in memory."""
_WINDOW_CHARACTERS = 2**24
"""Characters after which no more texts are read before the model runs, in case the texts are long."""

_cancelled: ContextVar[threading.Event | None] = ContextVar("e5onnx_cancelled", default=None)
"""Set if the caller of an async method no longer waits for it."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _in_thread(
    method: Callable[Concatenate[Encoder, _P], _R],
) -> Callable[Concatenate[Encoder, _P], Coroutine[Any, Any, _R]]:
    """Make an async method that calls `method` in a thread of asyncio, and ends it between two batches if cancelled."""

    async def run(self: Encoder, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        import asyncio

        cancelled = threading.Event()

        def call() -> _R:
            _cancelled.set(cancelled)  # in this call's copy of the context alone
            return method(self, *args, **kwargs)

        try:
            return await asyncio.to_thread(call)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    update_wrapper(run, method)
    run.__name__, run.__qualname__ = f"a{method.__name__}", f"Encoder.a{method.__name__}"
    run.__doc__ = f"Call :meth:`{method.__name__}` in a thread. A cancelled call ends after the batch that runs."
    return run


class _Settings(NamedTuple):
    """How one call makes vectors, checked."""

    output: Output
    dimension: int
    batch_size: int | None
    truncate: str


class Encoder:
    """A loaded model that embeds text. Threads may share it; it can be pickled, and works after a fork.

    Attributes:
        manifest: the manifest of the model folder.
        tokenizer: the model's :class:`Tokenizer`.
        precision: the precision that really runs: "fp32", "int8" or "bf16".
        provider: "cpu", "kernels" or "openvino".
        threads: number of threads that one call uses.

    docs/sentence_transformers.md compares every argument and attribute with those of `SentenceTransformer`.

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
        device: str | None = None,
        truncate_dim: int | None = None,
        force_truncate_dim: bool = False,
    ) -> None:
        """Load a model.

        Args:
            model: a model folder that `e5onnx export` wrote, a checkpoint's folder, or the hub id of either. Only a hub
                id downloads anything; HF_HOME, HF_HUB_OFFLINE and HF_TOKEN apply. The model folder of a checkpoint is
                built on first use and kept in the cache (E5ONNX_CACHE, or the platform's place for caches). This needs
                the extra `export`, and the logger "e5onnx" says so.
            precision: what the model computes in; the `precision` of :meth:`encode` is the type of its vectors. With
                "cpu": "fp32", the default, or "int8", if the model has it. With "kernels": "bf16", the default, or
                "int8". With "openvino": "bf16", the default if the processor has it, or "fp32".
            provider: "cpu" for onnxruntime's own kernels; "kernels" for ours in onnxruntime, which need the extra
                `kernels`; "openvino" for OpenVINO, which needs the extra `openvino` and a folder with the portable
                graph. Vectors differ a little, and so do fingerprints.
            threads: threads that one call uses. The default is the environment variable E5ONNX_THREADS, or else the
                number of processors that are really available (affinity and control-group quotas).
            compile_cache: folder where OpenVINO keeps the compiled graph, to load faster the next time.
            revision: branch, tag or commit of a hub id; None for the main branch.
            local_files_only: load a hub id from the caches without using the network.
            device: "cpu" or None.
            truncate_dim: dimension to cut vectors to. Vectors of unit length get unit length again. The model must
                have been trained for it (Matryoshka), as its config.json says: with `matryoshka_dimensions`, a list of
                dimensions, or `is_matryoshka`.
            force_truncate_dim: cut vectors even if config.json does not say so, here and in :meth:`encode`. Measure
                first how much worse the results are.

        Raises:
            ModelNotFoundError: there is no such folder or repository, or a file of it is missing.
            ModelFolderError: a file of the folder is damaged, or does not belong to the model.
            ModelDownloadError: the hub could not be reached.
            CheckpointError: the checkpoint is damaged, or cannot be exported.
            CacheError: the cache cannot be written.
            InputValueError: the folder has no graph for this precision or provider, the processor or provider does
                not support the precision, `threads` (E5ONNX_THREADS) is below 1 or far above the number of
                processors, `device` is not the CPU, or the model is not known to be trained for `truncate_dim`.
            MissingDependencyError: the provider is not installed, or first use needs the extra `export`.
        """
        if threads is not None:
            threads = check_threads(whole_number("threads", threads), "threads")
        _check_device(device)
        load, given = engine_for(provider, precision, compile_cache)
        folder = open_model(
            model, precision=given, provider=provider, revision=revision, local_files_only=local_files_only
        )
        self.manifest: Manifest = folder.manifest
        self._folder = folder
        self._force_truncate_dim = bool(force_truncate_dim)
        self._truncate_dim = None if truncate_dim is None else self._checked_dimension(truncate_dim)
        self.provider: Provider = provider
        self.threads: int = threads or default_threads()
        opened = partial(folder.graph, given, provider)
        with opened() as graph:
            self.tokenizer = Tokenizer(folder)
            self._graph = LoadedGraph(
                graph, dimension=folder.manifest.dimension, load=partial(load, threads=self.threads), reopen=opened
            )
        self.precision = self._graph.precision
        self._arguments: dict[str, Any] = {
            "model": os.fspath(folder.path),
            "precision": precision,
            "provider": provider,
            "compile_cache": compile_cache,
            "truncate_dim": self._truncate_dim,
            "force_truncate_dim": self._force_truncate_dim,
        }
        self._given_threads = threads
        self._may_warn_of_prompts = all(
            any(folder.manifest.prompts.get(name) for name in PROMPT_NAMES[role]) for role in ("query", "document")
        )

    @property
    def dimension(self) -> int:
        """Number of components of a vector, after any cut."""
        return self.manifest.dimension if self._truncate_dim is None else self._truncate_dim

    @property
    def truncate_dim(self) -> int | None:
        """The dimension that vectors are cut to unless a call says otherwise; None if they are not cut."""
        return self._truncate_dim

    @cached_property
    def shorter_dimensions(self) -> Sequence[int]:
        """Dimensions that vectors may be cut to: those that the checkpoint was trained for (Matryoshka), usually none.

        Its config.json says so: with `matryoshka_dimensions`, a list, or with `is_matryoshka`. With
        `force_truncate_dim` it is every dimension up to that of the vectors.
        """
        full = range(1, self.manifest.dimension)
        if self._force_truncate_dim:
            return full
        if not any(record.file == "config.json" for record in self.manifest.files):
            return ()
        config = json.loads(self._folder.file("config.json").read_text(encoding="utf-8"))
        dimensions = config.get("matryoshka_dimensions")
        if isinstance(dimensions, list):
            return tuple(each for each in dimensions if type(each) is int and each in full)
        return full if config.get("is_matryoshka") is True else ()

    def get_embedding_dimension(self) -> int:
        """Return :attr:`dimension`; sentence-transformers' name for it."""
        return self.dimension

    def get_sentence_embedding_dimension(self) -> int:
        """Return :attr:`dimension`; sentence-transformers' older name for it."""
        return self.dimension

    @property
    def max_tokens(self) -> int:
        """The most tokens that a text may have, special tokens included. Longer texts are cut."""
        return self.manifest.max_tokens

    @property
    def max_seq_length(self) -> int:
        """The same as :attr:`max_tokens`; sentence-transformers' name for it. It cannot be set."""
        return self.manifest.max_tokens

    @property
    def prompts(self) -> Mapping[str, str]:
        """The model's prompts: the text put before each input, by name. They cannot be set."""
        return MappingProxyType(dict(self.manifest.prompts))

    @property
    def default_prompt_name(self) -> str | None:
        """Name of the prompt that :meth:`encode` puts before each text by default. It cannot be set."""
        return self.manifest.default_prompt_name

    @property
    def similarity_fn_name(self) -> str:
        """How :meth:`similarity` compares vectors: "cosine" or "dot". It cannot be set."""
        return self.manifest.similarity_fn_name

    @property
    def fingerprint(self) -> str:
        """Short hash of everything that changes vectors. Do not compare vectors with different fingerprints.

        It covers the encoder's `truncate_dim`, but not the arguments of a call. For vectors that a call cut, see
        :meth:`Manifest.fingerprint`.
        """
        return self.manifest.fingerprint(self.precision, self.provider, self._truncate_dim)

    def encode(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: Output = "sentence_embedding",
        precision: OutputPrecision = "float32",
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        truncate: Literal["warn", "error"] = "warn",
    ) -> NDArray[Any]:
        """Embed texts as they are, or with a prompt.

        For retrieval with a model that has prompts, use :meth:`encode_query` and :meth:`encode_document`.

        Args:
            inputs: one text, or any iterable of texts. A generator is read while the model runs.
            prompt_name: name of the model's prompt to put before each text; see :meth:`Tokenizer.prompted` for texts
                that already start with it.
            prompt: the text of a prompt, used instead of `prompt_name`; "" for none.
            batch_size: the most texts in one run of the model. The results do not depend on it, and batches are cut to
                the size that runs fastest anyway.
            show_progress_bar: show a tqdm bar that counts texts.
            output_value: "sentence_embedding", or "pooled_embedding" for the vectors before any normalisation, which
                E5's authors use as features for a classifier.
            precision: type of the vectors, "float32", or one of those of
                :func:`e5onnx.quantization.quantize_embeddings`. "int8" and "uint8" take their ranges from the vectors
                of this call, so they cannot be compared with those of another. What the model computes in is the
                `precision` of :class:`Encoder`.
            convert_to_numpy: as in sentence-transformers; only True.
            convert_to_tensor: as in sentence-transformers; only False.
            device: as in sentence-transformers; only "cpu" or None.
            normalize_embeddings: True for vectors of unit length; False keeps what the checkpoint itself does, which
                mostly is the same (see :attr:`Manifest.normalize`).
            truncate_dim: dimension to cut vectors to, instead of the encoder's; see :class:`Encoder`.
            pool: as in sentence-transformers; only None.
            chunk_size: as in sentence-transformers; only None.
            truncate: "warn" cuts texts that exceed the model's maximum and issues a :class:`TruncationWarning`;
                "error" refuses them.

        Returns:
            Array of shape `[dimension]` for a `str`, `[texts, dimension]` in input order for an iterable; float32
            unless `precision` says otherwise.

        Raises:
            InputTypeError: an input is not a str; the message names its position. A list or tuple is checked as a
                whole before the model runs.
            InputValueError: an input is not valid Unicode, the model has no prompt of that name, or an argument asks
                for something that e5onnx does not do; the message names it.
            TextTooLongError: a text is too long and `truncate` is "error", or a text has a million characters without
                a space.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> encoder.encode(["one text", "another"], normalize_embeddings=True).shape
            (2, 384)
        """
        prefix = self.tokenizer.prompt_for(prompt=prompt, prompt_name=prompt_name)
        warn = prompt is None and prefix == "" and self._may_warn_of_prompts
        _check_only_value(convert_to_numpy, convert_to_tensor, device, pool, chunk_size)
        settings = self._settings(output_value, normalize_embeddings, truncate_dim, batch_size, truncate)
        return self._encode(inputs, prefix, warn, settings, show_progress_bar, precision)

    def encode_query(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: Output = "sentence_embedding",
        precision: OutputPrecision = "float32",
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        truncate: Literal["warn", "error"] = "warn",
    ) -> NDArray[Any]:
        """Embed queries: :meth:`encode` with the model's prompt for queries ("query: " for E5).

        Use it also for both sides of a symmetric task: similarity, paraphrases, clustering.

        Example:
            >>> Encoder("models/sample").encode_query("how much protein should a female eat").shape
            (384,)
        """
        prefix = self.tokenizer.prompt_for("query", prompt=prompt, prompt_name=prompt_name)
        _check_only_value(convert_to_numpy, convert_to_tensor, device, pool, chunk_size)
        settings = self._settings(output_value, normalize_embeddings, truncate_dim, batch_size, truncate)
        return self._encode(inputs, prefix, False, settings, show_progress_bar, precision)

    def encode_document(
        self,
        inputs: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: Output = "sentence_embedding",
        precision: OutputPrecision = "float32",
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        truncate: Literal["warn", "error"] = "warn",
    ) -> NDArray[Any]:
        """Embed documents: :meth:`encode` with the model's prompt for documents ("passage: " for E5).

        Example:
            >>> Encoder("models/sample").encode_document(["a first passage", "a second one"]).shape
            (2, 384)
        """
        prefix = self.tokenizer.prompt_for("document", prompt=prompt, prompt_name=prompt_name)
        _check_only_value(convert_to_numpy, convert_to_tensor, device, pool, chunk_size)
        settings = self._settings(output_value, normalize_embeddings, truncate_dim, batch_size, truncate)
        return self._encode(inputs, prefix, False, settings, show_progress_bar, precision)

    aencode = _in_thread(encode)
    aencode_query = _in_thread(encode_query)
    aencode_document = _in_thread(encode_document)

    def encode_stream(
        self,
        inputs: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        output_value: Output = "sentence_embedding",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        truncate: Literal["warn", "error"] = "warn",
    ) -> Iterator[Embeddings]:
        """Yield the vector of each text, in input order, while the texts are read: for more texts than fit into memory.

        About a thousand texts are read ahead. The arguments are those of :meth:`encode`; they are checked at once,
        the texts as they are read.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> sum(1 for vector in encoder.encode_stream(str(number) for number in range(5)))
            5
        """
        prefix = self.tokenizer.prompt_for(prompt=prompt, prompt_name=prompt_name)
        warn = prompt is None and prefix == "" and self._may_warn_of_prompts
        settings = self._settings(output_value, normalize_embeddings, truncate_dim, batch_size, truncate)
        return self._stream(iterate_texts(inputs), prefix, warn, settings)

    def encode_tokenized(
        self,
        texts: Sequence[TokenizedText],
        *,
        output_value: Output = "sentence_embedding",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        advance: Advance | None = None,
    ) -> Embeddings:
        """Embed the output of :meth:`Tokenizer.tokenize`, for servers that count tokens before they schedule a run.

        Args:
            texts: token ids, prompts included.
            output_value: as in :meth:`encode`.
            normalize_embeddings: as in :meth:`encode`.
            truncate_dim: as in :meth:`encode`.
            advance: called after each run of the model with its number of texts and of tokens.

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
        return self._run(texts, self._settings(output_value, normalize_embeddings, truncate_dim), advance or _nothing)

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
        return similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Embeddings:
        """Compare each vector of the first array with the one in the same row of the second; see :meth:`similarity`.

        Args:
            embeddings1: `[n, dimension]`, or one vector `[dimension]`.
            embeddings2: the same shape.

        Returns:
            Float32 array `[n]`.

        Example:
            >>> Encoder("models/sample").similarity_pairwise([[3, 4], [1, 0]], [[6, 8], [0, 1]]).round(6).tolist()
            [1.0, 0.0]
        """
        return similarity_pairwise(embeddings1, embeddings2, self.similarity_fn_name)

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
        self.encode_tokenized(self.tokenizer.tokenize(["warm"]))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that load this model in another process, except `threads`.

        Example:
            >>> encoder = Encoder("models/sample")
            >>> Encoder(**encoder.arguments(), threads=1).fingerprint == encoder.fingerprint
            True
        """
        return dict(self._arguments)

    def _settings(
        self,
        output_value: Output,
        normalize: bool,
        truncate_dim: int | None,
        batch_size: int | None = None,
        truncate: str = "warn",
    ) -> _Settings:
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size)  # numpy's small integers would overflow
            if batch_size < 1:
                raise InputValueError(f"batch_size must be at least 1, got {batch_size}")
        if truncate not in ("warn", "error"):
            raise InputValueError(f'truncate must be "warn" or "error", got {truncate!r}')
        if output_value not in get_args(Output):
            raise InputValueError(
                f"output_value must be 'sentence_embedding' or 'pooled_embedding', got {output_value!r:.80}: the graph "
                "gives one vector per text"
            )
        if output_value == "pooled_embedding" and normalize:
            raise InputValueError(
                "output_value='pooled_embedding' is the vector before normalisation: leave out normalize_embeddings"
            )
        unit = output_value == "sentence_embedding" and (normalize or self.manifest.normalize)
        output: Output = "sentence_embedding" if unit else "pooled_embedding"
        dimension = self.dimension if truncate_dim is None else self._checked_dimension(truncate_dim)
        return _Settings(output, dimension, batch_size, truncate)

    def _encode(
        self,
        inputs: str | Iterable[str],
        prefix: str,
        warn_of_prompts: bool,
        settings: _Settings,
        show_progress_bar: bool | None,
        precision: OutputPrecision,
    ) -> NDArray[Any]:
        if precision not in OUTPUT_PRECISIONS:
            known = ", ".join(map(repr, OUTPUT_PRECISIONS))
            raise InputValueError(
                f"precision of vectors must be one of {known}, got {precision!r:.80}; what the model computes in is "
                "the `precision` of Encoder"
            )
        single = isinstance(inputs, str)
        texts: Iterable[str] = [inputs] if isinstance(inputs, str) else iterate_texts(inputs)
        if isinstance(texts, (list, tuple)):
            check_texts(texts)

        embeddings: Embeddings = np.empty((length_hint(texts), settings.dimension), np.float32)
        start = 0
        cut: list[tuple[int, int]] = []
        with bar(bool(show_progress_bar), "Encoding", length_hint(texts) or None, "text") as advance:
            done: Advance = lambda texts, tokens: advance(texts)  # noqa: E731
            for vectors in self._windows(texts, prefix, 5 if warn_of_prompts else None, settings, cut, done):
                end = start + len(vectors)
                if end > len(embeddings):  # the number of texts was not known
                    embeddings.resize((max(end, len(embeddings) * 3 // 2), settings.dimension), refcheck=False)
                embeddings[start:end] = vectors
                start = end
        if cut:
            warnings.warn(self._truncation(cut, start), stacklevel=3)  # the caller of encode
        if start != len(embeddings):
            embeddings.resize((start, settings.dimension), refcheck=False)
        result = embeddings[0] if single else embeddings
        return result if precision == "float32" else quantize_embeddings(result, precision)

    def _stream(
        self, texts: Iterable[str], prefix: str, warn_of_prompts: bool, settings: _Settings
    ) -> Iterator[Embeddings]:
        cut: list[tuple[int, int]] = []
        texts_done = 0
        try:
            for vectors in self._windows(texts, prefix, 4 if warn_of_prompts else None, settings, cut, _nothing):
                texts_done += len(vectors)
                yield from map(np.copy, vectors)  # a view would keep all of them in memory
        finally:  # also if the reader stops early, as zip(ids, stream) does
            if cut:
                warnings.warn(self._truncation(cut, texts_done), stacklevel=2)  # whoever reads the stream

    def _windows(
        self,
        texts: Iterable[str],
        prefix: str,
        prompt_stacklevel: int | None,
        settings: _Settings,
        cut: list[tuple[int, int]],
        advance: Advance,
    ) -> Iterator[Embeddings]:
        """Yield the vectors of one window of texts after another, and add to `cut` what :meth:`_cut_texts` returns.

        With a `prompt_stacklevel`, warn of texts without a prompt.
        """
        start = 0
        for window in _windows(texts):
            tokenized = self.tokenizer.tokenize(window, prefix, start=start)
            if prompt_stacklevel is not None:
                self._warn_of_missing_prompt(window, prompt_stacklevel)
            found = self._cut_texts(tokenized, start, settings.truncate)
            vectors = self._run(tokenized, settings, advance)
            cut += found
            yield vectors
            start += len(window)

    def _run(
        self,
        tokenized: Sequence[TokenizedText],
        settings: _Settings,
        advance: Advance,
    ) -> Embeddings:
        """Return the vectors of the texts."""
        embeddings: Embeddings = np.empty((len(tokenized), settings.dimension), np.float32)
        cancelled = _cancelled.get()
        lengths = [len(text.ids) for text in tokenized]
        for rows in plan_batches(lengths, token_budget=self._graph.token_budget, max_texts=settings.batch_size):
            if cancelled is not None and cancelled.is_set():
                raise InferenceError("the call was cancelled")
            input_ids, attention_mask = pad_batch([tokenized[row].ids for row in rows])
            vectors = self._graph.run(input_ids, attention_mask, settings.output)
            if not np.isfinite(vectors).all():
                raise InferenceError(f"the model gives NaN or infinity for token ids of shape {input_ids.shape}")
            if settings.dimension < vectors.shape[1]:
                vectors = shorten(vectors, settings.dimension, normalize=settings.output == "sentence_embedding")
            embeddings[rows] = vectors
            advance(len(rows), int(attention_mask.sum()))
        return embeddings

    def _checked_dimension(self, truncate_dim: int) -> int:
        """Return a dimension that the vectors may be cut to, or refuse it."""
        wanted, full = whole_number("truncate_dim", truncate_dim), self.manifest.dimension
        if not 1 <= wanted <= full:
            raise InputValueError(f"truncate_dim must be from 1 to {full}, the dimension of this model, got {wanted}")
        if wanted == full or wanted in (shorter := self.shorter_dimensions):
            return wanted
        known = (
            f"is known to be trained for {', '.join(map(str, shorter))} dimensions only"
            if shorter
            else "is not known to be trained for shorter vectors (its config.json would have `matryoshka_dimensions`)"
        )
        raise InputValueError(
            f"this model {known}, so its vectors may be much worse when cut to {wanted}. Measure that first; then "
            "allow it with Encoder(..., force_truncate_dim=True), or --force on the command line"
        )

    def _cut_texts(self, texts: Sequence[TokenizedText], start: int, truncate: str) -> list[tuple[int, int]]:
        """Return the number of tokens and the position of each text that was cut, or refuse the first."""
        cut = []
        for position, text in enumerate(texts, start):
            if truncate == "error":
                self.tokenizer.check_length(text, f"the text at position {position}", 'truncate="warn"')
            elif text.is_cut:
                cut.append((text.tokens, position))
        return cut

    def _truncation(self, cut: Sequence[tuple[int, int]], texts: int) -> TruncationWarning:
        tokens, position = max(cut, key=itemgetter(0))
        return TruncationWarning(len(cut), texts, tokens, position, self.max_tokens)

    def _warn_of_missing_prompt(self, texts: Sequence[str], stacklevel: int) -> None:
        """Warn once about a text without a prompt, if the model was trained with a prompt on every text."""
        prompts = [prompt for prompt in self.manifest.prompts.values() if prompt]
        if self._may_warn_of_prompts and not all(text.startswith(tuple(prompts)) for text in texts):
            self._may_warn_of_prompts = False
            warnings.warn(
                f"encode() got texts that do not start with {' or '.join(map(repr, prompts))}; the model was trained "
                'with these prompts. Use encode_query or encode_document, or pass prompt="" to embed texts as is.',
                MissingPromptWarning,
                stacklevel=stacklevel,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, ({**self._arguments, "threads": self._given_threads}, self.fingerprint)

    def _repr_html_(self) -> str:
        """Describe the encoder in a notebook."""
        from html import escape

        prompts = ", ".join(f"{name} {prompt!r}" for name, prompt in self.prompts.items()) or "none"
        facts = {
            "Encoder": self._arguments["model"],
            "checkpoint": self.manifest.checkpoint,
            "vectors": f"dimension {self.dimension}, {'unit length' if self.manifest.normalize else 'not normalised'}",
            "texts": f"at most {self.max_tokens} tokens",
            "prompts": prompts,
            "runs": f"{self.precision}, provider {self.provider}, threads {self.threads}",
            "fingerprint": self.fingerprint,
        }
        rows = (f"<tr><th>{name}</th><td>{escape(str(fact))}</td></tr>" for name, fact in facts.items())
        return f"<table>{''.join(rows)}</table>"

    def __repr__(self) -> str:
        return (
            f"Encoder({self._arguments['model']!r}, precision={self.precision!r}, provider={self.provider!r}, "
            f"threads={self.threads}): dimension {self.dimension}, at most {self.max_tokens} tokens"
        )


def _nothing(texts: int, tokens: int) -> None:
    """Advance nothing."""


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


def _check_device(device: str | None) -> None:
    if device is not None and str(device) != "cpu":  # or torch.device("cpu")
        raise InputValueError(f"device must be 'cpu' or None, got {device!r}: e5onnx runs on the CPU alone")


def _check_only_value(convert_to_numpy: Any, convert_to_tensor: Any, device: Any, pool: Any, chunk_size: Any) -> None:
    """Refuse values of sentence-transformers' arguments that ask for something that e5onnx does not do."""
    _check_device(device)
    if convert_to_tensor or not convert_to_numpy:
        argument = "convert_to_tensor=True" if convert_to_tensor else "convert_to_numpy=False"
        raise InputValueError(f"{argument} needs PyTorch, which e5onnx does not use: call torch.from_numpy(vectors)")
    if pool is not None or chunk_size is not None:
        argument = "pool" if pool is not None else "chunk_size"
        raise InputValueError(
            f"{argument} is for several processes; one Encoder uses all processors by itself (threads): leave it out"
        )


def _unpickle(arguments: dict[str, Any], fingerprint: str) -> Encoder:
    encoder, path = Encoder(**arguments), arguments["model"]
    if encoder.fingerprint != fingerprint:
        raise ModelFolderError(
            f"{path} changed after this encoder was pickled: its fingerprint is {encoder.fingerprint}, expected "
            f"{fingerprint}. Load it again with Encoder({path!r})"
        )
    return encoder
