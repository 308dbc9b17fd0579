"""Pictures of the recorded results: throughput, latency, cold start, memory, quality, as PNG beside the JSON documents.

Draws what is there and skips what is not; measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

try:
    # Only this script needs it; `make bench` installs it. mypy runs with and without.
    from matplotlib.axes import Axes  # type: ignore[import-not-found,unused-ignore]
    from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]
    from matplotlib.lines import Line2D  # type: ignore[import-not-found,unused-ignore]
    from matplotlib.patches import Patch  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    sys.exit("the pictures need matplotlib: python -m pip install 'matplotlib>=3.8'")

from .environments import REPOSITORY
from .peers import PEERS, REFERENCE

_OURS, _FP32, _REDUCED = "#d1495b", "#6c8ead", "#c7ced6"
"""e5onnx, other programs in float32, and programs that compute in bf16 or int8."""
_STAGES = {"interpreter": "#c7ced6", "import": "#6c8ead", "load": "#edae49", "first_encode": "#d1495b"}
_MARKERS = "o*sD^vP<>Xph"
_LINES = (_OURS, "#30638e", "#edae49", "#00798c")


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    folder = REPOSITORY / "benchmarks/results"
    parser.add_argument("--results", type=Path, default=folder, help="folder with the JSON documents")
    results = parser.parse_args().results
    drawings: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
        "throughput": (_throughput, ("throughput",)),
        "latency": (_latency, ("latency",)),
        "cold_start": (_cold_start, ("cold_start",)),
        "memory": (_memory, ("memory",)),
        "server": (_server, ("server",)),
        "quality": (_quality, ("quality", "throughput")),
    }
    for name, (draw, needed) in drawings.items():
        source = results / f"{name}.json"
        missing = [each for each in needed if not (results / f"{each}.json").is_file()]
        if missing:
            sys.stderr.write(f"skipped: {name}, for there is no {' and no '.join(missing)} in {results}\n")
            continue
        documents = [json.loads((results / f"{each}.json").read_text()) for each in needed]
        document = documents[0]
        figure = draw(*documents)
        figure.text(0, -0.02, _facts(document), fontsize=8, color="#555555")
        figure.savefig(source.with_suffix(".png"), dpi=110, bbox_inches="tight")
        sys.stderr.write(f"wrote {source.with_suffix('.png')}\n")


def _throughput(document: dict[str, Any]) -> Figure:
    """Bars of passages/s for both sets, and the float32 ceiling as a line."""
    titles = {"short": "20 to 150 tokens", "mixed": "8 to 512 tokens"}
    figure, panels = _panels(len(document["sets"]), height=4.8)
    for axes, (name, result) in zip(panels, document["sets"].items(), strict=True):
        speeds = {program: each["passages_per_second"] for program, each in result["programs"].items()}
        _bars(axes, dict(sorted(speeds.items(), key=lambda item: float(item[1]))))
        for row, speed in enumerate(sorted(speeds.values())):
            axes.text(0, row, f" {speed:.1f}", va="center", fontsize=8)
        ceiling = document["fp32_ceiling_tokens_per_second"] * result["passages"] / result["tokens"]
        axes.axvline(ceiling, color="black", linestyle="--", linewidth=1)
        axes.set_xlim(0, 1.05 * max(ceiling, *speeds.values()))
        axes.set_title(f"Passages of {titles[name]}", fontsize=11)
        axes.set_xlabel("passages/s; dashed: what the fp32 products alone would allow")
    _precision_legend(figure)
    return figure


def _latency(document: dict[str, Any]) -> Figure:
    """For questions by one caller and by several: a bar to p50, a tick at p95 and a dot at p99."""
    sets = {name: result for name, result in document["sets"].items() if name.startswith("query")}
    figure, panels = _panels(len(sets), height=4.8)
    for axes, result in zip(panels, sets.values(), strict=True):
        programs = result["programs"]
        order = sorted(programs, key=lambda name: -float(programs[name]["p50_ms"]))
        _bars(axes, {name: programs[name]["p50_ms"] for name in order})
        # A single slow tail would squeeze all bars: what is beyond the edge is only written.
        edge = 2 * max(each["p50_ms"] for each in programs.values())
        for row, name in enumerate(order):
            p50, p95, p99 = (programs[name][f"p{percent}_ms"] for percent in (50, 95, 99))
            axes.plot([p50, p99], [row, row], color="black", linewidth=1, zorder=3)
            axes.plot(p95, row, "|", color="black", markersize=9, zorder=3)
            axes.plot(p99, row, ".", color="black", markersize=6, zorder=3)
            axes.text(min(p99, edge), row, f"  {p50:.1f} / {p95:.1f} / {p99:.1f}", va="center", fontsize=8)
        axes.set_xlim(0, min(edge, 1.05 * max(each["p99_ms"] for each in programs.values())))
        callers = result["callers"]
        axes.set_title("Short questions, " + ("one caller" if callers == 1 else f"{callers} callers"), fontsize=11)
        axes.set_xlabel("ms a call: p50 (bar) / p95 (tick) / p99 (dot)")
    _precision_legend(figure)
    return figure


def _cold_start(document: dict[str, Any]) -> Figure:
    """Stacked bars of the stages' median seconds."""
    programs = document["programs"]
    order = sorted(programs, key=lambda name: -float(programs[name]["median"]["total"]))
    figure, (axes,) = _panels(1, height=2.6)
    left = [0.0] * len(order)
    for stage in document["stages"]:
        widths = [programs[name]["median"][stage] for name in order]
        axes.barh(range(len(order)), widths, left=left, color=_STAGES[stage], label=stage.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, name in enumerate(order):
        median, disk = programs[name]["median"], programs[name]["disk"]
        label = f"{median['total']:.2f} s, {median['peak_megabytes']:.0f} MB, {disk['packages_megabytes']:.0f} MB"
        axes.text(left[row], row, f" {label}", va="center", fontsize=8)
    _rows(axes, order)
    axes.set_xlim(0, 1.45 * max(left))
    axes.set_title("From process start to the first vector", fontsize=11)
    axes.set_xlabel("seconds; at the bars: total, peak memory, installed packages")
    figure.legend(loc="outside upper center", ncols=len(_STAGES), fontsize=8, frameon=False)
    return figure


def _memory(document: dict[str, Any]) -> Figure:
    """Lines of peak memory against number of texts and against their length."""
    sets = document["sets"]
    figure, (numbers, lengths) = _panels(2, height=3.4)
    colors: dict[str, str] = {}
    for axes, name, style in (
        (numbers, "number_of_passages", "o-"),
        (numbers, "number_of_questions", "s--"),
        (lengths, "tokens_of_a_passage", "o-"),
    ):
        for program, figures in sets[name]["programs"].items():
            color = colors.setdefault(program, _LINES[len(colors) % len(_LINES)])
            label = f"{program}, questions" if name == "number_of_questions" else program
            peaks = [each["peak_megabytes"] for each in figures.values()]
            axes.plot([int(key) for key in figures], peaks, style, color=color, label=label, markersize=4)
    number_keys = [*sets["number_of_passages"]["points"], *sets["number_of_questions"]["points"]]
    for axes, xlabel, keys in (
        (numbers, "texts in one call", number_keys),
        (lengths, "tokens of each text", list(sets["tokens_of_a_passage"]["points"])),
    ):
        axes.set_xscale("log")
        ticks = sorted({int(key) for key in keys})
        axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel)
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        _plain(axes)
    numbers.set_ylabel("peak resident memory, MB")
    numbers.set_title("Against the number of texts", fontsize=11)
    texts = {each["texts"] for each in sets["tokens_of_a_passage"]["points"].values()}
    lengths.set_title(f"Against the length of {'/'.join(map(str, texts))} texts", fontsize=11)
    figure.legend(
        *numbers.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def _server(document: dict[str, Any]) -> Figure:
    """Lines of latency, p50 and p95 of what was answered, against requests that arrive."""
    kinds = {"question": "One question a request", "passages": "32 passages a request"}
    figure, panels = _panels(len(kinds), height=4.2)
    for axes, (kind, title) in zip(panels, kinds.items(), strict=True):
        for color, (server, results) in zip(_LINES, document["servers"].items(), strict=False):
            levels = results[kind]["levels"]
            rates = [level["requests_per_second"] for level in levels]
            for percentile, style in (("p50", "o-"), ("p95", "s:")):
                answered = [level["milliseconds"]["200"][percentile] for level in levels]
                axes.plot(rates, answered, style, color=color, label=f"{server}, {percentile}", markersize=4)
            axes.axvline(results[kind]["capacity_requests_per_second"], color=color, linestyle="--", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = [digit * 10.0**power for power in range(-1, 4) for digit in (1, 2, 5)]
        for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            inside = [tick for tick in ticks if least <= tick <= most]
            axis.set_ticks(inside, labels=[f"{tick:g}" for tick in inside])
        axes.minorticks_off()
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("requests/s that arrive; dashed: capacity")
        axes.set_ylabel("ms to the reply")
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        _plain(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _quality(document: dict[str, Any], throughput: dict[str, Any]) -> Figure:
    """Points of accuracy against speed, of programs that have both; the cosines' bar goes from the mean to the 1 %."""
    speeds = throughput["sets"]["short"]["programs"]
    programs = {name: each for name, each in document["programs"].items() if name in speeds}
    figure, (similarity, retrieval, cosine) = _panels(3, height=4.2)
    styles: dict[str, dict[str, Any]] = {
        name: {"marker": marker, "color": _color(name), "markeredgecolor": "black", "markersize": 9, "linestyle": ""}
        for name, marker in zip(programs, _MARKERS, strict=False)
    }
    for axes, key, title in (
        (similarity, "stsb_test_spearman", "STS-B test, Spearman"),
        (retrieval, "xquad_en_ndcg@10", "XQuAD-en retrieval, nDCG@10"),
    ):
        exact = programs[REFERENCE][key]
        for name, result in programs.items():
            axes.plot(speeds[name]["passages_per_second"], result[key], **styles[name])
        axes.axhline(exact, color="black", linestyle="--", linewidth=1, zorder=0)
        axes.set_ylim(exact - 0.006, exact + 0.006)
        axes.set_title(title, fontsize=11)
    for name, result in programs.items():
        if PEERS[name].precision == "fp32":
            continue
        distribution = result["cosine_to_e5onnx_stsb"]
        speed = speeds[name]["passages_per_second"]
        mean, tail = 1 - distribution["mean"], 1 - distribution["p1"]
        cosine.plot([speed, speed], [mean, tail], color=_color(name), linewidth=2, zorder=2)
        cosine.plot(speed, mean, **styles[name])
    cosine.set_yscale("log")
    cosine.invert_yaxis()
    cosine.set_title("1 - cosine to fp32, mean to worst 1 %", fontsize=11)
    for axes in (retrieval, similarity, cosine):
        axes.set_xlim(0, 1.2 * max(each["passages_per_second"] for each in speeds.values()))
        axes.set_xlabel("passages/s, 20 to 150 tokens")
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        _plain(axes)
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def _panels(columns: int, *, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _bars(axes: Axes, values: dict[str, float]) -> None:
    """Draw horizontal bars, the first at the bottom."""
    axes.barh(range(len(values)), list(values.values()), color=[_color(name) for name in values])
    _rows(axes, values)


def _rows(axes: Axes, names: Iterable[str]) -> None:
    labels = list(names)
    axes.set_yticks(range(len(labels)), labels=labels, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == REFERENCE else "normal")
    axes.margins(y=0.02)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)


def _precision_legend(figure: Figure) -> None:
    handles = [
        Patch(color=_OURS, label="e5onnx"),
        Patch(color=_FP32, label="others, fp32"),
        Patch(color=_REDUCED, label="others, bf16 or int8"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)


def _color(program: str) -> str:
    if program.startswith(REFERENCE):
        return _OURS
    return _FP32 if program in PEERS and PEERS[program].precision == "fp32" else _REDUCED


def _facts(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return (
        f"{machine['cpu']}, {machine['processors']} processors, {document['threads']} threads, {document['date'][:10]}"
    )


if __name__ == "__main__":
    main()
