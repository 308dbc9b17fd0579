"""First use of a checkpoint: builds its model folder in the user's cache, once. The cache's layout is in `cache.py`.

A model folder appears whole or not at all. Of several processes that need it, one builds it, and the others wait. The
package `e5onnx_export` does the work; it is imported only then, so a folder that is there needs no extra.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .atomic import written_whole
from .cache import cache_folder
from .errors import CacheError, CheckpointError, E5OnnxError, InputValueError, MissingDependencyError, in_one_line
from .version import __version__

_log = logging.getLogger("e5onnx")

_COMMIT = re.compile(r"[0-9a-f]{40}")
EXPORT_PACKAGES = ("e5onnx_export", "filelock", "ml_dtypes", "onnx", "safetensors", "threadpoolctl")
"""What the extra `export` installs, by the names to import."""
# What is built for each request, and the folders that already have it. None is for the tokenizer: any folder will do.
_OPTIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precisions": ["fp32"]},
    "int8": {"precisions": ["int8"]},
    "portable": {"precisions": ["fp32"], "portable": True},
}
_HAVE: dict[str | None, tuple[str, ...]] = {
    "fp32": ("fp32", "portable"),
    "int8": ("int8",),
    "portable": ("portable",),
    None: ("fp32", "int8", "portable"),
}
_SMALL = 2**20
"""Bytes; files up to this size are part of the key of a checkpoint with their content, larger ones with their times."""


def from_folder(checkpoint: Path, wanted: str | None) -> Path:
    """Return the model folder of a checkpoint on disk, built if the cache has none of the files as they are now.

    Args:
        checkpoint: the folder of the checkpoint.
        wanted: the graph that is needed, "fp32", "int8" or "portable"; None if only the tokenizer is.

    Raises:
        CacheError: the cache cannot be written.
        CheckpointError: the checkpoint is damaged, or cannot be exported.
        InputValueError: there is no such graph.
        MissingDependencyError: it must be built, and the extra `export` is not installed.
    """
    folder = checkpoint.resolve() if checkpoint.name == ".." else checkpoint.absolute()
    state = _state(folder)
    place = cache_folder() / (folder.name or "root") / state / __version__

    def build(output: Path, **options: Any) -> None:
        from e5onnx_export import export_model

        export_model(folder, output, **options)
        if _state(folder) != state:
            raise CheckpointError(f"{folder} changed while it was exported: try again when it is complete")

    return _find(place, wanted) or _build_once(place, wanted, str(folder), build)


def from_hub(repo_id: str, commit: str, revision: str | None, wanted: str | None) -> Path:
    """Return the model folder of a commit of a checkpoint on the hub, built if the cache does not have it.

    Args:
        repo_id: "owner/name".
        commit: the commit that `revision` has now.
        revision: branch, tag or commit that the user asked for; None for the main branch.
        wanted: as in :func:`from_folder`, which also lists the errors.
    """

    def build(output: Path, **options: Any) -> None:
        from e5onnx_export import export_model

        export_model(repo_id, output, revision=commit, **options)

    place = _place(repo_id, commit)
    folder = _find(place, wanted) or _build_once(place, wanted, f"{repo_id} at {commit}", build)
    reference = _reference(repo_id, revision)
    if not is_commit(revision) and _read_commit(reference) != commit:
        with suppress(OSError):  # a read-only cache; the reference is for later use without the hub
            reference.parent.mkdir(exist_ok=True)
            with written_whole(reference) as path:
                path.write_text(commit)
    return folder


def built_before(repo_id: str, revision: str | None, wanted: str | None) -> Path | None:
    """Return the model folder of the commit that a branch or tag last had, if the cache has it. Needs no network."""
    commit = revision if is_commit(revision) else _read_commit(_reference(repo_id, revision))
    return None if commit is None else _find(_place(repo_id, commit), wanted)


def is_commit(revision: str | None) -> bool:
    """Tell whether a revision is a commit, and not a branch or tag."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _place(repo_id: str, commit: str) -> Path:
    return _repository(repo_id) / commit / __version__


def _repository(repo_id: str) -> Path:
    return cache_folder() / repo_id.replace("/", "--")  # the hub permits no -- in names


def _reference(repo_id: str, revision: str | None) -> Path:
    # a hash, because some file systems take names that differ in case for the same
    return _repository(repo_id) / "refs" / hashlib.sha256((revision or "main").encode()).hexdigest()[:16]


def _read_commit(reference: Path) -> str | None:
    try:
        commit = reference.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if is_commit(commit) else None


def _find(place: Path, wanted: str | None) -> Path | None:
    """Return the folder that has what is wanted, if there is one."""
    names = _HAVE[wanted] if wanted in tuple(_HAVE) else ()
    return next((place / name for name in names if (place / name).is_dir()), None)


def _build_once(place: Path, wanted: str | None, checkpoint: str, build: Callable[..., None]) -> Path:
    """Build a model folder in `place` unless another process does so first."""
    if wanted not in tuple(_HAVE):
        raise InputValueError(f"a checkpoint can be exported with precision fp32 or int8, not {wanted!r}")
    for package in EXPORT_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                f"{checkpoint} is a checkpoint. Exporting it on first use needs {package}: "
                "pip install 'e5onnx[export]'. Or run `e5onnx export` on another machine, and copy the model folder"
            )
    name = wanted or "fp32"
    with _cache_errors(checkpoint, place), _locked(place, name, checkpoint):
        found = _find(place, wanted)
        if found is not None:
            return found
        unfinished = place / f"{name}.unfinished"
        if unfinished.exists():  # a process was killed
            shutil.rmtree(unfinished)
        start = time.monotonic()
        _log.info("Building %s for %s in %s, on first use only", name, checkpoint, place)
        try:
            build(unfinished / "model", report=_log.debug, **_OPTIONS[name])
            (unfinished / "model").rename(place / name)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _log.info("Built %s in %.1f s", place / name, time.monotonic() - start)
    return place / name


@contextmanager
def _locked(place: Path, name: str, checkpoint: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    place.mkdir(parents=True, exist_ok=True)
    # the soft lock for file systems without locks would outlive a killed process
    lock = FileLock(place / f"{name}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("Waiting for another process that builds %s for %s", name, checkpoint)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _cache_errors(checkpoint: str, place: Path) -> Iterator[None]:
    """Say that it is the cache which is full, read-only or without locks."""
    try:
        yield
    except (OSError, NotImplementedError, InputValueError) as error:
        if isinstance(error, E5OnnxError) and not isinstance(error, InputValueError):
            raise
        raise CacheError(
            f"the model folder of {checkpoint} cannot be built in the cache, {place}: {in_one_line(error)}. "
            "The environment variable E5ONNX_CACHE names another folder for the cache"
        ) from error


def _state(folder: Path) -> str:
    """Return a hash that changes with the checkpoint: of every file's size, times and inode, and of small contents."""
    digest = hashlib.sha256(os.fsencode(folder))
    try:
        for path in sorted(_files(folder)):
            status = path.stat()
            known = os.fsencode(path.relative_to(folder)), status.st_size, status.st_mtime_ns, status.st_ctime_ns
            digest.update(repr((*known, status.st_ino)).encode())
            if status.st_size <= _SMALL and stat.S_ISREG(status.st_mode):
                digest.update(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {in_one_line(error)}") from error
    return digest.hexdigest()[:40]


def _files(folder: Path) -> Iterator[Path]:
    """Iterate over the files of a folder and of those within, through links, without git's."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder around it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(set(folders) - {".git"})
        yield from (Path(root, file) for file in files)
