"""What a model folder says of itself: `e5onnx.json`, its records, checksum and fingerprint. Opens no file.

The dataclasses are the format: a key of the JSON is a field, its type the field's, and a key without a field is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .cache import cached_folder
from .checks import whole_number
from .errors import InputValueError, ModelFolderError

MANIFEST = "e5onnx.json"
CHECKPOINT_FILES = ("config.json", "modules.json")
"""A folder or repository with one of these, and without a manifest, is a checkpoint."""
FORMAT_VERSION = "1.1"
"""Major and minor version of the manifest. A reader refuses a newer major version, and keeps keys it does not know."""

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How hidden states become one vector, by sentence-transformers' names."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

SIMILARITIES = ("cosine", "dot")
"""The ways to compare vectors that a manifest may name, with sentence-transformers' names."""


def graph_name(precision: str | None, provider: str) -> str | None:
    """Return which graph a provider runs: "portable", or one named by its precision; None for no graph.

    OpenVINO runs the portable graph, whatever the precision. Our kernels make bf16 weights of those in fp32.
    """
    if provider == "openvino":
        return "portable"
    return "fp32" if provider == "kernels" and precision == "bf16" else precision


def repair(path: Path) -> str:
    """Say how to replace a damaged file of a model folder."""
    cached = cached_folder(path)
    if cached is not None:
        return f"Delete {cached}, and it is built again when it is next used."
    return "Export the model again, or copy the folder again."


@dataclass(frozen=True)
class FileRecord:
    """A file of the folder: path relative to the folder, SHA-256 in hexadecimal, size in bytes."""

    file: str
    sha256: str
    size: int
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class GraphRecord(FileRecord):
    """An ONNX graph of the folder.

    Attributes:
        precision: "fp32" or "int8".
        portable: whether the graph uses standard ONNX operators only, for engines other than onnxruntime.
        parity: how far its vectors are from the checkpoint's in PyTorch, as measured by the export (for int8 and
            portable graphs: from those of fp32).
        weights: the file beside the graph that holds its tensors; None if the graph holds them itself.
        calibration: how int8 was fitted (method, number of texts, SHA-256 of their file); None for float32.
    """

    precision: str
    portable: bool
    parity: Mapping[str, float]
    weights: FileRecord | None
    calibration: Mapping[str, Any] | None

    def records(self) -> Iterator[FileRecord]:
        """Iterate over the files of the graph."""
        yield self
        if self.weights is not None:
            yield self.weights


@dataclass(frozen=True)
class Manifest:
    """The content of `e5onnx.json`.

    Attributes:
        max_tokens: most tokens of a text, special tokens included.
        normalize: whether the checkpoint's own vectors have unit length.
        prompts: the text put before each input, by name ("query", "document").
        similarity_fn_name: how the checkpoint's authors compare vectors, "cosine" or "dot".
        extra: the keys that this version does not know; records have them too.
    """

    checkpoint: str
    revision: str | None
    dimension: int
    layers: int
    max_tokens: int
    pooling: str
    normalize: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    graphs: tuple[GraphRecord, ...]
    files: tuple[FileRecord, ...]
    tools: Mapping[str, str]
    similarity_fn_name: str = "cosine"  # version 1.0 did not have it
    format_version: str = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of `e5onnx.json`, with a checksum over the rest of it."""
        content = {"format_version": self.format_version, **_to_content(self)}
        content["checksum"] = _digest(content)
        return json.dumps(content, indent=2, ensure_ascii=False, default=_to_content) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Read the text of the manifest at `path`; raise :class:`ModelFolderError` if it is not a manifest."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFolderError(f"{path} is not valid JSON ({error}). {repair(path)}") from error
        if not isinstance(content, dict) or "format_version" not in content:
            raise ModelFolderError(f"{path} is not the manifest of an e5onnx model folder. {repair(path)}")
        _check_version(content["format_version"], path)
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise ModelFolderError(f"{path} holds text that is not valid Unicode ({error}). {repair(path)}") from error
        if content.pop("checksum", None) != _digest(content):
            raise ModelFolderError(f"{path} was changed after the export: its checksum does not match. {repair(path)}")
        try:
            manifest = _from_content(cls, content)
            _check_values(manifest)
        except ValueError as error:
            raise ModelFolderError(f"{path} is not a valid manifest: {error}. {repair(path)}") from error
        return manifest

    def records(self) -> Iterator[FileRecord]:
        """Iterate over all files of the folder except the manifest."""
        for graph in self.graphs:
            yield from graph.records()
        yield from self.files

    def graph(self, precision: str | None, provider: str = "cpu") -> GraphRecord:
        """Return the graph that a provider runs; see :func:`graph_name`.

        Raises:
            InputValueError: there is no such graph; the message names those there are, or says how to add one.
        """
        name = graph_name(precision, provider)
        for graph in self.graphs:
            if name == ("portable" if graph.portable else graph.precision):
                return graph
        if name == "portable":
            raise InputValueError(
                f"provider {provider} needs the portable graph, which this model does not have; add it with "
                "`e5onnx portable MODEL`, or export the model with --graph portable"
            )
        use = "" if name == precision else f", which {precision} is computed from"
        there = ", ".join(repr(graph.precision) for graph in self.graphs if not graph.portable)
        raise InputValueError(f"this model has no graph with precision {name!r}{use}; it has {there}")

    def fingerprint(self, precision: str, provider: str = "cpu", truncate_dim: int | None = None) -> str:
        """Return 16 hexadecimal digits that change with whatever changes vectors.

        They cover the graph and what computes it, tokenizer, prompts, maximum number of tokens, and the dimension that
        vectors are cut to. Store them beside an index, and compare them before you add vectors or search.

        Raises:
            InputTypeError: `truncate_dim` is not a whole number.
            InputValueError: there is no such graph, or vectors cannot be cut to `truncate_dim`.
        """
        if truncate_dim is not None:
            truncate_dim = whole_number("truncate_dim", truncate_dim)
            if not 1 <= truncate_dim <= self.dimension:
                raise InputValueError(f"truncate_dim must be from 1 to {self.dimension}, got {truncate_dim}")
        tokenizer = next((record.sha256 for record in self.files if record.file == "tokenizer.json"), None)
        graph = self.graph(precision, provider)
        return _digest(
            {
                **({"bf16": True} if precision == "bf16" else {}),
                **({"kernels": True} if provider == "kernels" else {}),
                **({"truncate_dim": truncate_dim} if truncate_dim not in (None, self.dimension) else {}),
                "graph": [record.sha256 for record in graph.records()],
                "tokenizer": tokenizer,
                "prompts": dict(self.prompts),
                "default_prompt_name": self.default_prompt_name,
                "max_tokens": self.max_tokens,
                "normalize": self.normalize,
            }
        )[:16]


_Record = TypeVar("_Record", Manifest, FileRecord)
_JSON_TYPES: dict[Any, Any] = {tuple: list, float: (int, float)}  # where JSON's type is another than the field's


def _from_content(kind: type[_Record], content: dict[str, Any]) -> _Record:
    """Make a record of a JSON object; raise ValueError if a key is missing or does not have the type of its field."""
    types = get_type_hints(kind)
    known: dict[str, Any] = {}
    for each in fields(kind):
        if each.name in content and each.name != "extra":
            known[each.name] = _value(each.name, types[each.name], content[each.name])
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"it lacks the key {each.name!r}")
    record = kind(**known, extra={name: value for name, value in content.items() if name not in known})
    if isinstance(record, FileRecord) and not _is_inside(record.file):
        raise ValueError(f"the file {record.file!r} is outside the model folder")
    return record


def _value(name: str, wanted: Any, value: Any) -> Any:
    """Return a value of JSON as the type of its field."""
    arguments = get_args(wanted)
    if type(None) in arguments:  # such as `str | None`
        return None if value is None else _value(name, arguments[0], value)
    if is_dataclass(wanted):
        if not isinstance(value, dict):
            keys = ", ".join(each.name for each in fields(wanted) if each.name != "extra")
            raise ValueError(f"{name!r} must be an object with the keys {keys}")
        return _from_content(wanted, value)  # type: ignore[arg-type,type-var]  # a record
    if wanted is Any:
        return value
    kind = get_origin(wanted) or wanted
    if not isinstance(value, _JSON_TYPES.get(kind, kind)):
        raise ValueError(f"{name!r} has the wrong type {type(value).__name__}")
    if kind is int and (isinstance(value, bool) or not 0 <= value < 2**53):
        raise ValueError(f"{name!r} is {value!r}, which no export writes")
    if kind is float and isinstance(value, int) and value.bit_length() > 53:  # it may be too large for a float
        raise ValueError(f"{name!r} is a whole number of {value.bit_length()} bits, which no export writes")
    if kind is tuple:
        return tuple(_value(name, arguments[0], each) for each in value)
    if kind is Mapping:
        return {key: _value(name, arguments[1], each) for key, each in value.items()}
    return value


def _to_content(record: Manifest | FileRecord) -> dict[str, Any]:
    """Undo :func:`_from_content`; fields that are records themselves stay records."""
    return {each.name: getattr(record, each.name) for each in fields(record) if each.name != "extra"} | {**record.extra}


def _is_inside(file: str) -> bool:
    path = PureWindowsPath(file)  # knows drives and both kinds of slash, and is no less strict on POSIX names
    inside = not path.anchor and ".." not in path.parts and path.parts != () and "\\" not in file
    return inside and file.isprintable()


def _check_values(manifest: Manifest) -> None:
    """Raise ValueError for a value that has the right type, but that no export writes."""
    for name, least in [("dimension", 1), ("layers", 1), ("max_tokens", 3)]:
        if not least <= getattr(manifest, name) < 2**31:
            raise ValueError(f"{name!r} is {getattr(manifest, name)}, less than {least} or absurd")
    default, similarity = manifest.default_prompt_name, manifest.similarity_fn_name
    if default is not None and default not in manifest.prompts:
        raise ValueError(f"'default_prompt_name' is {default!r}, which 'prompts' does not have")
    if similarity not in SIMILARITIES:
        raise ValueError(f"'similarity_fn_name' is {similarity!r}, not {' or '.join(SIMILARITIES)}")


def _check_version(version: Any, path: Path) -> None:
    major = re.match(r"[0-9]{1,9}(?=\.|$)", str(version))
    if major is None:
        raise ModelFolderError(f"{path} has the unreadable format version {version!r}. {repair(path)}")
    if int(major[0]) > int(FORMAT_VERSION.partition(".")[0]):
        raise ModelFolderError(
            f"{path} has format version {version}; this e5onnx reads up to {FORMAT_VERSION}. "
            "Upgrade with: pip install --upgrade e5onnx"
        )


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=_to_content)
    return hashlib.sha256(text.encode()).hexdigest()
