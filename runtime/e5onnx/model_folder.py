"""A model folder on disk: opening it by path or hub id, and checking its files. Loads no graph and no tokenizer.

    MODEL/
        e5onnx.json                 the manifest
        onnx/model.onnx             a graph for each precision
        onnx/model.onnx_data        its weights, which onnxruntime maps into memory
        tokenizer.json  config.json and whatever else other tools need to read the folder

The size and SHA-256 of a file are compared with the manifest before the file is used. The weights, which are large,
are compared while the graph loads.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .cache import cached_folder
from .errors import (
    InputTypeError,
    InputValueError,
    MissingDependencyError,
    ModelDownloadError,
    ModelFolderError,
    ModelNotFoundError,
    plural,
)
from .manifest import CHECKPOINT_FILES, MANIFEST, FileRecord, Manifest, graph_name, repair

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MOST_NAMED = 10


@dataclass(frozen=True)
class ModelFolder:
    """An open model folder: its path and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFolder:
        """Read the manifest of the folder at `path`.

        Raises:
            ModelNotFoundError: there is no such folder, or it has no manifest.
            ModelFolderError: the manifest is damaged, or its format is too new.
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
            raise ModelFolderError(f"{manifest_path} is not UTF-8 text. {repair(folder)}") from error
        return cls(folder, Manifest.from_json(text, manifest_path))

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists, after :meth:`check`."""
        for record in self.manifest.records():
            if record.file == name:
                return self.check(record)
        raise ModelFolderError(f"{self.path / MANIFEST} does not list {name}. {repair(self.path)}")

    @contextmanager
    def graph(self, precision: str | None, provider: str = "cpu") -> Iterator[OpenedGraph]:
        """Yield the checked graph of :meth:`Manifest.graph`, and check its weights while the caller loads it.

        Hashing the weights takes about as long as loading them; a separate thread hides that time.
        """
        record = self.manifest.graph(precision, provider)
        path = self.check(record)
        if record.weights is None:
            yield OpenedGraph(path, lambda: None)
            return
        weights = MappedFile(self._check_size(record.weights), record.weights.sha256)
        failures: list[BaseException] = []

        def check_weights() -> None:
            try:
                weights.check()
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)

        thread = threading.Thread(target=check_weights)
        thread.start()
        try:
            yield OpenedGraph(path, weights.check)
            weights.check_in_place()
        finally:
            thread.join()
            if failures:  # the cause of any error of the caller
                raise failures[0]

    def check(self, record: FileRecord, advance: Callable[[int], object] | None = None) -> Path:
        """Return the path of a file after comparing its size and SHA-256 with the manifest.

        `advance` is called with the number of bytes that were read since the last call.

        Raises:
            ModelNotFoundError: the file is missing.
            ModelFolderError: the file differs, or cannot be read.
        """
        path = self._check_size(record)
        try:
            found = _sha256(path, advance)
        except OSError as error:
            raise _unreadable(path, error) from error
        _compare(path, found, record.sha256)
        return path

    def verify(self, advance: Callable[[int], object] | None = None) -> list[FileRecord]:
        """Compare the size and SHA-256 of every file with the manifest, and return the files' records.

        `advance` is called with the number of bytes that were read since the last call.

        Raises:
            ModelNotFoundError: a file is missing.
            ModelFolderError: a file differs; the message names the first one.
        """
        records = list(self.manifest.records())
        for record in records:
            self.check(record, advance)
        return records

    def _check_size(self, record: FileRecord) -> Path:
        path = self.path / record.file
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelNotFoundError(
                f"{path} is missing; the model's manifest expects {plural(record.size, 'byte')}. {repair(path)}"
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        if size != record.size:
            raise ModelFolderError(
                f"{path} has {plural(size, 'byte')} where the model's manifest expects {record.size:,}. {repair(path)}"
            )
        return path


class OpenedGraph(NamedTuple):
    """A graph to load: its path, and a function that raises an error if its weights were overwritten since."""

    path: Path
    check: Callable[[], None]


class MappedFile:
    """A file that an engine maps into memory. Writing to the file would change the vectors, so it is watched."""

    def __init__(self, path: Path, sha256: str) -> None:
        """Open a file that must have this SHA-256. It is closed with the last reference to this object."""
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
        """Compare the content with the SHA-256, unless nothing was written to the file since the last comparison.

        Raises:
            ModelFolderError: the content differs.
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
        """Raise :class:`ModelFolderError` if another file replaced this one: the engine may have loaded that."""
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
    """Open a model folder, or the model that a hub id names. That of a checkpoint is built in the cache on first use.

    Args:
        model: path of a folder, or a hub id ("owner/name") where no such folder exists.
        precision: what the provider will run; None for no graph, unless the provider needs the portable one.
        provider: what will run the graph. The graph to download or build is that of :func:`manifest.graph_name`.
        all_files: download every file of the manifest.
        revision: branch, tag or commit on the hub; None for the main branch. A folder does not take one.
        local_files_only: use only the caches, the hub's and that of first use, not the network.
    """
    name = _path(model)
    graph = graph_name(precision, provider)
    if not is_hub_id(name):
        path = Path(name)
        folder = None if _is_checkpoint(path) else ModelFolder.open(path)
        if revision is not None:
            raise InputValueError(f"a revision is for a hub id; {name} is a folder: leave out revision {revision!r}")
        if folder is not None:
            return folder
        from .first_use import from_folder

        return ModelFolder.open(from_folder(path, graph))

    def wanted(folder: Path) -> list[str]:
        manifest = ModelFolder.open(folder).manifest
        if all_files:
            return [record.file for record in manifest.records()]
        records = () if graph is None else manifest.graph(precision, provider).records()
        return [record.file for record in (*records, *manifest.files)]

    from .first_use import built_before, from_hub, is_commit

    if is_commit(revision):  # it never changes, so there is nothing to ask the hub
        built = built_before(name, revision, graph)
        if built is not None:
            return ModelFolder.open(built)
    try:
        from .hub import HubCheckpoint, download_model

        found = download_model(name, revision=revision, local_files_only=local_files_only, wanted=wanted)
    except (ModelDownloadError, MissingDependencyError):
        built = built_before(name, revision, graph)
        if built is None:
            raise
        return ModelFolder.open(built)
    if isinstance(found, HubCheckpoint):
        found = from_hub(name, found.commit, revision, graph)
    return ModelFolder.open(found)


def is_hub_id(name: str) -> bool:
    """Tell whether a name is a hub id rather than the path of a folder.

    Raises:
        ModelNotFoundError: the first part is an existing folder, so the name is a mistyped path.
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
        f"there is no folder {name}; {parent}{os.sep} holds: {there}. (To load {name} from the hub, run this where "
        f"there is no folder {parent}.)"
    )


def file_record(folder: Path, file: str) -> FileRecord:
    """Measure the file `file` of `folder`."""
    path = folder / file
    return FileRecord(file, _sha256(path), path.stat().st_size)


def _path(model: Any) -> str:
    """Return a path or hub id as text; raise an error for anything that cannot be one."""
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


def _is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint and not a model folder, nor a damaged one of the cache."""
    there = {name for name in (MANIFEST, *CHECKPOINT_FILES) if os.path.lexists(folder / name)}
    return bool(there) and MANIFEST not in there and cached_folder(folder.absolute()) is None


def _unreadable(path: Path, error: OSError) -> ModelFolderError:
    return ModelFolderError(f"{path} cannot be read: {error.strerror or error}")


def _no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if cached_folder(folder) is not None:
        return f"{folder / MANIFEST} is missing. {repair(folder)}"
    if _is_checkpoint(folder):
        return (
            f"{folder} holds a checkpoint, not an exported model ({MANIFEST} is missing). "
            f"Export it first: e5onnx export {folder} OUTPUT"
        )
    return f"{folder} is not an e5onnx model folder: {MANIFEST} is missing. Make one with: e5onnx export"


def _sha256(file: Path | int, advance: Callable[[int], object] | None = None) -> str:
    """Return the SHA-256 of a file, or of the rest of an open one."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 18))  # fits the processor's cache
    with open(file, "rb", buffering=0, closefd=isinstance(file, Path)) as stream:
        while size := stream.readinto(block):
            digest.update(block[:size])
            if advance is not None:
                advance(size)
    return digest.hexdigest()


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ModelFolderError(
            f"{path} was changed after the export: its SHA-256 is {found}, expected {expected}. {repair(path)}"
        )
