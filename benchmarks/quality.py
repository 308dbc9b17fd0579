"""How near int8 is to fp32, and what that costs: cosines, semantic similarity (STS-B) and retrieval (XQuAD-en).

Runs on the sample, all-MiniLM-L6-v2, whose weights are real: on the checkpoint that the other benchmarks time, quality
has no meaning. The peers' int8 are not measured here.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from e5onnx import Encoder

from .environments import BUILD, REPOSITORY
from .report import parser, write
from .texts import mixed_passages, require_data

_DATA = REPOSITORY.parent / "shared/data"
_DEPTH = 10
"""Documents that nDCG looks at."""


def main() -> None:
    """Run as a program."""
    arguments = parser("quality", __doc__, rounds=1).parse_args()
    require_data()
    model = BUILD / "models/sample"
    # S603: a fixed command on a path of the harness
    subprocess.run([sys.executable, "-m", "e5onnx", "export", "sample", str(model), "--force"], check=True)  # noqa: S603
    exact, quantized = (_measure(Encoder(model, precision=precision)) for precision in ("fp32", "int8"))
    results = {"fp32": exact["scores"], "int8": quantized["scores"]}
    for name in ("stsb", "passages"):
        cosines = np.einsum("ij,ij->i", exact[name], quantized[name])
        percentiles = {f"p{percent}": float(np.percentile(cosines, percent)) for percent in (0, 1, 5, 50)}
        results["int8"][f"cosine_to_fp32_{name}"] = {"mean": float(cosines.mean()), **percentiles}
    results["int8"]["alone_against_in_a_batch"] = _dependence_on_batch(Encoder(model, precision="int8"))
    write(arguments.output, {"benchmark": "quality", "model": "all-MiniLM-L6-v2", "precisions": results})


def _measure(encoder: Encoder) -> dict[str, Any]:
    with (_DATA / "stsb/test.tsv").open(encoding="utf-8", newline="") as stream:
        pairs = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    first, second = (encoder.encode([pair[column] for pair in pairs]) for column in ("sentence1", "sentence2"))
    spearman = spearmanr((first * second).sum(axis=1), [float(pair["score"]) for pair in pairs]).statistic
    return {
        "stsb": np.concatenate([first, second]),
        "passages": encoder.encode(mixed_passages(200)),
        "scores": {"stsb_test_spearman": float(spearman), f"xquad_en_ndcg@{_DEPTH}": _retrieval(encoder)},
    }


def _retrieval(encoder: Encoder) -> float:
    """Return the mean nDCG@10 of the questions of XQuAD-en over its paragraphs; one paragraph answers each."""
    corpus, queries = (_json_lines(_DATA / f"xquad_en/{name}.jsonl") for name in ("corpus", "queries"))
    with (_DATA / "xquad_en/qrels/test.tsv").open(encoding="utf-8", newline="") as stream:
        answers = {row["query-id"]: row["corpus-id"] for row in csv.DictReader(stream, delimiter="\t")}
    documents: NDArray[np.float32] = encoder.encode_document([document["text"] for document in corpus])
    questions: NDArray[np.float32] = encoder.encode_query([query["text"] for query in queries])
    position = {document["_id"]: row for row, document in enumerate(corpus)}
    wanted = np.array([position[answers[query["_id"]]] for query in queries])
    scores = questions @ documents.T
    ranks = (scores > scores[np.arange(len(queries)), wanted][:, None]).sum(axis=1)
    gains = np.where(ranks < _DEPTH, 1 / np.log2(ranks + 2), 0.0)
    return float(gains.mean())


def _dependence_on_batch(encoder: Encoder) -> float:
    """Return the largest difference of a component between a passage alone and among others."""
    passages = mixed_passages(40)
    together = encoder.encode(passages)
    return max(float(np.abs(encoder.encode(text) - row).max()) for text, row in zip(passages, together, strict=True))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
