"""The best documents of each query, kept while the scores of more and more documents come in. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InferenceError


class BestDocuments:
    """The `depth` best documents of each query. Equal scores rank by id, the greatest first, as in trec_eval.

    Example:
        >>> best = BestDocuments(["a", "b", "c"], queries=1, depth=2)
        >>> best.add(np.array([[0.5, 0.25]]), query=0, document=0)
        >>> best.add(np.array([[0.5]]), query=0, document=2)
        >>> best.ranking(0)
        ['c', 'a']
    """

    def __init__(
        self, identifiers: Sequence[str], *, queries: int, depth: int, excluded: Sequence[int | None] | None = None
    ) -> None:
        """Start without any scores.

        Args:
            identifiers: the id of each document.
            queries: number of queries.
            depth: documents to keep per query.
            excluded: for each query, the position of a document that does not take part, if there is one.
        """
        self._identifiers = identifiers
        self._depth = depth
        self._excluded = [None] * queries if excluded is None else excluded
        self._order = np.empty(len(identifiers), np.int64)
        self._order[sorted(range(len(identifiers)), key=identifiers.__getitem__, reverse=True)] = np.arange(
            len(identifiers)
        )
        self._scores = [np.empty(0, np.float32) for _ in range(queries)]
        self._documents = [np.empty(0, np.int64) for _ in range(queries)]

    def add(self, scores: NDArray[np.float32], *, query: int, document: int) -> None:
        """Take the scores `[queries, documents]` of consecutive queries and documents.

        Args:
            scores: higher is better.
            query: position of the first query.
            document: position of the first document.

        Raises:
            InferenceError: a score is NaN or infinite.
        """
        if not np.isfinite(scores).all():
            row, column = np.argwhere(~np.isfinite(scores))[0]
            raise InferenceError(
                f"the score of query {query + row} and document {self._identifiers[document + column]!r} is "
                f"{scores[row, column]}"
            )
        beyond = max(scores.shape[1] - self._depth - 1, 0)  # one more, in case one is excluded
        least = np.partition(scores, beyond, axis=1)[:, beyond]
        for row, (line, lowest) in enumerate(zip(scores, least, strict=True), query):
            found = np.flatnonzero(line >= lowest) + document
            found = found[found != self._excluded[row]]
            merged = np.concatenate([self._scores[row], line[found - document]])
            documents = np.concatenate([self._documents[row], found])
            best = np.lexsort((self._order[documents], -merged))[: self._depth]
            self._scores[row], self._documents[row] = merged[best], documents[best]

    def ranking(self, query: int) -> list[str]:
        """Return the ids of the best documents of a query, best first."""
        return [self._identifiers[document] for document in self._documents[query].tolist()]
