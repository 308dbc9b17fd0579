"""The model folder: its manifest, the check of its files, and its fingerprint. Knows no tokenizer and no onnxruntime.

    MODEL/
        e5onnx.json                 the manifest
        onnx/model.onnx             one graph for each precision,
        onnx/model.onnx_data        its weights, which onnxruntime maps into memory
        tokenizer.json  config.json and whatever else other tools need to read the folder

Files are compared with the manifest, size and SHA-256, before they are used; weights, the one large file, meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from .errors import InputTypeError, InputValueError, ModelFolderError, ModelNotFoundError

MANIFEST = "e5onnx.json"
FORMAT_VERSION = "1.1"
"""Major and minor version of the manifest. A reader refuses a newer major one and keeps keys that it does not know."""

SIMILARITIES = ("cosine", "dot")
"""What a manifest may name as the way to compare vectors, with sentence-transformers' names."""


@dataclass(frozen=True)
class FileRecord:
    """A file of the folder: path relative to the folder, SHA-256 in hexadecimal, size in bytes."""

    file: str
    sha256: str
    size: int
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, folder: Path, file: str) -> FileRecord:
        """Measure the file `file` of `folder`."""
        path = folder / file
        return cls(file, _sha256(path), path.stat().st_size)


@dataclass(frozen=True)
class GraphRecord(FileRecord):
    """An ONNX graph of the folder.

    `weights` is the file beside it that holds its tensors, None for a graph that holds them itself. `parity` holds how
    far its vectors are from the checkpoint's in PyTorch, as measured by the export (int8 and portable: from those of
    fp32); `portable` says whether it keeps to standard ONNX operators, for other engines than onnxruntime.
    `calibration` says how int8 was fitted (method, number of texts, SHA-256 of their file), and is None for float32.
    """

    precision: str
    portable: bool
    parity: Mapping[str, float]
    weights: FileRecord | None
    calibration: Mapping[str, Any] | None

    def records(self) -> Iterator[FileRecord]:
        """Iterate over the files that the graph consists of."""
        yield self
        if self.weights is not None:
            yield self.weights


@dataclass(frozen=True)
class Manifest:
    """What a model folder says of itself: the content of `e5onnx.json`.

    `max_tokens` counts special tokens. `prompts` maps a name ("query", "document") to the text put before each input;
    `normalize` says whether the checkpoint's own vectors have unit length, `similarity_fn_name` how its authors compare
    them, "cosine" or "dot". `extra`, here and in the records, holds the keys that this version does not know.
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
    similarity_fn_name: str = "cosine"
    format_version: str = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of `e5onnx.json`, with a checksum over all the rest of it."""
        content = {"format_version": self.format_version, **_unfold(asdict(self))}
        content["graphs"] = [
            _unfold(graph | {"weights": graph["weights"] and _unfold(graph["weights"])}) for graph in content["graphs"]
        ]
        content["files"] = [_unfold(file) for file in content["files"]]
        content["checksum"] = _digest(content)
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, path: Path) -> Manifest:
        """Read the text of the manifest at `path`; raise :class:`ModelFolderError` where it is not one."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFolderError(f"{path} is not valid JSON ({error}). {_REPAIR}") from error
        if not isinstance(content, dict) or "format_version" not in content:
            raise ModelFolderError(f"{path} is not the manifest of an e5onnx model folder. {_REPAIR}")
        _check_version(content["format_version"], path)
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise ModelFolderError(f"{path} holds text that is not valid Unicode ({error}). {_REPAIR}") from error
        if content.pop("checksum", None) != _digest(content):
            raise ModelFolderError(f"{path} was changed after the export: its checksum does not fit. {_REPAIR}")
        content.setdefault("similarity_fn_name", "cosine")  # manifests of before 1.1 do not have it
        try:
            fields = _fold(content, _MANIFEST_TYPES)
            _check_values(fields)
            fields["graphs"] = tuple(_graph_record(graph) for graph in fields["graphs"])
            fields["files"] = tuple(FileRecord(**_fold(file, _FILE_TYPES)) for file in fields["files"])
        except ValueError as error:
            raise ModelFolderError(f"{path} is not a valid manifest: {error}. {_REPAIR}") from error
        return cls(**fields)

    def records(self) -> Iterator[FileRecord]:
        """Iterate over all files of the folder but the manifest itself."""
        for graph in self.graphs:
            yield from graph.records()
        yield from self.files

    def graph(self, precision: str | None, provider: str = "cpu") -> GraphRecord:
        """Return the graph that a provider runs: onnxruntime's own of that precision, or the portable one.

        Raises:
            InputValueError: there is none; the message names those there are, or says how to make one.
        """
        for graph in self.graphs:
            if graph.portable == (provider != "cpu") and (graph.portable or graph.precision == precision):
                return graph
        if provider != "cpu":
            raise InputValueError(
                f"provider={provider!r} needs the portable graph, which this model does not have; add it with "
                "`e5onnx portable MODEL`, or export the model with --graph portable"
            )
        there = ", ".join(repr(graph.precision) for graph in self.graphs if not graph.portable)
        raise InputValueError(f"this model has no graph with precision {precision!r}; it has {there}")

    def fingerprint(self, precision: str, provider: str = "cpu") -> str:
        """Return 16 hexadecimal digits over all that changes vectors: graph, tokenizer, prompts, maximum of tokens.

        Store it beside an index, and compare it before vectors are added or searched.
        """
        tokenizer = next((record.sha256 for record in self.files if record.file == "tokenizer.json"), None)
        graph = self.graph(precision, provider)
        bf16 = {"bf16": True} if precision == "bf16" else {}
        return _digest(
            {
                **bf16,
                "graph": [record.sha256 for record in graph.records()],
                "tokenizer": tokenizer,
                "prompts": dict(self.prompts),
                "default_prompt_name": self.default_prompt_name,
                "max_tokens": self.max_tokens,
                "normalize": self.normalize,
            }
        )[:16]


_OPTIONAL_TEXT = (str, type(None))
_FILE_TYPES: dict[str, type | tuple[type, ...]] = {"file": str, "sha256": str, "size": int}
_GRAPH_TYPES = {
    **_FILE_TYPES,
    "precision": str,
    "portable": bool,
    "parity": dict,
    "weights": (dict, type(None)),
    "calibration": (dict, type(None)),
}
_MANIFEST_TYPES: dict[str, type | tuple[type, ...]] = {
    "format_version": str,
    "checkpoint": str,
    "revision": _OPTIONAL_TEXT,
    "dimension": int,
    "layers": int,
    "max_tokens": int,
    "pooling": str,
    "normalize": bool,
    "prompts": dict,
    "default_prompt_name": _OPTIONAL_TEXT,
    "graphs": list,
    "files": list,
    "tools": dict,
    "similarity_fn_name": str,
}
_REPAIR = "Export the model again, or copy the folder again."


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was opened: where it is and what its manifest says."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFolder:
        """Read the manifest of the folder at `path`.

        Raises:
            ModelNotFoundError: there is no such folder, or it has no manifest.
            ModelFolderError: the manifest is damaged, or of a format that is too new.
        """
        folder = Path(_path(path)).absolute()
        manifest_path = folder / MANIFEST
        try:
            text = manifest_path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFoundError(_no_manifest(folder)) from error
        except OSError as error:
            raise _unreadable(manifest_path, error) from error
        except UnicodeDecodeError as error:
            raise ModelFolderError(f"{manifest_path} is not UTF-8 text. {_REPAIR}") from error
        return cls(folder, Manifest.from_json(text, manifest_path))

    def file(self, name: str) -> Path:
        """Return the path of a file of the manifest after comparing its content; see :meth:`check`."""
        for record in self.manifest.records():
            if record.file == name:
                return self.check(record)
        raise ModelFolderError(f"{self.path / MANIFEST} does not list {name}. {_REPAIR}")

    @contextmanager
    def graph(self, precision: str | None, provider: str = "cpu") -> Iterator[OpenedGraph]:
        """Yield :meth:`Manifest.graph`, compared before, and compare its weights while the caller loads it.

        Hashing the weights takes about as long as loading them, and a thread of its own hides that.
        """
        record = self.manifest.graph(precision, provider)
        path = self.check(record)
        if record.weights is None:
            yield OpenedGraph(path, lambda: None)
            return
        weights = MappedFile(self._check_size(record.weights), record.weights.sha256)
        failures: list[BaseException] = []

        def compare() -> None:
            try:
                weights.check()
            except BaseException as error:  # noqa: BLE001 - it is raised below
                failures.append(error)

        thread = threading.Thread(target=compare)
        thread.start()
        try:
            yield OpenedGraph(path, weights.check)
            weights.check_in_place()
        finally:
            thread.join()
            if failures:  # the reason for whatever the caller met
                raise failures[0]

    def check(self, record: FileRecord) -> Path:
        """Return the path of `record` after comparing its size and SHA-256 with the manifest.

        Raises:
            ModelNotFoundError: it is missing.
            ModelFolderError: it differs.
        """
        path = self._check_size(record)
        try:
            found = _sha256(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        _compare(path, found, record.sha256)
        return path

    def _check_size(self, record: FileRecord) -> Path:
        path = self.path / record.file
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFoundError(
                f"{path} is missing; the model's manifest expects {record.size:,} bytes. {_REPAIR}"
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        if size != record.size:
            raise ModelFolderError(
                f"{path} has {size:,} bytes where the model's manifest expects {record.size:,}. {_REPAIR}"
            )
        return path

    def verify(self) -> list[FileRecord]:
        """Compare size and SHA-256 of every file with the manifest and return what was checked.

        Raises:
            ModelNotFoundError: a file is missing.
            ModelFolderError: a file differs; the message names the first one.
        """
        records = list(self.manifest.records())
        for record in records:
            self.check(record)
        return records


class OpenedGraph(NamedTuple):
    """A graph to load: its path, and what raises an error if the weights were overwritten since they were compared."""

    path: Path
    check: Callable[[], None]


class MappedFile:
    """A file that stays mapped into memory while it is in use: what is written into it would change vectors."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Open a file, whose content is to have this SHA-256; it is closed with the last reference to this object."""
        self._path = path
        self._sha256 = sha256
        self._compared: tuple[int, int] | None = None
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise _unreadable(path, error) from error
        weakref.finalize(self, os.close, self._descriptor)

    def check(self) -> None:
        """Compare the content, unless it was compared and nothing was written into the file since.

        Raises:
            ModelFolderError: it differs.
        """
        status = os.fstat(self._descriptor)
        state = status.st_size, status.st_mtime_ns
        if state == self._compared:
            return
        with self._lock:
            try:
                os.lseek(self._descriptor, 0, os.SEEK_SET)
                found = _sha256(self._descriptor)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            _compare(self._path, found, self._sha256)
            self._compared = state

    def check_in_place(self) -> None:
        """Raise :class:`ModelFolderError` if another file has taken the place of this one, and may have been loaded."""
        try:
            is_same = os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if not is_same:
            raise ModelFolderError(f"{self._path} was replaced while it was loaded: load the model again")


def open_model(
    model: str | os.PathLike[str],
    *,
    precision: str | None = None,
    provider: str = "cpu",
    all_files: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> ModelFolder:
    """Open a model folder, or the exported model that a hub id names.

    Args:
        model: path of a folder, or a hub id ("owner/name") where no such folder exists.
        precision: that of the graph that will be used; None if none will be. Only what is used is downloaded,
        provider: what will run the graph, "cpu" for onnxruntime's own, or one that needs the portable graph,
        all_files: unless this asks for every file of the manifest.
        revision: branch, tag or commit on the hub; None for the main branch. Folders have none, and refuse one.
        local_files_only: take the hub's files from its cache only.
    """
    name = _path(model)
    if not is_hub_id(name):
        folder = ModelFolder.open(name)
        if revision is not None:
            raise InputValueError(f"a revision is for a hub id; {name} is a folder: leave out revision {revision!r}")
        return folder
    from .hub import download_model

    def wanted(folder: Path) -> list[str]:
        manifest = ModelFolder.open(folder).manifest
        if all_files:
            return [record.file for record in manifest.records()]
        graph = manifest.graph(precision, provider).records() if precision or provider != "cpu" else ()
        return [record.file for record in (*graph, *manifest.files)]

    return ModelFolder.open(download_model(name, revision=revision, local_files_only=local_files_only, wanted=wanted))


def _path(model: Any) -> str:
    """Return a path or hub id as text; raise :class:`InputTypeError` or :class:`InputValueError` for anything else."""
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model
    if not isinstance(name, str):
        raise InputTypeError(f"a model is a folder or a hub id, got {type(model).__name__}")
    try:
        possible = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise InputValueError(f"the name of a model holds NUL or a lone surrogate: {name!r:.80}")
    return name


def is_hub_id(name: str) -> bool:
    """Tell whether a name is to be asked for at the hub, as it is not that of a folder here.

    Raises:
        ModelNotFoundError: its first part is a folder here, in which there is no such folder: it is a mistyped path.
    """
    if os.path.isdir(name) or not _HUB_ID.fullmatch(name):  # noqa: PTH112 - Path would turn "" into "."
        return False
    parent = Path(name).parent
    if not os.path.isdir(parent):  # noqa: PTH112 - Path raises for long names
        return True
    try:
        folders = sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise _unreadable(parent, error) from error
    there = ", ".join([*folders[:_MOST_NAMED], *(["..."] if folders[_MOST_NAMED:] else [])]) or "no folder"
    raise ModelNotFoundError(
        f"there is no folder {name}; {parent}{os.sep} holds: {there}. (To load {name} from the hub, start where "
        f"there is no folder {parent}.)"
    )


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MOST_NAMED = 10


def _fold(content: Any, types: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return the keys of `content` that `types` names, and all others under "extra"; raise ValueError on a bad one."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object with the keys {', '.join(types)}")
    for name, kind in types.items():
        if name not in content:
            raise ValueError(f"it lacks the key {name!r}")
        if not isinstance(content[name], kind):
            raise ValueError(f"{name!r} has the wrong type {type(content[name]).__name__}")
        if kind is int and (isinstance(content[name], bool) or not 0 <= content[name] < 2**53):
            raise ValueError(f"{name!r} is {content[name]!r}, which is no number that an export writes")
    if "file" in types and not _is_inside(content["file"]):
        raise ValueError(f"the file {content['file']!r} is outside the model folder")
    known = {name: content[name] for name in types}
    return known | {"extra": {name: value for name, value in content.items() if name not in types}}


def _graph_record(content: Any) -> GraphRecord:
    fields = _fold(content, _GRAPH_TYPES)
    if fields["weights"] is not None:
        fields["weights"] = FileRecord(**_fold(fields["weights"], _FILE_TYPES))
    if not all(isinstance(figure, (int, float)) for figure in fields["parity"].values()):
        raise ValueError("'parity' has a value that is no number")
    return GraphRecord(**fields)


def _unfold(content: dict[str, Any]) -> dict[str, Any]:
    """Undo :func:`_fold`."""
    known = {name: value for name, value in content.items() if name != "extra"}
    return {**known, **content["extra"]}


def _is_inside(file: str) -> bool:
    path = PureWindowsPath(file)  # knows drives and both kinds of slash, and is no less strict on POSIX names
    inside = not path.anchor and ".." not in path.parts and path.parts != () and "\\" not in file
    return inside and file.isprintable()


def _check_values(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for values of the right type that no export writes."""
    for name, least in [("dimension", 1), ("layers", 1), ("max_tokens", 3)]:
        if not least <= fields[name] < 2**31:
            raise ValueError(f"{name!r} is {fields[name]}, less than {least} or absurd")
    prompts, default = fields["prompts"], fields["default_prompt_name"]
    if not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ValueError("'prompts' has a value that is no text")
    if default is not None and default not in prompts:
        raise ValueError(f"'default_prompt_name' is {default!r}, which 'prompts' does not have")
    if fields["similarity_fn_name"] not in SIMILARITIES:
        raise ValueError(f"'similarity_fn_name' is {fields['similarity_fn_name']!r}, not {' or '.join(SIMILARITIES)}")


def _check_version(version: Any, path: Path) -> None:
    major = re.match(r"[0-9]{1,9}(?=\.|$)", str(version))
    if major is None:
        raise ModelFolderError(f"{path} has the unreadable format version {version!r}. {_REPAIR}")
    if int(major[0]) > int(FORMAT_VERSION.partition(".")[0]):
        raise ModelFolderError(
            f"{path} has format version {version}; this e5onnx reads up to {FORMAT_VERSION}. "
            "Upgrade with: pip install --upgrade e5onnx"
        )


def _unreadable(path: Path, error: OSError) -> ModelFolderError:
    return ModelFolderError(f"{path} cannot be read: {error.strerror or error}")


def _no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if (folder / "config.json").is_file():
        return (
            f"{folder} holds a checkpoint, not an exported model ({MANIFEST} is missing). "
            f"Export it first: e5onnx export {folder} OUTPUT"
        )
    return f"{folder} is not an e5onnx model folder: {MANIFEST} is missing. Make one with: e5onnx export"


def _sha256(file: Path | int) -> str:
    """Return the SHA-256 of a file, or of what is left of one that is open."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 18))  # stays in the cache
    with open(file, "rb", buffering=0, closefd=isinstance(file, Path)) as stream:
        while size := stream.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ModelFolderError(
            f"{path} was changed after the export: its SHA-256 is {found}, expected {expected}. {_REPAIR}"
        )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
