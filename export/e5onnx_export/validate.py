"""Compares the vectors of a model folder with the checkpoint's, and those of its graphs with each other.

The checkpoint's vectors come from elsewhere: from `reference.py` in numpy, from `pytorch.py` in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from e5onnx.batching import pad_batch, plan_batches
from e5onnx.cpu import default_threads
from e5onnx.engine import LoadedGraph, OnnxRuntimeEngine
from e5onnx.errors import InferenceError, ParityError
from e5onnx.manifest import GraphRecord
from e5onnx.model_folder import ModelFolder, OpenedGraph
from e5onnx.tokenizer import Tokenizer

LARGEST_DIFFERENCE = {"fp32": 1e-4}
"""Largest difference allowed in a component of a unit vector, by precision."""

LEAST_MEAN_COSINE = 0.99
"""Smallest mean cosine between int8 and fp32 that is accepted without force."""

_TEXT = (
    "the model reads a sentence and returns one vector; then it rains — don't café naïve Zürich überraschung москва "
    "東京 🙂 “quoted” (parenthesis) 42 3.14159 antidisestablishmentarianism e-mail@example.org HTTP/2 snake_case x² "
    "0xFF [SEP] </s>"
)
_WORDS = _TEXT.split()


def measure_parity(
    folder: ModelFolder, graph: GraphRecord, name: str, embed: Callable[[str, NDArray[np.int32]], NDArray[Any]]
) -> dict[str, float]:
    """Compare a graph of `folder`, run by onnxruntime, with the checkpoint computed in another way.

    Texts from one token to beyond the maximum are run one by one, then three of them in one padded batch: the
    shortest, the middle one and the longest.

    Args:
        folder: the finished model folder.
        graph: the graph to compare.
        name: the other way, the beginning of the figures' names.
        embed: returns the vector of a text before normalisation, for the text and its token ids.

    Returns:
        `NAME_max_abs_difference` of a component and `NAME_min_cosine`: the worst over all texts, alone and padded, of
        unit vectors and of pooled vectors divided by the length of the reference's. `texts`: how many were compared.

    Raises:
        ParityError: the vectors differ by more than :data:`LARGEST_DIFFERENCE` allows.
    """
    manifest = folder.manifest
    exported = Tokenizer(folder)
    texts = texts_of_all_lengths(exported)
    tokenized = [text.ids for text in exported.tokenize(texts)]
    session = _session(folder.path / graph.file, manifest.dimension, graph.precision)
    runs = _alone_and_together(len(texts))
    # One thread computes what to expect, whatever numpy would take, while the others run the graph.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(1) as beside:
        expected = beside.map(embed, texts, tokenized)
        batches = [pad_batch([tokenized[row] for row in rows]) for rows in runs]
        try:
            found = [(session.run(*batch), session.run(*batch, "pooled_embedding")) for batch in batches]
        except InferenceError:
            list(expected)  # if the checkpoint fails, too, its error is the one to show
            raise
        reference = np.stack(list(expected))
    lengths = np.linalg.norm(reference, axis=1, keepdims=True)
    unit = reference / lengths
    differences, cosines = [], []
    for rows, (normalized, pooled) in zip(runs, found, strict=True):
        for vectors in (normalized, pooled / lengths[rows]):
            differences.append(np.abs(vectors - unit[rows]).max())
            cosines.append(((vectors * unit[rows]).sum(1) / np.linalg.norm(vectors, axis=1)).min())
    difference, cosine = float(np.max(differences)), float(np.min(cosines))  # NaN if any is, unlike max() and min()
    if not difference <= LARGEST_DIFFERENCE[graph.precision]:  # so that NaN fails
        raise ParityError(
            f"{graph.file} differs from the checkpoint by up to {difference:.1e} in a component, "
            f"more than the {LARGEST_DIFFERENCE[graph.precision]:.0e} allowed; smallest cosine {cosine:.6f}"
        )
    return {f"{name}_max_abs_difference": difference, f"{name}_min_cosine": cosine, "texts": len(texts)}


def measure_fidelity(
    folder: ModelFolder, token_ids: Sequence[NDArray[np.int32]], *, any_fidelity: bool = False
) -> dict[str, float]:
    """Compare the vectors of a folder's int8 graph with those of its fp32 graph.

    Returns:
        `mean_cosine` and `min_cosine` over the texts. `texts`: how many were compared.

    Raises:
        ParityError: the mean is below :data:`LEAST_MEAN_COSINE`, unless `any_fidelity`; or a vector is NaN.
    """
    vectors = []
    for precision in ("fp32", "int8"):
        with folder.graph(precision) as graph:
            session = _session(graph.path, folder.manifest.dimension, precision)
        batches = plan_batches([len(ids) for ids in token_ids])
        vectors.append(
            np.concatenate([session.run(*pad_batch([token_ids[text] for text in rows])) for rows in batches])
        )
    cosines = np.einsum("ij,ij->i", *vectors)
    mean, smallest = float(cosines.mean()), float(cosines.min())
    if not np.isfinite(cosines).all():
        raise ParityError("int8 gives vectors with NaN; write fp32 only (--precision fp32)")
    if not (mean >= LEAST_MEAN_COSINE or any_fidelity):
        raise ParityError(
            f"int8 is too far from fp32: mean cosine {mean:.4f}, smallest {smallest:.4f}; the mean must be at least "
            f"{LEAST_MEAN_COSINE}. Calibrate on texts like yours (--calibration), write fp32 only (--precision fp32), "
            "or accept it (--force)"
        )
    return {"mean_cosine": mean, "min_cosine": smallest, "texts": len(token_ids)}


def compare_with_fp32(folder: ModelFolder, portable: Path) -> dict[str, float]:
    """Compare the portable graph at `portable` with the folder's fp32 graph, both run by onnxruntime.

    Returns:
        `max_abs_difference` of a component of unit vectors, over texts of all lengths, alone and padded. `texts`: how
        many were compared.

    Raises:
        ParityError: the difference is more than :data:`LARGEST_DIFFERENCE` allows.
    """
    tokenizer = Tokenizer(folder)
    tokenized = [text.ids for text in tokenizer.tokenize(texts_of_all_lengths(tokenizer))]
    with folder.graph("fp32") as fused:
        sessions = [_session(path, folder.manifest.dimension, "fp32") for path in (fused.path, portable)]
    differences = []
    for rows in _alone_and_together(len(tokenized)):
        batch = pad_batch([tokenized[row] for row in rows])
        fp32, other = (session.run(*batch) for session in sessions)
        differences.append(np.abs(fp32 - other).max())
    difference = float(np.max(differences))
    if not difference <= LARGEST_DIFFERENCE["fp32"]:  # so that NaN fails
        raise ParityError(f"the portable graph differs from the fp32 graph by up to {difference:.1e} in a component")
    return {"max_abs_difference": difference, "texts": len(tokenized)}


def texts_of_all_lengths(tokenizer: Tokenizer) -> list[str]:
    """Return texts of about 1, 2, 3, 5, 8, 13, ... tokens, up to beyond the model's maximum, the same each time."""
    generator = np.random.default_rng(0)
    texts = [""]
    length, following = 1, 2
    while True:
        words: list[str] = []
        while not words or tokenizer.count_tokens(" ".join(words)) < length:
            words.append(str(generator.choice(_WORDS)))
        texts.append(" ".join(words))
        if length > tokenizer.max_tokens:
            return texts
        length, following = following, length + following


def _alone_and_together(texts: int) -> list[list[int]]:
    """Return which texts run together: each alone, then the shortest, the middle one and the longest."""
    return [*([row] for row in range(texts)), [0, texts // 2, texts - 1]]


def _session(path: Path, dimension: int, precision: str) -> LoadedGraph:
    load = partial(OnnxRuntimeEngine, threads=default_threads(), precision=precision)
    return LoadedGraph(OpenedGraph(path, lambda: None), dimension=dimension, load=load)
