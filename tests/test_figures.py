"""Every figure of the README and of the documentation is what its source says: a result of a benchmark, or the code.

A table is compared cell by cell. A sentence is given with `{}` for each of its figures. A figure has as many digits as
its page prints; what is printed in words ("an eighth") has its number in `WORDS`. A figure with a unit that nothing
here covers fails, unless it is listed under `STATED` with the reason.

After a benchmark, `PYTHONPATH=. python tests/test_figures.py` writes the new figures into the pages, and lists them.
Words around them may no longer be true then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

import pytest

from benchmarks.plots import NAMES
from conftest import DATA
from imports import REPOSITORY

Span = tuple[int, int]
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]\d+)?"
WITH_UNIT = re.compile(
    rf"(?<![\w.,`-])(?:{NUMBER} ?(?:[GMK]i?B|ms|s|%|times|x|passages/s)(?!\w)|0\.\d\d+(?![\d.])|\de-\d+(?!\w))"
)
WORDS = {
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
}


@cache
def result(name: str) -> Any:
    return json.loads((REPOSITORY / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def speed(program: str, texts: str) -> float:
    return float(result("throughput")["sets"][texts]["programs"][program]["passages_per_second"])


def best_batch(program: str, texts: str) -> float:
    """Passages a second with the best size of batches, the default one included."""
    found = result("throughput")["sets"][texts]["programs"][program]
    return float(max(found["passages_per_second"], found["best_batch"]["passages_per_second"]))


def speeds(program: str) -> list[float]:
    return [speed(program, texts) for texts in ("short", "mixed")]


def faster(program: str, other: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(speeds(program), speeds(other), strict=True)]


def peak(program: str) -> float:
    """Peak memory of the process, which ran the mixed lengths last."""
    return float(result("throughput")["sets"]["mixed"]["programs"][program]["peak_megabytes"])


def milliseconds(program: str, texts: str = "query", share: str = "p50") -> float:
    return float(result("latency")["sets"][texts]["programs"][program][f"{share}_ms"])


def starting(program: str) -> dict[str, Any]:
    return dict(result("cold_start")["programs"][program])


def start(program: str, stage: str = "total") -> float:
    return float(starting(program)["median"][stage])


def installed(program: str) -> float:
    return float(starting(program)["disk"]["packages_megabytes"])


def cosine(program: str, which: str = "mean", texts: str = "stsb") -> float:
    return float(result("quality")["programs"][program][f"cosine_to_e5onnx_{texts}"][which])


def quality(program: str, score: str) -> float:
    return float(result("quality")["programs"][program][score])


def changed(*, ours: bool) -> float:
    """The largest difference that bf16 and int8 make to a score, in e5onnx or in other programs."""
    exact, scores = result("quality")["programs"]["e5onnx"], ("stsb_test_spearman", "xquad_en_ndcg@10")
    return max(
        abs(float(scored[score]) - float(exact[score]))
        for name, scored in result("quality")["programs"].items()
        if name.startswith("e5onnx") is ours
        for score in scores
    )


def others() -> list[str]:
    """Programs that were timed on single texts and do not run our graph."""
    timed = result("latency")["sets"]["query"]["programs"]
    return [name for name in timed if not name.startswith(("e5onnx", "openvino"))]


def longest(program: str) -> float:
    """Peak memory of a process that embeds 100 texts of 512 tokens."""
    return float(result("memory")["sets"]["tokens_of_a_passage"]["programs"][program]["512"]["peak_megabytes"])


def way(name: str, key: str) -> float:
    found = result("first_vector")["ways"][name]
    return float(found["median_seconds"][key] if key in found["median_seconds"] else found[key])


def capacity(server: str, texts: str, what: str = "capacity_requests_per_second") -> float:
    return float(result("server")["servers"][server][texts][what])


def load(server: str, texts: str, share: float) -> list[float]:
    """p50 and p95 of what a server answers at a share of its capacity, ms for questions and s for passages."""
    times = level(server, texts, share)["milliseconds"]["200"]
    return [times[which] / (1 if texts == "question" else 1000) for which in ("p50", "p95")]


def level(server: str, texts: str, share: float) -> dict[str, Any]:
    levels = result("server")["servers"][server][texts]["levels"]
    return next(dict(each) for each in levels if each["share"] == share)


def refused(server: str, texts: str) -> float:
    """Per cent of the requests at 120 % of capacity."""
    found = level(server, texts, 1.2)
    return 100 * float(found["statuses"].get("429", 0)) / float(found["requests"])


def served(texts: str, each: int) -> dict[str, Callable[[str], float | list[float]]]:
    """The columns of a table of servers; a request holds so many texts."""
    return {
        ("questions/s" if each == 1 else "passages/s"): lambda server: each * capacity(server, texts),
        "in process": lambda server: each * capacity(server, texts, what="in_process_requests_per_second"),
        f"at 25 %, p50, p95 {'ms' if each == 1 else 's'}": lambda server: load(server, texts, 0.25),
        "at 50 %": lambda server: load(server, texts, 0.5),
        "at 80 %": lambda server: load(server, texts, 0.8),
        "at 120 %, of those answered": lambda server: load(server, texts, 1.2),
        "refused at 120 %": lambda server: refused(server, texts),
    }


def footprint(variant: str, key: str = "with_model_megabytes") -> float:
    return float(result("footprint")["variants"][variant][key])


def function(variant: str, key: str) -> float:
    return float(result("aws_lambda")["variants"][variant]["median"][key])


def published(task: str) -> float:
    path = DATA / "reference_scores.json"
    if not path.exists():
        pytest.skip(f"{path} is not there: it is not part of the project")
    return float(json.loads(path.read_text())[task]["e5-small-v2"][0]["main"])


KERNELS8, KERNELS16, OPENVINO, TORCH = (
    "e5onnx-kernels-int8",
    "e5onnx-kernels-bf16",
    "e5onnx-openvino",
    "sentence-transformers-torch",
)
PROGRAMS = {
    **{label: name for name, label in NAMES.items()},
    "fp32": "e5onnx",
    "int8": "e5onnx-int8",
    "int8, own kernels": KERNELS8,
    "bf16, own kernels": KERNELS16,
    "bf16, OpenVINO": OPENVINO,
}
WAYS = {
    "e5onnx, checkpoint, fp32": "e5onnx",
    "e5onnx, checkpoint, int8 (calibrated)": "e5onnx-int8",
    "e5onnx, ready": "e5onnx-ready",
    "fastembed, ready": "fastembed-ready",
    "sentence-transformers, torch": TORCH,
    "sentence-transformers, ONNX": "sentence-transformers-onnx",
}


class Table(NamedTuple):
    """A table of a page, found by its header; what each row is about; what a cell of each checked column holds."""

    page: str
    header: str
    rows: Mapping[str, str]
    columns: Mapping[str, Callable[[str], float | list[float]]]


TABLES = [
    Table(
        "README.md",
        "| program | passages/s | one question |",
        PROGRAMS,
        {
            "passages/s": lambda program: speed(program, "short"),
            "one question": milliseconds,
            "peak memory": peak,
            "installed packages": installed,
            "start to first vector": start,
        },
    ),
    Table(
        "README.md",
        "| | SciFact, nDCG@10 |",
        {"[intfloat/e5-small-v2](https://huggingface.co/intfloat/e5-small-v2)": ""},
        {
            "SciFact, nDCG@10": lambda _: published("SciFact"),
            "NFCorpus, nDCG@10": lambda _: published("NFCorpus"),
            "FiQA, nDCG@10": lambda _: published("FiQA2018"),
            "STS-B test, Spearman": lambda _: published("STSBenchmark"),
        },
    ),
    Table(
        "docs/comparison.md",
        "| program | passages/s, 20 to 150 tokens |",
        PROGRAMS,
        {
            "passages/s, 20 to 150 tokens": lambda program: speed(program, "short"),
            "best batch, short": lambda program: best_batch(program, "short"),
            "passages/s, 8 to 512 tokens": lambda program: speed(program, "mixed"),
            "best batch, mixed": lambda program: best_batch(program, "mixed"),
            "peak memory": peak,
            "one question, p50": milliseconds,
        },
    ),
    Table(
        "docs/precisions.md",
        "| | passages/s, 20 to 150 tokens |",
        PROGRAMS,
        {
            "passages/s, 20 to 150 tokens": lambda program: speed(program, "short"),
            "one question, p50": milliseconds,
            "peak memory": peak,
            "cosine to fp32, mean": cosine,
            "smallest": lambda program: cosine(program, "p0"),
        },
    ),
    Table(
        "docs/evaluation.md",
        "| task | score | from |",
        {
            name: name
            for name in (
                *("SciFact", "NFCorpus", "FiQA2018", "ArguAna", "SCIDOCS", "TRECCOVID", "QuoraRetrieval", "NQ"),
                *("STSBenchmark", "STS12", "STS13", "STS14", "STS15", "STS16", "SICK-R", "BIOSSES"),
            )
        },
        {"score": published},
    ),
    Table(
        "docs/benchmarks.md",
        "| program | short, passages/s | mixed, passages/s | peak MB | e5onnx int8 is faster by |",
        PROGRAMS,
        {
            "short, passages/s": lambda program: speed(program, "short"),
            "mixed, passages/s": lambda program: speed(program, "mixed"),
            "peak MB": peak,
            "e5onnx int8 is faster by": lambda program: faster("e5onnx-int8", program),
            "our kernels in int8 are faster by": lambda program: faster(KERNELS8, program),
        },
    ),
    Table(
        "docs/benchmarks.md",
        "| way | install | then to the first vector |",
        WAYS,
        {
            "install": lambda name: way(name, "install"),
            "then to the first vector": lambda name: way(name, "first_vector"),
            "together": lambda name: way(name, "total"),
            "packages": lambda name: [way(name, "packages_megabytes"), way(name, "package_number")],
        },
    ),
    Table(
        "docs/benchmarks.md",
        "| program | STS-B test, Spearman |",
        PROGRAMS,
        {
            "STS-B test, Spearman": lambda program: quality(program, "stsb_test_spearman"),
            "XQuAD-en, nDCG@10": lambda program: quality(program, "xquad_en_ndcg@10"),
            "cosine on STS-B's sentences": lambda program: [cosine(program), cosine(program, "p0")],
            "cosine on passages": lambda program: [
                cosine(program, texts="passages"),
                cosine(program, "p0", texts="passages"),
            ],
            "dependence on the batch": lambda program: quality(program, "alone_against_in_a_batch"),
        },
    ),
    Table(
        "docs/benchmarks.md",
        "| program | question, p50 | p95 |",
        PROGRAMS,
        {
            "question, p50": milliseconds,
            "p95": lambda program: milliseconds(program, share="p95"),
            "32 tokens, p50": lambda program: milliseconds(program, "passage_32_tokens"),
            "128 tokens, p50": lambda program: milliseconds(program, "passage_128_tokens"),
            "512 tokens, p50": lambda program: milliseconds(program, "passage_512_tokens"),
            "four callers, questions/s": lambda program: float(
                result("latency")["sets"]["query_4_callers"]["programs"][program]["calls_per_second"]
            ),
        },
    ),
    Table("docs/benchmarks.md", "| one question a request |", PROGRAMS, served("question", 1)),
    Table("docs/benchmarks.md", "| 32 passages a request |", PROGRAMS, served("passages", 32)),
    Table(
        "docs/benchmarks.md",
        "| model | `encode_document`, passages/s |",
        PROGRAMS,
        {
            "`encode_document`, passages/s": lambda name: rows(name, "encoder"),
            "`embed_files`": lambda name: rows(name, "files"),
            "share": lambda name: 100 * share(name, "files"),
            "`embed_files` on Ray": lambda name: rows(name, "ray"),
            "share on Ray": lambda name: 100 * share(name, "ray"),
        },
    ),
    Table(
        "docs/benchmarks.md",
        "| program | interpreter | import | load |",
        PROGRAMS,
        {
            "interpreter": lambda program: 1000 * start(program, "interpreter"),
            "import": lambda program: 1000 * start(program, "import"),
            "load": lambda program: 1000 * start(program, "load"),
            "first encode": lambda program: 1000 * start(program, "first_encode"),
            "total": lambda program: 1000 * start(program),
        },
    ),
    Table(
        "docs/benchmarks.md",
        "| emulated | has | onnxruntime |",
        {name: name for name in ("Nehalem", "Haswell", "cortex-a53", "neoverse-n1")},
        {
            "fp32, largest difference": lambda name: emulated(name, "largest_difference", "fp32"),
            "int8, largest difference": lambda name: emulated(name, "largest_difference", "int8"),
            "int8 to int8 here, smallest cosine": lambda name: emulated(name, "int8_cosine_to_int8_here", "smallest"),
            "int8 to fp32 there, mean cosine": lambda name: emulated(name, "int8_cosine_to_fp32_there", "mean"),
        },
    ),
]


def emulated(name: str, what: str, which: str) -> float:
    return float(result("processors")["processors"][name][what][which])


class Sentence(NamedTuple):
    """A sentence of a page with `{}` in place of figures, and the figures."""

    page: str
    text: str
    values: Callable[[], list[float]]


SENTENCES = [
    Sentence(
        "README.md",
        "e5onnx in int8 embeds {} times as many passages a second as sentence-transformers with PyTorch, in an {} of "
        "its memory. With its own C++ kernels, it embeds {} times as many. In fp32, where both give the same vectors, "
        "it is {} times as fast",
        lambda: [
            faster("e5onnx-int8", TORCH)[0],
            peak(TORCH) / peak("e5onnx-int8"),
            faster(KERNELS8, TORCH)[0],
            faster("e5onnx", TORCH)[0],
        ],
    ),
    Sentence(
        "README.md",
        '`precision="int8"`: {} times as fast in {} % of the memory. Vectors have a mean cosine of {} to fp32,',
        lambda: [
            faster("e5onnx-int8", "e5onnx")[0],
            100 * peak("e5onnx-int8") / peak("e5onnx"),
            cosine("e5onnx-int8"),
        ],
    ),
    Sentence("README.md", "bf16 (a mean cosine of {}) on", lambda: [cosine(KERNELS16)]),
    Sentence(
        "README.md",
        "With the batch size that is fastest for each of them here, the last three reach {}, {} and {} passages a "
        "second.",
        lambda: [best_batch(each, "short") for each in ("sentence-transformers-openvino", "fastembed", TORCH)],
    ),
    *(
        Sentence(
            page,
            "has its first vector {} s (int8) to {} s (fp32) after its start",
            lambda: [start("e5onnx-int8"), start("e5onnx")],
        )
        for page in ("docs/comparison.md", "docs/deploying.md")
    ),
    Sentence(
        "docs/comparison.md",
        "fastembed takes {} s and sentence-transformers {} s",
        lambda: [start("fastembed"), start(TORCH)],
    ),
    Sentence(
        "docs/comparison.md",
        "OpenVINO itself runs fp32 at {} and {} passages/s, and bf16 at {} and {}:",
        lambda: [*speeds("openvino"), *speeds("openvino-bf16")],
    ),
    Sentence(
        "docs/comparison.md",
        "fp32 answers {}x the questions and {}x the passages of infinity with torch, in int8 {}x and {}x",
        lambda: [
            capacity(server, texts) / capacity("infinity", texts)
            for server in ("e5onnx", "e5onnx-int8")
            for texts in ("question", "passages")
        ],
    ),
    Sentence(
        "docs/deploying.md",
        "# {} MB; {} MB with all that pip would add",
        lambda: [footprint("three packages", "megabytes"), footprint("with dependencies", "megabytes")],
    ),
    Sentence(
        "docs/deploying.md",
        "that makes {} MB, or {} MB without the tests",
        lambda: [footprint("three packages"), footprint("pruned")],
    ),
    Sentence(
        "docs/deploying.md",
        "({} MB, {} MB unzipped; Lambda's",
        lambda: [
            result("aws_lambda")["zip_megabytes"],
            result("aws_lambda")["variants"]["with byte code"]["unzipped_megabytes"],
        ],
    ),
    Sentence(
        "docs/deploying.md",
        "then starts in {} s instead of {} s. A question takes {} ms",
        lambda: [
            function("with byte code", "cold_seconds"),
            function("without byte code", "cold_seconds"),
            1000 * function("with byte code", "warm_seconds"),
        ],
    ),
    Sentence(
        "docs/getting_started.md",
        "the packages take {} MB on disk ({} MB without",
        lambda: [way("e5onnx", "packages_megabytes"), way("e5onnx-ready", "packages_megabytes")],
    ),
    Sentence(
        "docs/getting_started.md",
        "first vector after {} s (sentence-transformers: {} s), of which pip takes {} s",
        lambda: [way("e5onnx", "total"), way(TORCH, "total"), way("e5onnx", "install")],
    ),
    Sentence(
        "docs/precisions.md",
        "a quarter of the file size, {} % of the memory",
        lambda: [100 * peak("e5onnx-int8") / peak("e5onnx")],
    ),
    Sentence(
        "docs/precisions.md",
        "mean cosine to fp32 {}, smallest {}. Spearman on the test set is {} against {}; nDCG@10 on XQuAD-en is {} "
        "against {}.",
        lambda: [
            cosine("e5onnx-int8"),
            cosine("e5onnx-int8", "p0"),
            *(quality(each, "stsb_test_spearman") for each in ("e5onnx-int8", "e5onnx")),
            *(quality(each, "xquad_en_ndcg@10") for each in ("e5onnx-int8", "e5onnx")),
        ],
    ),
    Sentence(
        "docs/precisions.md",
        "a text's vectors from two processors may have a cosine of only {}.",
        lambda: [min(emulated(name, "int8_cosine_to_int8_here", "smallest") for name in ("Nehalem", "cortex-a53"))],
    ),
    Sentence(
        "docs/precisions.md",
        "a small C++ library: {}x to {}x as many passages a second, and a short question in {} ms instead of {} ms",
        lambda: [
            *sorted(faster(KERNELS8, "e5onnx-int8")),
            milliseconds(KERNELS8),
            milliseconds("e5onnx-int8"),
        ],
    ),
    Sentence(
        "docs/precisions.md",
        "{}x to {}x as fast as int8 without these kernels, with a mean cosine to fp32 of {}.",
        lambda: [*sorted(faster(KERNELS16, "e5onnx-int8")), cosine(KERNELS16)],
    ),
    Sentence(
        "docs/precisions.md",
        "a mean cosine of {} and a smallest of {} on STS-B's sentences, against {} and {}.",
        lambda: [cosine(program, which) for program in (KERNELS8, "e5onnx-int8") for which in ("mean", "p0")],
    ),
    Sentence(
        "docs/precisions.md",
        "it embeds {}x (20 to 150 tokens) and {}x (8 to 512 tokens) as many passages as fp32, and {}x and {}x as many "
        "as sentence-transformers' OpenVINO backend, in {}x of its memory. The cosine to fp32 is {} on average and {} "
        "at worst. On that processor, int8 is faster still ({}x and {}x)",
        lambda: [
            *faster(OPENVINO, "e5onnx"),
            *faster(OPENVINO, "sentence-transformers-openvino"),
            peak(OPENVINO) / peak("sentence-transformers-openvino"),
            cosine(OPENVINO),
            cosine(OPENVINO, "p0"),
            *faster("e5onnx-int8", OPENVINO),
        ],
    ),
    Sentence(
        "docs/precisions.md",
        "The package adds {} MB.",
        lambda: [installed(OPENVINO) - installed("e5onnx")],
    ),
    Sentence(
        "docs/precisions.md",
        "has its first vector after {} s instead of {} s",
        lambda: [start(f"{OPENVINO}-cached"), start(OPENVINO)],
    ),
    Sentence("docs/precisions.md", "(up to {} in a component", lambda: [quality(OPENVINO, "alone_against_in_a_batch")]),
    *(
        Sentence(page, text, lambda: [limits()[0]])
        for page, text in (
            ("docs/getting_started.md", "if one differs by more than {}."),
            ("docs/export.md", "differs by more than {};"),
            ("docs/troubleshooting.md", "(a difference above {} in fp32"),
        )
    ),
    *(
        Sentence(page, text, lambda: [limits()[1]])
        for page, text in (
            ("docs/precisions.md", "refuses a mean below {}."),
            ("docs/troubleshooting.md", "a mean cosine below {} in int8"),
        )
    ),
    Sentence(
        "docs/benchmarks.md",
        "in int8 embeds {}x as many short passages a second as fastembed and {}x as many as sentence-transformers with "
        "PyTorch; with its own kernels {}x and {}x. - Its peak memory is {} MB in int8 and {} MB in fp32. fastembed "
        "takes {} MB, sentence-transformers with PyTorch {} MB. - int8 keeps a mean cosine of {} to fp32, with our "
        "kernels {}; bf16 keeps {}.",
        lambda: [
            *(faster(mine, theirs)[0] for mine in ("e5onnx-int8", KERNELS8) for theirs in ("fastembed", TORCH)),
            *map(peak, ("e5onnx-int8", "e5onnx", "fastembed", TORCH)),
            *map(cosine, ("e5onnx-int8", KERNELS8, KERNELS16)),
        ],
    ),
    Sentence(
        "docs/benchmarks.md",
        "OpenVINO itself embeds {} short and {} mixed passages a second, e5onnx {} and {}. With their best sizes of "
        "batches, CTranslate2 embeds {} short passages, and fastembed {} mixed ones. - A single question takes {} ms "
        "in fp32. With OpenVINO itself on our graph it takes {} ms.",
        lambda: [
            *speeds("openvino"),
            *speeds("e5onnx"),
            best_batch("ctranslate2", "short"),
            best_batch("fastembed", "mixed"),
            milliseconds("e5onnx"),
            milliseconds("openvino"),
        ],
    ),
    Sentence(
        "docs/benchmarks.md",
        "sentence-transformers with OpenVINO embeds {} short passages a second.",
        lambda: [speed("sentence-transformers-openvino", "short")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "its mean cosine is {}. A process with it has its first vector after {} s, as early as one with e5onnx.",
        lambda: [cosine("llama-cpp-q8_0"), start("llama-cpp-q8_0")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "| time | {} h of one machine, {} h of 1,000 | {} passages/s through files |\n"
        "| cost | {} vCPU-hours: ${} at $0.04 each",
        lambda: [
            hours := 1e9 / rows("e5onnx-int8", "files") / 3600,
            hours / 1000,
            rows("e5onnx-int8", "files"),
            2 * hours,
            2 * hours * 0.04,
        ],
    ),
    Sentence(
        "docs/benchmarks.md",
        "100,000 of {} s each; {} a second come back",
        lambda: [10_000 / rows("e5onnx-int8", "files"), rows("e5onnx-int8", "files") / 10],
    ),
    Sentence(
        "docs/benchmarks.md",
        "is the fastest, with {} short passages; fastembed embeds {}, or {} with its best batch]",
        lambda: [speed(KERNELS8, "short"), speed("fastembed", "short"), best_batch("fastembed", "short")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "Bars of peak memory by program: {} MB for e5onnx int8 with its own kernels, {} MB for fastembed]",
        lambda: [peak(KERNELS8), peak("fastembed")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "e5onnx fp32 takes {} MB for 100 texts of 512 tokens, fastembed {} MB]",
        lambda: [longest("e5onnx"), longest("fastembed")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "has a median of {} ms, the fastest program without our graph {} ms]",
        lambda: [
            milliseconds(KERNELS8),
            min(map(milliseconds, others())),
        ],
    ),
    Sentence(
        "docs/benchmarks.md",
        "first vector: {} s for e5onnx int8, {} s for fastembed, {} s for sentence-transformers]",
        lambda: [start("e5onnx-int8"), start("fastembed"), start(TORCH)],
    ),
    Sentence(
        "docs/benchmarks.md",
        "first vector: {} s for e5onnx fp32 from a checkpoint, {} s for sentence-transformers with torch]",
        lambda: [way("e5onnx", "total"), way(TORCH, "total")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "keeps {} at {} passages a second, sentence-transformers ONNX qint8 {} at {}]",
        lambda: [
            cosine(KERNELS8),
            speed(KERNELS8, "short"),
            cosine("sentence-transformers-onnx-qint8"),
            speed("sentence-transformers-onnx-qint8", "short"),
        ],
    ),
    Sentence(
        "docs/benchmarks.md",
        "STS-B and XQuAD-en: {} at most with e5onnx, {} with others]",
        lambda: [changed(ours=True), changed(ours=False)],
    ),
    Sentence(
        "docs/benchmarks.md",
        "e5onnx int8 has a capacity of {} questions a second, infinity {}]",
        lambda: [capacity("e5onnx-int8", "question"), capacity("infinity", "question")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "with a mean cosine of {} here.",
        lambda: [result("processors")["int8_cosine_to_fp32_here"]["mean"]],
    ),
    Sentence(
        "docs/benchmarks.md",
        "{} as pip installs it, {} the three packages (`--no-deps`), {} pruned",
        lambda: [footprint(variant) for variant in ("with dependencies", "three packages", "pruned")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "zip {} MB, {} unzipped; start to reply {} s with byte code, {} s without; warm {} ms",
        lambda: [
            result("aws_lambda")["zip_megabytes"],
            result("aws_lambda")["variants"]["with byte code"]["unzipped_megabytes"],
            function("with byte code", "cold_seconds"),
            function("without byte code", "cold_seconds"),
            1000 * function("with byte code", "warm_seconds"),
        ],
    ),
    Sentence(
        "docs/benchmarks.md",
        "calls, 140 million tokens | {} MB after a tenth of them, {} at the end |",
        lambda: [result("soak_one_layer")[f"megabytes_{when}"] for when in ("after_a_tenth", "at_the_end")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "beside other work: {} MB after a tenth of them, {} at most |",
        lambda: [result("soak")[f"megabytes_{when}"] for when in ("after_a_tenth", "at_most")],
    ),
    Sentence(
        "docs/benchmarks.md",
        "{} answered, {} refused as bad, {} whose client hung up. {} MB at most in the first tenth, 196 MB after "
        "thirteen minutes, {} MB at the end",
        lambda: [
            *(result("server_soak")["requests"][status] for status in ("200", "400", "gone")),
            *(result("server_soak")[f"megabytes_{when}"] for when in ("after_a_tenth", "at_the_end")),
        ],
    ),
    Sentence(
        "docs/benchmarks.md",
        "as much as they can. {} MB at most in the first tenth, {} MB at most in all, {} MB at the end",
        lambda: [
            result("bulk_memory_one_layer")["memory"][f"megabytes_{when}"]
            for when in ("after_a_tenth", "at_most", "at_the_end")
        ],
    ),
]
# Limits that the code has, orders of magnitude that the tests assert, and what was measured once and is kept as the
# reason of a decision: no result of a benchmark stands behind them.
STATED = {
    "docs/benchmarks.md": [
        *("0.0008", "0.9955", "0.9861", "0.9971", "0.9878", "1e-7"),  # of scores and int8, measured once
        *("1.80x", "1.60x", "1.71x", "1.82x", "1.76x", "1.33x", "1.46x", "1.45x", "1.20x", "1.30x", "1.48x"),
        *("25 %", "50 %", "80 %", "120 %", "1 ms", "196 MB", "10 MB"),  # the server's loads; its event loop and soak
        *("0.04", "0.77", "0.39", "2 s", "1.5 GB"),  # a billion passages
        "0.999",  # below it, a program is not compared
    ],
    "docs/corpora.md": ["64 MiB"],  # the longest row
    "docs/decisions.md": [
        "0.09 s",
        "0.24 s",
        "25 ms",
        "0.262 s",
        "0.265 s",
        "14 %",
        "19 %",
    ],  # each measured once, when it was decided
    "docs/deploying.md": ["250 MiB"],  # Lambda's limit
    "docs/evaluation.md": ["0.001"],  # what to expect
    "docs/export.md": ["1e-5"],  # tests/parity
    "docs/getting_started.md": ["1e-5"],  # tests/parity
    "docs/precisions.md": ["1e-5", "1e-6", "1e-7", "0.999"],  # tests/parity, tests/kernels
    "docs/python.md": ["1e-6"],  # tests/runtime
    "docs/server.md": ["1e-6", "60 s", "16 MiB", "64 KiB", "64 MiB", "64 KB", "75 s", "15 s", "30 s"],  # its limits
}


def limits() -> tuple[float, float]:
    validate = pytest.importorskip("e5onnx_export.validate")
    return validate.LARGEST_DIFFERENCE["fp32"], validate.LEAST_MEAN_COSINE


def rows(name: str, how: str) -> float:
    return float(result("bulk")["throughput"][name]["rows_per_second"][how])


def share(name: str, how: str) -> float:
    return float(result("bulk")["throughput"][name]["share_of_encoder"][how])


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def as_printed(printed: str, value: float) -> str:
    """Return a value with as many digits as another has."""
    if printed in WORDS:
        return next((word for word, number in WORDS.items() if number == round(value)), f"1/{value:.1f}")
    if "e" in printed:
        digits = len(printed.rpartition("e")[2])
        return f"{value:.0e}" if digits == 3 else f"{value:.0e}".replace("e-0", "e-")
    decimals = -int(Decimal(printed.replace(",", "")).as_tuple().exponent)
    return f"{value:{',' if ',' in printed else ''}.{decimals}f}"


def cells(table: Table) -> Iterator[tuple[str, str, str, Span]]:
    """Yield label, column, text and place of every cell of a table."""
    text = text_of(table.page)
    begin = text.index(table.header)
    lines = text[begin : text.index("\n\n", begin) if "\n\n" in text[begin:] else None].split("\n")
    header = [name.strip() for name in lines[0].split("|")[1:-1]]
    place = begin + len(lines[0]) + len(lines[1]) + 2
    for line in lines[2:]:
        columns = line.split("|")
        at = place + len(columns[0]) + 1
        for name, cell in zip(header, columns[1:-1], strict=True):
            yield columns[1].strip(), name, cell.strip(), (at, at + len(cell))
            at += len(cell) + 1
        place += len(line) + 1


def compared(table: Table) -> Iterator[tuple[str, str, list[re.Match[str]], list[float]]]:
    """Yield label, column and figures of every cell that is checked, and what was measured."""
    pattern, text = re.compile(rf"(?<![\w.]){NUMBER}"), text_of(table.page)
    for label, column, cell, place in cells(table):
        assert label in table.rows, f"{table.page}: unknown row {label}"
        if column in table.columns and cell:
            expected = table.columns[column](table.rows[label])
            figures = list(pattern.finditer(text, *place))
            yield label, column, figures, expected if isinstance(expected, list) else [expected]


def found(sentence: Sentence) -> re.Match[str]:
    words = (r"\s+".join(map(re.escape, re.split(r"\s+", piece))) for piece in re.split(r"\{\}", sentence.text))
    pattern = rf"({NUMBER}|{'|'.join(WORDS)})".join(words)
    matches = list(re.finditer(pattern, text_of(sentence.page)))
    assert len(matches) == 1, f"{sentence.page} has this sentence {len(matches)} times: {sentence.text}"
    return matches[0]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.page} {table.header[:40]}")
def test_tables_hold_what_was_measured(table: Table) -> None:
    wrong, checked = [], set()
    for label, column, figures, expected in compared(table):
        checked.add(column)
        printed = [figure[0] for figure in figures]
        if len(printed) != len(expected) or [*map(as_printed, printed, expected)] != printed:
            wrong.append(f"{label}, {column}: {printed}, measured {expected}")
    assert not wrong, "\n".join([table.page, *wrong])
    assert checked == set(table.columns)


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda sentence: f"{sentence.page} {sentence.text[:40]}")
def test_sentences_say_what_was_measured(sentence: Sentence) -> None:
    printed, expected = list(found(sentence).groups()), sentence.values()
    assert [as_printed(*pair) for pair in zip(printed, expected, strict=True)] == printed, (sentence.text, expected)


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
)
def test_every_figure_has_a_source(page: str) -> None:
    if page == "docs/tried.md":
        return  # it tells of experiments of which only this page is left
    text = re.sub(r"^```.*?^```", lambda block: " " * len(block[0]), text_of(page), flags=re.DOTALL | re.MULTILINE)
    covered = [place for table in TABLES if table.page == page for *_, place in cells(table)]
    for sentence in SENTENCES:
        if sentence.page == page:
            match = found(sentence)
            covered += [match.span(group) for group in range(1, len(match.groups()) + 1)]
    stated = STATED.get(page, [])
    missing = [
        match[0]
        for match in WITH_UNIT.finditer(text)
        if match[0] not in stated and not any(begin <= match.start() < end for begin, end in covered)
    ]
    assert not missing, f"{page}: no source for {missing}"
    assert set(stated) <= {match[0] for match in WITH_UNIT.finditer(text)}, f"{page} no longer states all of {stated}"


def write_figures() -> None:
    """Write what was measured in place of every figure that differs."""
    changes: dict[str, dict[Span, str]] = {}
    for table in TABLES:
        for _, _, printed, expected in compared(table):
            for match, value in zip(printed, expected, strict=True):
                changes.setdefault(table.page, {})[match.span()] = as_printed(match[0], value)
    for sentence in SENTENCES:
        match = found(sentence)
        for group, value in enumerate(sentence.values(), 1):
            changes.setdefault(sentence.page, {})[match.span(group)] = as_printed(match[group], value)
    for page, figures in changes.items():
        text = text_of(page)
        for (begin, end), figure in sorted(figures.items(), reverse=True):
            if text[begin:end] != figure:
                print(f"{page}: {text[begin:end]} -> {figure}")  # noqa: T201
                text = text[:begin] + figure + text[end:]
        (REPOSITORY / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_figures()
