"""The command `e5onnx evaluate`: every wanted precision and provider on every data set, as a table and as JSON."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import kinds
from ..errors import plural
from ..progress import bar
from ..terminal import inform, json_report, note, print_line, shows_progress
from ..version import __version__

if TYPE_CHECKING:
    from ..encoder import Encoder
    from .datasets import Pairs, Retrieval


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments, except the model's, to its parser."""
    parser.add_argument(
        "data",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv), a tab-separated file with the columns "
        "score, sentence1 and sentence2, or a folder of such files",
    )
    model, data = map(parser.add_argument_group, ("model", "data"))
    kinds.add_arguments(model)
    data.add_argument("--split", default="test", help="which file of qrels/ to use (default: test)")
    data.add_argument(
        "--recall", action="extend", type=_depths, metavar="K", help="depths of recall, such as 10,100 (the default)"
    )
    data.add_argument(
        "--same-ids",
        choices=["exclude", "keep"],
        help="if queries share ids with documents: exclude the document from its own query's results, as BEIR does, "
        "or keep it because the ids have nothing to do with each other",
    )
    data.add_argument(
        "--symmetric",
        action="store_true",
        help="give documents the prompt for queries (for duplicate questions, as in Quora)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON to a file, or - for standard output")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from .datasets import Retrieval, find_datasets
    from .evaluation import check_same_ids

    with json_report(options.json) as report:
        datasets = find_datasets(options.data, options.split)
        for data in datasets:
            if isinstance(data, Retrieval):
                check_same_ids(data, options.same_ids)
                _note_about(data)
        wanted, left_out = kinds.find_kinds(options)
        results: list[list[dict[str, Any]]] = [[] for _ in datasets]
        for kind in wanted:
            encoder = kinds.load(options, kind)
            for data, rows in zip(datasets, results, strict=True):
                rows.append(_evaluated(options, encoder, data))
        content = _report(options, encoder, datasets, results, left_out)
        if report(content):
            return
    _print_tables(content)


def _evaluated(options: argparse.Namespace, encoder: Encoder, data: Retrieval | Pairs) -> dict[str, Any]:
    from .datasets import Pairs
    from .evaluation import evaluate_pairs, evaluate_retrieval

    what = f"{data.name}, {encoder.provider} {encoder.precision}"
    texts = 2 * len(data.scores) if isinstance(data, Pairs) else len(data.queries) + len(data.documents)
    with bar(shows_progress(), what, texts, "text") as advance:
        if isinstance(data, Pairs):
            result = evaluate_pairs(encoder, data, advance=advance)
        else:
            result = evaluate_retrieval(
                encoder,
                data,
                recall_depths=options.recall or (10, 100),
                same_ids=options.same_ids,
                symmetric=options.symmetric,
                advance=advance,
            )
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    cut = f"; cut {plural(result.truncated, 'text')} to {encoder.max_tokens} tokens" if result.truncated else ""
    inform(f"{what}: {scores} ({result.seconds:,.1f} s{cut})")
    return {
        "provider": encoder.provider,
        "precision": encoder.precision,
        "fingerprint": encoder.fingerprint,
        **asdict(result),
    }


def _note_about(data: Retrieval) -> None:
    """Say what is counted differently from what a user might expect."""
    if data.unjudged:
        inform(f"{data.name}: queries left out, as this split has no judgement of them: {data.unjudged:,}")
    hopeless = sum(not any(value > 0 for value in judged.values()) for judged in data.relevance.values())
    if hopeless:
        note(f"warning: {data.name}: queries without a relevant document, counted as 0 as in trec_eval: {hopeless:,}")


def _report(
    options: argparse.Namespace,
    encoder: Encoder,
    datasets: list[Retrieval | Pairs],
    results: list[list[dict[str, Any]]],
    left_out: list[kinds.LeftOut],
) -> dict[str, Any]:
    from ..host import describe_host
    from .datasets import Pairs

    described = []
    for data, rows in zip(datasets, results, strict=True):
        facts: dict[str, Any] = {"name": data.name, "path": str(data.path)}
        if isinstance(data, Pairs):
            facts |= {"task": "similarity", "pairs": len(data.scores)}
        else:
            facts |= {
                "task": "retrieval",
                "split": options.split,
                "queries": len(data.queries),
                "unjudged_queries": data.unjudged,
                "documents": len(data.documents),
                "same_ids": options.same_ids,
            }
        described.append({**facts, "results": rows})
    host = describe_host()
    return {
        "model": options.model,
        "checkpoint": encoder.manifest.checkpoint,
        "revision": encoder.manifest.revision,
        "e5onnx": __version__,
        "processor": host.processor,
        "threads": encoder.threads,
        "datasets": described,
        "left_out": [each._asdict() for each in left_out],
    }


def _print_tables(content: dict[str, Any]) -> None:
    for data in content["datasets"]:
        counts = ", ".join(f"{data[name]:,} {name}" for name in ("pairs", "queries", "documents") if name in data)
        metrics = list(data["results"][0]["metrics"])
        print_line(f"{data['name']}: {counts}")
        print_line(f"  provider  precision  {''.join(f'{name:<12}' for name in metrics)}{'seconds':>9}  fingerprint")
        for row in data["results"]:
            scores = "".join(f"{row['metrics'][name]:<12.4f}" for name in metrics)
            print_line(
                f"  {row['provider']:<8}  {row['precision']:<9}  {scores}{row['seconds']:>9,.1f}  {row['fingerprint']}"
            )
    for each in content["left_out"]:
        print_line(f"left out: {each['provider']} {each['precision']}: {each['reason']}")


def _depths(text: str) -> list[int]:
    depths = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.split(",")]
    if not all(0 < depth < 1_000_000 for depth in depths):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers above 0")
    return depths
