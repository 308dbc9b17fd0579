"""Pictures of the recorded results, as PNG and SVG beside the JSON documents.

Draws what is there and skips what is not; measures nothing. The same documents and Matplotlib give the same bytes of
SVG, by which a test notices pictures that are out of date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .environments import REPOSITORY
from .peers import PEERS, REFERENCE

Document = dict[str, Any]

RESULTS = REPOSITORY / "benchmarks/results"
NAMES = {
    "e5onnx-kernels-int8": "e5onnx int8, own kernels",
    "e5onnx-kernels-bf16": "e5onnx bf16, own kernels",
    "e5onnx-int8": "e5onnx int8",
    "e5onnx": "e5onnx fp32",
    "e5onnx-openvino": "e5onnx bf16, OpenVINO",
    "e5onnx-openvino-cached": "e5onnx bf16, OpenVINO, compile_cache",
    "openvino": "OpenVINO itself on our graph, fp32",
    "openvino-bf16": "OpenVINO itself on our graph, bf16",
    "ctranslate2": "CTranslate2 fp32",
    "ctranslate2-int8": "CTranslate2 int8",
    "fastembed": "fastembed",
    "llama-cpp": "llama.cpp fp32",
    "llama-cpp-q8_0": "llama.cpp Q8_0",
    "sentence-transformers-openvino": "sentence-transformers, OpenVINO (bf16)",
    "sentence-transformers-openvino-fp32": "sentence-transformers, OpenVINO, fp32",
    "sentence-transformers-onnx": "sentence-transformers, ONNX",
    "sentence-transformers-onnx-O3": "sentence-transformers, ONNX O3",
    "sentence-transformers-onnx-qint8": "sentence-transformers, ONNX qint8",
    "chroma": "Chroma's default",
    "sentence-transformers-torch": "sentence-transformers, PyTorch",
    "sentence-transformers-torch-bf16": "sentence-transformers, PyTorch bf16",
    "infinity": "infinity (torch, fp32)",
}
"""What README's table calls the programs."""

_WAYS = {
    "e5onnx": "e5onnx fp32, from a checkpoint",
    "e5onnx-int8": "e5onnx int8, from a checkpoint",
    "e5onnx-ready": "e5onnx fp32, from its model folder",
    "fastembed-ready": "fastembed, from an ONNX model",
    "sentence-transformers-torch": "sentence-transformers, PyTorch, from a checkpoint",
    "sentence-transformers-onnx": "sentence-transformers, ONNX, from a checkpoint",
}
_OURS = {
    "e5onnx-kernels-int8": "#7a1f0b",
    "e5onnx-kernels-bf16": "#a93414",
    "e5onnx-int8": "#d4562b",
    "e5onnx": "#ee8a5f",
    "e5onnx-ready": "#ee8a5f",
    "e5onnx-openvino": "#f5b79c",
    "e5onnx-openvino-cached": "#f5b79c",
}
_FP32, _REDUCED, _TEXT = "#8d959d", "#c4cad0", "#555555"
"""Other programs in float32, those that compute in bf16 or int8, and what is said in passing."""
_KINDS = (
    Patch(color=_OURS["e5onnx-int8"], label="e5onnx (darkest: own kernels)"),
    Patch(color=_FP32, label="others, fp32"),
    Patch(color=_REDUCED, label="others, bf16 or int8"),
)
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.labelsize": 8.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "font.size": 8.5,
    "grid.color": "#e8e8e8",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "e5onnx",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8.5,
}
_WIDTH = 8.5
"""Inches: on a page of 700 pixels, a text of 8.5 points is 10 pixels high."""
_GENERATIONS = {("25", "17"): "Zen 4", ("26", "2"): "Zen 5"}
"""Family and model of the processors that call themselves AMD EPYC and no more."""
_VERSIONS = (
    *("e5onnx", "onnxruntime", "openvino", "ctranslate2", "fastembed", "llama-cpp-python", "sentence-transformers"),
    *("infinity-emb", "torch"),
)


class Picture(NamedTuple):
    """What draws it, the documents that it needs, and what its caption says beside their facts."""

    draw: Callable[..., Figure]
    documents: tuple[str, ...]
    note: str


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON documents")
    results = parser.parse_args().results
    for name, picture in PICTURES.items():
        missing = [each for each in picture.documents if not (results / f"{each}.json").is_file()]
        if missing:
            sys.stderr.write(f"skipped: {name}, for there is no {' and no '.join(missing)} in {results}\n")
            continue
        draw(name, results, results, ("svg", "png"))
        sys.stderr.write(f"wrote {results / name}.svg and .png\n")


def draw(name: str, results: Path, output: Path, kinds: Iterable[str]) -> None:
    """Draw one picture of the documents in `results` into `output`, as each kind of file."""
    picture = PICTURES[name]
    documents = {each: _read(results / f"{each}.json") for each in picture.documents}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = picture.draw(*documents.values())
        lines = [textwrap.fill(line, 160, break_on_hyphens=False) for line in (picture.note, *_facts(documents))]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color=_TEXT, linespacing=1.4)
        for kind in kinds:
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(output / f"{name}.{kind}", dpi=180, metadata=metadata)


def _read(path: Path) -> Document:
    def refuse(constant: str) -> None:
        raise ValueError(f"{path} has the number {constant}, which cannot be drawn: measure again")

    document: Document = json.loads(path.read_text(), parse_constant=refuse)
    return document


def _throughput(document: Document) -> Figure:
    """Bars of passages/s for both sets, the quartiles of the rounds, and the fp32 limit as a line.

    An outline is the speed of a program with the batch size that is fastest here.
    """
    sets = document["sets"]
    order = _sorted(sets["short"]["programs"], key=lambda each: -each["passages_per_second"])
    figure, panels = _panels(rows=len(order))
    titles = {"short": "passages of 20 to 150 tokens", "mixed": "passages of 8 to 512 tokens"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        result = sets[name]
        speeds = {name: each["passages_per_second"] for name, each in result["programs"].items()}
        spans = {
            name: _quartiles([result["passages"] / seconds for seconds in each["seconds"]])
            for name, each in result["programs"].items()
        }
        mark = (max(speeds, key=speeds.__getitem__), "fastest")
        tuned = {name: each["best_batch"] for name, each in result["programs"].items() if "best_batch" in each}
        best = {name: each["passages_per_second"] for name, each in tuned.items()}
        _bars(axes, order, speeds, spans, mark=mark, failed=document["failed"], best=best)
        limit = document["fp32_ceiling_tokens_per_second"] * result["passages"] / result["tokens"]
        axes.axvline(limit, color="black", linestyle="--", linewidth=1)
        _label(axes, limit, len(order) - 1, "fp32 hardware limit")
        axes.set_xlim(0, 1.4 * max(speeds.values()))
        axes.set_title(title)
    _head(figure, "Passages a second (longer is better)", _KINDS)
    return figure


def _latency(document: Document) -> Figure:
    """For questions by one caller and by several: a bar to p50 and a line from there to p95."""
    sets = {name: result for name, result in document["sets"].items() if name.startswith("query")}
    order = _sorted(document["sets"]["query"]["programs"], key=lambda each: each["p50_ms"])
    figure, panels = _panels(rows=len(order))
    for axes, result in zip(panels, sets.values(), strict=True):
        programs, callers = result["programs"], result["callers"]
        medians = {name: each["p50_ms"] for name, each in programs.items()}
        tails = {name: (each["p50_ms"], each["p95_ms"]) for name, each in programs.items()}
        mark = (min(medians, key=medians.__getitem__), "fastest")
        _bars(axes, order, medians, tails, mark=mark, failed=document["failed"])
        axes.set_xlim(0, 1.15 * max(tail for _, tail in tails.values()))
        axes.set_title("one caller" if callers == 1 else f"{callers} callers at once")
        axes.set_xlabel("ms")
    _head(figure, "Milliseconds a question (shorter is better)", _KINDS)
    return figure


def _quality(document: Document, throughput: Document) -> Figure:
    """Points of mean cosine to fp32 against speed, with a line down to the worst 1 %."""
    speeds = throughput["sets"]["short"]["programs"]
    programs = {name: each for name, each in document["programs"].items() if name in speeds}
    figure, (axes,) = _panels(1, height=4.7)
    exact = 1e-6
    fastest = max(programs, key=lambda name: float(speeds[name]["passages_per_second"]))
    for name, result in programs.items():
        speed, cosines = speeds[name]["passages_per_second"], result["cosine_to_e5onnx_stsb"]
        mean, tail = (max(exact, 1 - cosines[key]) for key in ("mean", "p1"))
        ours = name in _OURS
        marker, size = ("*", 15) if name == fastest else ("o", 9 if ours else 11)
        axes.plot([speed, speed], [mean, tail], color=_color(name), linewidth=1.5, zorder=2 + ours)
        axes.plot(speed, mean, marker, color=_color(name), markersize=size, zorder=2 + ours)
        label = f"{NAMES[name]}{', fastest' if name == fastest else ''}\nSTS-B {result['stsb_test_spearman']:.4f}"
        x, y, side = _LABELS.get(name, (9, 0, "left"))
        axes.annotate(
            label, (speed, mean), (x, y), textcoords="offset points", ha=side, va="center", fontsize=8,
            fontweight="bold" if name == fastest else "normal",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(5 * max(1 - each["cosine_to_e5onnx_stsb"]["p1"] for each in programs.values()), exact / 2)
    axes.set_yticks([exact, 1e-5, 1e-4, 1e-3, 1e-2], labels=["1 (fp32)", "0.99999", "0.9999", "0.999", "0.99"])
    axes.minorticks_off()
    axes.set_xlim(0, 1.1 * speeds[fastest]["passages_per_second"])
    axes.grid(visible=True, axis="both")
    axes.set_xlabel("passages/s, 20 to 150 tokens")
    axes.set_ylabel("mean cosine to fp32 (logarithmic)")
    _head(figure, "Fast, and still the same vectors (up and to the right is better)", _KINDS)
    return figure


_LABELS: dict[str, tuple[float, float, str]] = {
    "e5onnx-kernels-int8": (-12, 0, "right"),
    "ctranslate2-int8": (-9, 0, "right"),
    "e5onnx-openvino": (9, -9, "left"),
    "llama-cpp-q8_0": (9, -10, "left"),
    "fastembed": (0, -18, "center"),
    "openvino-bf16": (9, -33, "left"),
    "sentence-transformers-onnx-qint8": (0, -36, "center"),
    "sentence-transformers-openvino": (-12, 18, "left"),
    "sentence-transformers-torch-bf16": (0, -21, "center"),
}
"""Where a point's label stands, in points, if not to its right: new figures may need new places."""


def _scores(document: Document) -> Figure:
    """Bars of the differences to fp32 in both tasks."""
    programs = document["programs"]
    exact = programs[REFERENCE]
    order = [name for name in NAMES if name in programs and PEERS[name].precision != "fp32"]
    order = [name for name in order if name != "e5onnx-openvino-cached"]  # the same vectors as without a cache
    figure, panels = _panels(rows=len(order))
    titles = {"stsb_test_spearman": "STS-B, Spearman", "xquad_en_ndcg@10": "XQuAD-en, nDCG@10"}
    limit = 1.7 * max(abs(programs[name][key] - exact[key]) for name in order for key in titles)
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        differences = [programs[name][key] - exact[key] for name in order]
        axes.barh(range(len(order)), differences, color=[_color(name) for name in order], height=0.75)
        for row, difference in enumerate(differences):
            _label(axes, difference, row, f"{difference:+.4f}", left=difference < 0)
        _name_rows(axes, [NAMES[name] for name in order])
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xlim(-limit, limit)
        axes.set_title(f"{title} (fp32: {exact[key]:.4f})")
    _head(figure, "Change of the scores by bf16 and int8, against fp32 (to the right is better)", _KINDS[::2])
    return figure


def _memory(document: Document) -> Figure:
    """Bars of the peak over both sets of passages."""
    peaks = {name: each["peak_megabytes"] for name, each in document["sets"]["mixed"]["programs"].items()}
    order = sorted(peaks, key=lambda name: float(peaks[name]))
    figure, (axes,) = _panels(1, rows=len(order))
    _bars(axes, order, peaks, {}, mark=(order[0], "least"), failed={})
    axes.set_xlabel("MB of resident memory")
    axes.set_xlim(0, 1.1 * max(peaks.values()))
    _head(figure, "Peak memory of a process (shorter is better)", _KINDS)
    return figure


def _memory_growth(document: Document) -> Figure:
    """Lines of peak memory against the number of texts and against their length."""
    sets = document["sets"]
    figure, (numbers, lengths) = _panels(height=3.6)
    styles = {"fastembed": ("s", "-"), "sentence-transformers-torch": ("^", "-")}
    for axes, name in (
        (numbers, "number_of_passages"),
        (numbers, "number_of_questions"),
        (lengths, "tokens_of_a_passage"),
    ):
        for program, figures in sets[name]["programs"].items():
            questions = name == "number_of_questions"
            marker, line = ("o", ":") if questions else styles.get(program, ("o", "-"))
            label = NAMES[program] + (", questions" if questions else "")
            peaks = [each["peak_megabytes"] for each in figures.values()]
            color = _color(program)
            axes.plot([int(key) for key in figures], peaks, marker + line, color=color, label=label, markersize=5)
    highest = max(numbers.get_ylim()[1], lengths.get_ylim()[1])
    texts = {each["texts"] for each in sets["tokens_of_a_passage"]["points"].values()}
    for axes, label, names in (
        (numbers, "texts in one call", ("number_of_passages", "number_of_questions")),
        (lengths, f"tokens of each of {'/'.join(map(str, texts))} passages", ("tokens_of_a_passage",)),
    ):
        axes.set_xscale("log")
        ticks = sorted({int(key) for name in names for key in sets[name]["points"]})
        axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(f"{label} (logarithmic)")
        axes.grid(visible=True, axis="both")
        axes.set_ylim(0, highest)
    numbers.set_ylabel("MB")
    _head(figure, "Peak memory of one call (lower is better)", numbers.get_legend_handles_labels()[0])
    return figure


def _first_vector(document: Document) -> Figure:
    """Bars of installation and the rest."""
    stages = {
        "install": "pip install",
        "first_vector": "the rest: export (int8: calibration, too) where needed, load, encode",
    }
    bars = {
        _WAYS[name]: Bar(
            name,
            [way["median_seconds"][stage] for stage in stages],
            [run["total"] for run in way["runs"]],
            f"{way['packages_megabytes']:,.0f} MB of packages",
        )
        for name, way in document["ways"].items()
    }
    return _stacks("From an empty environment to the first vector (shorter is better)", bars, list(stages.values()))


def _cold_start(document: Document) -> Figure:
    """Bars of the stages of a start."""
    stages = document["stages"]
    bars = {
        NAMES[name]: Bar(
            name,
            [program["median"][stage] for stage in stages],
            [start["total"] for start in program["starts"]],
            f"{program['median']['peak_megabytes']:.0f} MB at most",
        )
        for name, program in document["programs"].items()
    }
    title = "From process start to the first vector (shorter is better)"
    return _stacks(title, bars, [stage.replace("_", " ") for stage in stages])


def _server(document: Document) -> Figure:
    """Lines of latency, p50 and p95 of what was answered, against requests that arrive."""
    kinds = {
        "question": "one question a request",
        "passages": f"{document['passages_of_a_request']} passages a request",
    }
    figure, panels = _panels(height=4.2)
    for axes, (kind, title) in zip(panels, kinds.items(), strict=True):
        for server, results in document["servers"].items():
            levels = results[kind]["levels"]
            rates = [level["requests_per_second"] for level in levels]
            for percentile, style in (("p50", "o-"), ("p95", "s:")):
                answered = [level["milliseconds"]["200"][percentile] for level in levels]
                axes.plot(rates, answered, style, color=_color(server), markersize=4)
            axes.axvline(results[kind]["capacity_requests_per_second"], color=_color(server), ls="--", lw=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = [digit * 10.0**power for power in range(-1, 5) for digit in (1, 2, 5)]
        for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            inside = [tick for tick in ticks if least <= tick <= most]
            axis.set_ticks(inside, labels=[f"{tick:,g}" for tick in inside])
        axes.minorticks_off()
        axes.set_title(title)
        axes.set_xlabel("requests/s that arrive (logarithmic)")
        axes.grid(visible=True, axis="both")
    panels[0].set_ylabel("ms to the reply (logarithmic)")
    fastest = max(
        document["servers"],
        key=lambda each: float(document["servers"][each]["question"]["capacity_requests_per_second"]),
    )
    handles = [
        Line2D([], [], color=_color(each), lw=3, label=NAMES[each] + (", fastest" if each == fastest else ""))
        for each in document["servers"]
    ]
    lines: tuple[tuple[str, str, Any], ...] = (("p50", "o", "-"), ("p95", "s", ":"), ("capacity", "", "--"))
    for label, marker, style in lines:
        handles.append(Line2D([], [], color="black", marker=marker, linestyle=style, markersize=4, label=label))
    _head(figure, "Servers under load (lower and to the right is better)", handles)
    return figure


_STARTS = "Everything installed, files in the page cache. Medians of the rounds; black lines: quartiles of the whole."
PICTURES = {
    "throughput": Picture(
        _throughput,
        ("throughput",),
        "Medians of the rounds; black lines: quartiles. Outlines, brackets: with the batch size that is fastest here.",
    ),
    "latency": Picture(_latency, ("latency",), "Bars and figures: p50; black lines: up to p95."),
    "quality": Picture(
        _quality,
        ("quality", "throughput"),
        "Programs whose speed and quality were both measured: quality on all-MiniLM-L6-v2 (sentences of STS-B; lines "
        "go down to the worst 1 %; Spearman on its test set), speed on E5-small's shape.",
    ),
    "scores": Picture(_scores, ("quality",), "all-MiniLM-L6-v2. The axes show differences, not the scores themselves."),
    "memory": Picture(_memory, ("throughput",), "Each process embedded both sets of passages of the throughput run."),
    "memory_growth": Picture(_memory_growth, ("memory",), "A process for each point."),
    "first_vector": Picture(
        _first_vector,
        ("first_vector",),
        "Checkpoint or model on disk, pip's cache warm. Medians of the rounds; black lines: quartiles of the whole.",
    ),
    "cold_start": Picture(_cold_start, ("cold_start",), _STARTS),
    "server": Picture(_server, ("server",), "e5onnx serve and infinity; load and server share the processors."),
}


def _panels(columns: int = 2, *, rows: int = 0, height: float = 0) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side: of that height, or high enough for so many rows of bars."""
    figure = Figure(figsize=(_WIDTH, height or 1.6 + 0.23 * rows), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, sharey=bool(rows))[0])


def _head(figure: Figure, title: str, handles: Sequence[Artist]) -> None:
    """Put the title above the legend, which a figure's own title would cover."""
    font = FontProperties(size=11, weight="bold")
    head = figure.legend(handles=handles, loc="outside upper left", ncols=6, columnspacing=1.4)
    head.set_title(title, prop=font)
    head.set_alignment("left")


def _sorted(programs: dict[str, Any], key: Callable[[dict[str, Any]], float]) -> list[str]:
    return sorted(programs, key=lambda name: key(programs[name]))


def _bars(
    axes: Axes,
    rows: Sequence[str],
    values: dict[str, float],
    spans: dict[str, tuple[float, float]],
    *,
    mark: tuple[str, str],
    failed: dict[str, str],
    best: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Draw horizontal bars, with a black line over each one's span. Say what the best is, and why one is missing.

    An outline goes on to what a program reaches at `best`.
    """
    for row, name in enumerate(rows):
        if name not in values:
            _label(axes, 0, row, failed[name].partition(" (")[0], color=_TEXT)
            continue
        value = values[name]
        low, high = spans.get(name, (value, value))
        axes.barh(row, value, height=0.75, color=_color(name))
        axes.plot([low, high], [row, row], color="black", linewidth=1)
        label = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        if best.get(name, 0) > value:
            high = best[name]
            axes.barh(row, high, height=0.75, facecolor="none", edgecolor=_color(name), linewidth=0.8)
            label += f" ({high:,.0f})" if high >= 100 else f" ({high:.1f})"
        _label(axes, max(value, high), row, f"{label}, {mark[1]}" if name == mark[0] else label, bold=name == mark[0])
    _name_rows(axes, [NAMES[row] for row in rows])


def _label(
    axes: Axes, x: float, row: int, text: str, *, left: bool = False, bold: bool = False, color: str = "black"
) -> None:
    """Write beside a place, over any line. A distance made of spaces would be lost: browsers drop them in an SVG."""
    axes.annotate(
        text,
        (x, row),
        (-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=8,
        fontweight="bold" if bold else "normal",
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


class Bar(NamedTuple):
    """Whose it is, the seconds of its parts, the seconds of the whole in every round, and what is said beside them."""

    program: str
    parts: list[float]
    totals: list[float]
    note: str


def _stacks(title: str, bars: dict[str, Bar], parts: list[str]) -> Figure:
    """Draw stacked bars, shortest first, whose parts grow darker, with the quartiles of the whole."""
    order = sorted(bars, key=lambda name: statistics.median(bars[name].totals))
    figure, (axes,) = _panels(1, rows=len(order))
    for row, bar in enumerate(bars[name] for name in order):
        starts = [0, *accumulate(bar.parts)]
        for part, (start, width) in enumerate(zip(starts, bar.parts, strict=False)):
            axes.barh(row, width, left=start, height=0.75, color=_shade(_color(bar.program), part, len(parts)))
        low, high = _quartiles(bar.totals)
        axes.plot([low, high], [row, row], color="black", linewidth=1)
        total = statistics.median(bar.totals)
        label = f"{total:.{1 if total >= 9 else 2}f} s, {'' if row else 'fastest, '}{bar.note}"
        _label(axes, max(starts[-1], high), row, label, bold=not row)
    _name_rows(axes, order)
    axes.set_xlim(0, 1.5 * max(statistics.median(bar.totals) for bar in bars.values()))
    axes.set_xlabel("seconds")
    # Grey stands for the colour of a row.
    handles = [Patch(color=_shade("black", part, len(parts)), label=name) for part, name in enumerate(parts)]
    _head(figure, title, handles)
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), labels=names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")


def _shade(color: str, part: int, parts: int) -> tuple[float, float, float]:
    """Mix a colour with white: less for each part of a stack, and not at all for the last."""
    strength = 0.3 + 0.7 * part / (parts - 1)
    red, green, blue = (1 - strength * (1 - each) for each in to_rgb(color))
    return red, green, blue


def _color(program: str) -> str:
    if program in _OURS:
        return _OURS[program]
    return _REDUCED if program in PEERS and PEERS[program].precision != "fp32" else _FP32


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _facts(documents: dict[str, Document]) -> list[str]:
    """Say where and when each document was measured, and with which versions."""
    machines: dict[str, list[str]] = {}
    versions: dict[str, set[str]] = {}
    for name, document in documents.items():
        machine = document["machine"]
        host = f"{_cpu(machine)}, {machine['processors']} processors, {document['threads']} threads"
        rounds = f", {document['rounds']} rounds" if document.get("rounds", 1) > 1 else ""
        machines.setdefault(host, []).append(f"{name}.json of {document['date'][:10]}{rounds}")
        for program, described in _programs(document).items():
            for package, version in described.get("versions", described.get("packages", {})).items():
                if program != "infinity" or package == "infinity-emb":  # it pins an old sentence-transformers
                    versions.setdefault(package, set()).add(version)
    lines = [f"{host}: {'; '.join(files)}" for host, files in machines.items()]
    named = [f"{package} {'/'.join(sorted(versions[package]))}" for package in _VERSIONS if package in versions]
    return [*lines, ", ".join(named)] if named else lines


def _programs(document: Document) -> dict[str, Any]:
    for key in ("loaded", "programs", "ways"):
        if key in document:
            return dict(document[key])
    return {}


def _cpu(machine: dict[str, Any]) -> str:
    family = tuple(machine["family_model_stepping"][:2])
    generation = _GENERATIONS.get(family, f"family {family[0]}, model {family[1]}")
    extensions = {"AVX-512 VNNI": "avx512_vnni", "BF16": "avx512_bf16", "AMX": "amx_int8"}
    has = [name for name, flag in extensions.items() if machine["flags"][flag]]
    return f"{machine['cpu']} ({generation}; {', '.join(has) or 'AVX2'})"


if __name__ == "__main__":
    main()
