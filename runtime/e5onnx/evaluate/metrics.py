"""The metrics: nDCG and recall as trec_eval computes them, and Spearman's rank correlation. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputValueError


def ndcg(ranking: Sequence[str], relevance: Mapping[str, int], depth: int) -> float:
    """Return the normalised discounted cumulative gain of one query (Järvelin and Kekäläinen 2002).

    The gain of a document is its relevance, and the discount `log2(rank + 1)`. Relevance below 0 counts as 0. Without a
    relevant document, the result is 0.

    Args:
        ranking: ids of the documents found, best first.
        relevance: relevance of each judged document, by id.
        depth: documents that count.

    Example:
        >>> round(ndcg(["a", "b"], {"b": 1}, 10), 4)
        0.6309
    """
    ideal = _gain(sorted(relevance.values(), reverse=True)[:depth])
    return _gain([relevance.get(document, 0) for document in ranking[:depth]]) / ideal if ideal else 0.0


def recall(ranking: Sequence[str], relevance: Mapping[str, int], depth: int) -> float:
    """Return the share of a query's relevant documents among the first `depth`; 0 without a relevant document.

    Example:
        >>> recall(["a", "b"], {"b": 1, "c": 1}, 2)
        0.5
    """
    relevant = {document for document, value in relevance.items() if value > 0}
    return len(relevant.intersection(ranking[:depth])) / len(relevant) if relevant else 0.0


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation; equal values share the mean of their ranks.

    Raises:
        InputValueError: the lengths differ, a value is NaN or infinite, or all values of one side are equal.

    Example:
        >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
        0.8
    """
    values = [np.asarray(each, np.float64) for each in (first, second)]
    if values[0].ndim != 1 or values[0].shape != values[1].shape:
        raise InputValueError(f"cannot correlate arrays of shapes {values[0].shape} and {values[1].shape}")
    for each in values:
        if not np.isfinite(each).all():
            raise InputValueError(f"cannot rank NaN or infinity, as at position {int(np.argmin(np.isfinite(each)))}")
        if each.size == 0 or (each == each[0]).all():
            raise InputValueError("a rank correlation needs at least two different values on each side")
    centred = [ranks - ranks.mean() for ranks in map(_ranks, values)]
    return float(centred[0] @ centred[1] / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))


def _gain(relevance: Sequence[int]) -> float:
    return sum(max(value, 0) / float(np.log2(rank + 1)) for rank, value in enumerate(relevance, 1))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = last - (counts - 1) / 2
    return means[inverse]
