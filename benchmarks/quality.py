"""What reduced precision costs: semantic similarity (STS-B), retrieval (XQuAD-en), cosines, dependence on the batch.

Runs on the sample, all-MiniLM-L6-v2, whose weights are real: on the checkpoint that the other benchmarks time, quality
has no meaning. Texts are cut to 256 tokens, the checkpoint's maximum, so that every program sees the same.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5onnx import Tokenizer
from e5onnx.evaluate import read_pairs
from e5onnx.evaluate.metrics import ndcg, spearman
from e5onnx.evaluate.search import BestDocuments

from .environments import REPOSITORY
from .forms import SAMPLE
from .peers import PEERS, REFERENCE, Worker, e5onnx_model, running
from .report import add_peers, parser, with_reference, write
from .texts import mixed_passages, require_data

_DATA = REPOSITORY.parent / "shared/data"
_DEPTH = 10
"""Documents that nDCG looks at."""
_MAX_TOKENS = 256
_DEFAULT = (*(name for name, peer in PEERS.items() if peer.precision != "fp32"), "fastembed")
"""Programs in float32 give the same vectors: one is enough to show it."""

Vectors = NDArray[np.float32]


def main() -> None:
    """Run as a program."""
    options = parser("quality", __doc__, rounds=1)
    add_peers(options, _DEFAULT)
    arguments = options.parse_args()
    require_data()
    questions = _Retrieval()
    tokenizer = Tokenizer(e5onnx_model(SAMPLE))
    pairs = read_pairs(_DATA / "stsb/test.tsv")
    sets = {
        "stsb": pairs.first + pairs.second,
        "passages": mixed_passages(200),
        "questions": questions.queries,
        "paragraphs": questions.documents,
    }
    sets = {name: [_cut(text, tokenizer) for text in texts] for name, texts in sets.items()}
    with running(with_reference(arguments.peers), SAMPLE) as programs:
        vectors = programs.take_turns(lambda worker: _encode(worker, sets))
        dependence = programs.take_turns(lambda worker: _dependence_on_batch(worker, sets["passages"][:40]))
    results = {
        name: {
            "stsb_test_spearman": _spearman(vectors[name]["stsb"], pairs.scores),
            f"xquad_en_ndcg@{_DEPTH}": questions.ndcg(vectors[name]["questions"], vectors[name]["paragraphs"]),
            "alone_against_in_a_batch": dependence[name],
            **{
                f"cosine_to_e5onnx_{texts}": _distribution(vectors[name][texts], vectors[REFERENCE][texts])
                for texts in ("stsb", "passages")
            },
        }
        for name in programs.workers
    }
    content = {"programs": results, "loaded": programs.loaded, "failed": programs.failed}
    write(arguments.output, {"benchmark": "quality", "model": SAMPLE, **content})


class _Retrieval:
    """XQuAD-en as retrieval: the questions search all paragraphs, and one paragraph answers each."""

    def __init__(self) -> None:
        corpus, queries = (_json_lines(_DATA / f"xquad_en/{name}.jsonl") for name in ("corpus", "queries"))
        with (_DATA / "xquad_en/qrels/test.tsv").open(encoding="utf-8", newline="") as stream:
            answers = {row["query-id"]: row["corpus-id"] for row in csv.DictReader(stream, delimiter="\t")}
        self.documents: list[str] = [document["text"] for document in corpus]
        self.queries: list[str] = [query["text"] for query in queries]
        self._ids: list[str] = [document["_id"] for document in corpus]
        self._relevance = [{answers[query["_id"]]: 1} for query in queries]

    def ndcg(self, queries: Vectors, documents: Vectors) -> float:
        """Return the mean nDCG@10."""
        best = BestDocuments(self._ids, queries=len(queries), depth=_DEPTH)
        best.add(queries @ documents.T, query=0, document=0)
        return float(np.mean([ndcg(best.ranking(row), each, _DEPTH) for row, each in enumerate(self._relevance)]))


def _encode(worker: Worker, sets: dict[str, list[str]]) -> dict[str, Vectors]:
    vectors = {name: worker.vectors(texts, "raw")[0] for name, texts in sets.items()}
    # normalised again: bf16 programs return vectors that are only nearly of unit length
    return {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in vectors.items()}


def _dependence_on_batch(worker: Worker, passages: list[str]) -> float:
    """Return the largest difference of a component between a passage alone and among others."""
    together, _ = worker.vectors(passages, "raw")
    alone = [worker.vectors([passage], "raw")[0][0] for passage in passages]
    return float(np.abs(together - np.stack(alone)).max())


def _spearman(vectors: Vectors, scores: list[float]) -> float:
    first, second = np.split(vectors, 2)
    return spearman((first * second).sum(axis=1), scores)


def _distribution(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """Return mean and percentiles (p0 is the smallest) of the cosines of corresponding rows, all of unit length."""
    cosines = np.einsum("ij,ij->i", vectors, reference)
    return {
        "mean": float(cosines.mean()),
        **{f"p{each}": float(np.percentile(cosines, each)) for each in (0, 1, 5, 50)},
    }


def _cut(text: str, tokenizer: Tokenizer) -> str:
    """Return the text without the words at its end that the checkpoint would not see."""
    while tokenizer.count_tokens(text) > _MAX_TOKENS:
        text = text.rsplit(maxsplit=1)[0]
    return text


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
