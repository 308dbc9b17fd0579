"""One model on one data set, with the prompts of E5's authors. Never holds the scores of a whole corpus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from ..checks import whole_number
from ..encoder import Embeddings, Encoder
from ..errors import InferenceError, InputValueError, TextTooLongError
from ..tokenizer import Role
from .datasets import Pairs, Retrieval
from .metrics import ndcg, recall, spearman
from .search import BestDocuments

_NDCG_DEPTH = 10
_TEXTS_AT_ONCE = 2048
_QUERIES_AT_ONCE = 1024

Advance = Callable[[int], object]
"""A function that is called with the number of texts embedded since its last call."""


@dataclass(frozen=True)
class Result:
    """What a model scores on a data set.

    Attributes:
        metrics: from 0 to 1 for retrieval, from -1 to 1 for Spearman's correlation; higher is better.
        prompts: the text put before each text of either side.
        texts: number of texts that were embedded.
        truncated: number of texts among them that were cut to the model's maximum.
        seconds: total time, nearly all of it the model's.
    """

    metrics: dict[str, float]
    prompts: tuple[str, str]
    texts: int
    truncated: int
    seconds: float


def evaluate_retrieval(
    encoder: Encoder,
    data: Retrieval,
    *,
    recall_depths: Sequence[int] = (10, 100),
    same_ids: Literal["exclude", "keep"] | None = None,
    symmetric: bool = False,
    advance: Advance = lambda texts: None,
) -> Result:
    """Search the corpus with every query, and return the mean nDCG@10 and recall of the queries.

    Args:
        encoder: the model.
        data: what :func:`read_retrieval` returned.
        recall_depths: numbers of documents that count for recall.
        same_ids: what to do with a document that has the query's own id. "exclude" it as BEIR does where queries are
            documents themselves (ArguAna), or "keep" it where the ids just happen to be equal.
        symmetric: the texts of both sides are alike, as in a search for duplicate questions (Quora), so that documents
            get the prompt of queries.
        advance: called with the number of texts embedded since its last call.

    Raises:
        InputTypeError: a depth is not a whole number.
        InputValueError: ids of queries are also ids of documents, and `same_ids` does not say what to do; a depth is
            below 1; or the corpus changed.
        InferenceError: a score is NaN or infinite.
    """
    check_same_ids(data, same_ids)
    depths = [whole_number("recall_depths", depth) for depth in recall_depths]
    if min(depths, default=1) < 1:
        raise InputValueError(f"recall_depths must be at least 1, got {min(depths)}")
    work = _Work(encoder, data.name, advance)
    sides: tuple[Role, Role] = (_symmetric(encoder),) * 2 if symmetric else ("query", "document")
    queries = np.concatenate(list(work.embedded(data.queries.values(), sides[0])))
    best = BestDocuments(
        list(data.documents),
        queries=len(queries),
        depth=max([_NDCG_DEPTH, *depths]),
        excluded=[data.documents.get(query) for query in data.queries] if same_ids == "exclude" else None,
    )
    document = 0
    for vectors in work.embedded(data.texts(), sides[1]):
        for query in range(0, len(queries), _QUERIES_AT_ONCE):
            scores = encoder.similarity(queries[query : query + _QUERIES_AT_ONCE], vectors)
            best.add(scores, query=query, document=document)
        document += len(vectors)
    if document != len(data.documents):
        raise InputValueError(f"{data.path / 'corpus.jsonl'} changed while it was being evaluated")
    found = [(best.ranking(row), data.relevance[query]) for row, query in enumerate(data.queries)]
    metrics = {f"ndcg@{_NDCG_DEPTH}": float(np.mean([ndcg(*each, _NDCG_DEPTH) for each in found]))}
    for depth in depths:
        metrics[f"recall@{depth}"] = float(np.mean([recall(*each, depth) for each in found]))
    return work.result(metrics, sides)


def evaluate_pairs(encoder: Encoder, data: Pairs, *, advance: Advance = lambda texts: None) -> Result:
    """Compare the similarity of each pair with people's scores: Spearman's rank correlation.

    Both sides get the model's prompt for queries. A model without a prompt for documents gets none, as its prompt for
    queries is then an instruction to search.

    Raises:
        InferenceError: the model finds all pairs equally similar.
    """
    work = _Work(encoder, data.name, advance)
    side = _symmetric(encoder)
    first, second = (np.concatenate(list(work.embedded(texts, side))) for texts in (data.first, data.second))
    similarities = encoder.similarity_pairwise(first, second)
    try:
        metrics = {"spearman": spearman(similarities, data.scores)}
    except InputValueError as error:
        raise InferenceError(f"{data.name}: the similarities have no order ({error})") from error
    return work.result(metrics, (side, side))


def check_same_ids(data: Retrieval, same_ids: str | None) -> None:
    """Raise :class:`InputValueError` if it is not clear what to do with ids of both a query and a document."""
    if same_ids not in (None, "exclude", "keep"):
        raise InputValueError(f'same_ids must be "exclude", "keep" or None, got {same_ids!r:.80}')
    shared = [query for query in data.queries if query in data.documents]
    if shared and same_ids is None:
        raise InputValueError(
            f"{data.path}: {len(shared):,} of {len(data.queries):,} queries have the id of a document, such as "
            f"{shared[0]!r}. Say with same_ids (--same-ids) whether to exclude these documents from their own query's "
            "results, as BEIR does, or to keep them because the ids have nothing to do with each other"
        )


class _Work:
    """Embeds texts, and counts what it did."""

    def __init__(self, encoder: Encoder, name: str, advance: Advance) -> None:
        self._encoder, self._name, self._advance = encoder, name, advance
        self._texts = self._truncated = 0
        self._start = time.perf_counter()

    def embedded(self, texts: Iterable[str], role: Role) -> Iterator[Embeddings]:
        """Yield the vectors of some thousand texts at a time, in order."""
        prompt = self._encoder.tokenizer.prompt_for(role)
        rest = iter(texts)
        start = 0
        while some := list(islice(rest, _TEXTS_AT_ONCE)):
            try:
                tokenized = self._encoder.tokenizer.tokenize(some, prompt, start=start)
            except TextTooLongError as error:
                raise TextTooLongError(f"{self._name}: {error}") from error
            self._texts += len(some)
            self._truncated += sum(text.is_cut for text in tokenized)
            yield self._encoder.encode_tokenized(tokenized, advance=lambda texts, tokens: self._advance(texts))
            start += len(some)

    def result(self, metrics: dict[str, float], sides: tuple[Role, Role]) -> Result:
        prompts = tuple(self._encoder.tokenizer.prompt_for(side) for side in sides)
        seconds = time.perf_counter() - self._start
        return Result(metrics, (prompts[0], prompts[1]), self._texts, self._truncated, seconds)


def _symmetric(encoder: Encoder) -> Role:
    """Return the role of texts that are compared with their like."""
    return "query" if encoder.tokenizer.prompt_for("document") else "raw"
