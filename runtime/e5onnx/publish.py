"""Publishing a model folder on the hub: what is uploaded, and the card that goes with it. `hub.py` does the upload."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import InputValueError
from .manifest import MANIFEST, Manifest
from .model_folder import ModelFolder, is_hub_id

CARD = "README.md"
_TAGS = ["e5onnx", "onnx", "onnxruntime", "text-embeddings"]


def push_model(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload a model folder of e5onnx",
) -> str:
    """Upload a model folder and a model card to a repository on the hub, in one commit. Return the commit's address.

    The repository is created if it does not exist. In one that does, other files stay; one that holds no model folder
    is refused.

    Args:
        folder: a model folder, whose files are first compared with its manifest. Exactly those are uploaded.
        repo_id: "owner/name". HF_TOKEN, or what `hf auth login` stored, must allow writing there.
        private: create a private repository; one that exists must be private.
        revision: the branch, created if it does not exist; None for the main branch.
        message: the message of the commit.

    Raises:
        InputValueError: `folder` is not on disk, `repo_id` cannot be a hub id, or the repository holds something else.
        ModelNotFoundError: there is no such folder, or a file of it is missing.
        ModelFolderError: a file differs from the manifest.
        ModelUploadError: there is no token, or the hub is unreachable or refuses the upload.
        MissingDependencyError: huggingface_hub is not installed.
    """
    if is_hub_id(os.fspath(folder)):
        raise InputValueError(f"there is no folder {folder} here: push uploads a model folder, which has to be on disk")
    opened = ModelFolder.open(folder)
    files: dict[str, Path | bytes] = {record.file: opened.path / record.file for record in opened.verify()}
    if CARD in files:
        raise InputValueError(f"{opened.path / MANIFEST} lists {CARD}, which would be replaced by the model card")
    from .hub import read_licence, upload_files

    manifest = opened.manifest
    on_hub = "/" in manifest.checkpoint  # the name of a checkpoint on disk is that of its folder
    licence = read_licence(manifest.checkpoint, manifest.revision) if on_hub else {}
    files[MANIFEST] = opened.path / MANIFEST
    files[CARD] = "".join(f"{line}\n" for line in _card(manifest, repo_id, revision, licence)).encode()
    return upload_files(repo_id, files, private=private, revision=revision, message=message, expected=MANIFEST)


def _card(manifest: Manifest, repo_id: str, revision: str | None, licence: dict[str, str]) -> Iterator[str]:
    """Yield the lines of the model card, whose facts are those of the manifest and the checkpoint's licence."""
    on_hub = "/" in manifest.checkpoint
    metadata = {
        "library_name": "e5onnx",
        "pipeline_tag": "sentence-similarity",
        "tags": _TAGS,
        **({"base_model": manifest.checkpoint} if on_hub else {}),
        **licence,
    }
    yield "---"
    yield from (f"{key}: {json.dumps(value)}" for key, value in metadata.items())  # JSON is YAML
    yield "---"
    name = f"[{manifest.checkpoint}](https://huggingface.co/{manifest.checkpoint})" if on_hub else manifest.checkpoint
    yield f"# {repo_id.rpartition('/')[2]}"
    yield ""
    yield f"{name}{f' at commit {manifest.revision}' if manifest.revision else ''}, exported to ONNX by e5onnx. The"
    yield "graphs map token ids to finished embeddings, with pooling and normalisation inside. They run on a CPU with"
    yield "onnxruntime, tokenizers and numpy."
    yield ""
    yield "```python"
    yield "from e5onnx import Encoder  # pip install e5onnx huggingface_hub"
    yield ""
    yield f"encoder = Encoder({', '.join(map(str, _arguments(manifest, repo_id, revision)))})"
    yield 'queries = encoder.encode_query(["how much protein should a female eat"])'
    yield 'documents = encoder.encode_document(["Health agencies advise about 46 grams of protein a day."])'
    yield "print(encoder.similarity(queries, documents))"
    yield "```"
    yield ""
    normalised = "normalised" if manifest.normalize else "not normalised by default"
    yield f"- Vectors: dimension {manifest.dimension}, {manifest.pooling} pooling, {normalised}"
    yield f"- Encoder: {manifest.layers} layers, at most {manifest.max_tokens} tokens"
    prompts = ", ".join(
        f"{name} `{json.dumps(prompt, ensure_ascii=False)}`" for name, prompt in manifest.prompts.items()
    )
    yield f"- Prompts: {prompts or 'none'}"
    tools = ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())
    yield f"- Made with: {tools}"
    yield ""
    yield "| Graph | Precision | MB | Fingerprint | Measured by the export |"
    yield "|---|---|---|---|---|"
    for graph in manifest.graphs:
        fingerprint = manifest.fingerprint(graph.precision, "openvino" if graph.portable else "cpu")
        size = sum(record.size for record in graph.records()) / 1e6
        parity = ", ".join(f"{key} {value:.7g}" for key, value in graph.parity.items())
        precision = graph.precision + (", portable" if graph.portable else "")
        yield f"| `{graph.file}` | {precision} | {size:.1f} | `{fingerprint}` | {parity} |"
    yield ""
    yield "fp32 was compared with the checkpoint in other programs, int8 and portable graphs with fp32."


def _arguments(manifest: Manifest, repo_id: str, revision: str | None) -> Iterator[str]:
    """Yield the arguments of the Encoder in the card's example."""
    yield json.dumps(repo_id)
    if revision is not None:
        yield f"revision={json.dumps(revision)}"
    precisions = [graph.precision for graph in manifest.graphs if not graph.portable]
    if precisions and "fp32" not in precisions:
        yield f"precision={json.dumps(precisions[0])}"
