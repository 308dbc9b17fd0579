"""The user's cache: where it is, and which of its folders a path is in. Reads and writes nothing.

    E5ONNX_CACHE/
        owner--name/COMMIT/VERSION/fp32/    a model folder, built from the hub's checkpoint by this version of e5onnx
        owner--name/refs/                   the commit that a branch or tag last had
        name/STATE/VERSION/fp32/            the same of a checkpoint on disk; STATE is a hash of its path and files

Every model folder is in a place of its own, so building one never touches another.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import CacheError

_DEPTH = 4
"""Parts of the path of a model folder, relative to the cache."""


def cache_folder() -> Path:
    """Return the folder of the cache, which may not exist yet: E5ONNX_CACHE, or else the platform's place for it.

    Raises:
        CacheError: neither E5ONNX_CACHE nor a home folder is known.
    """
    named = os.environ.get("E5ONNX_CACHE")
    if named:
        return Path(named).absolute()
    try:
        home = Path.home()
    except RuntimeError as error:
        raise CacheError("there is no home folder for the cache: set E5ONNX_CACHE to a folder") from error
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData/Local", "e5onnx/Cache")
    if sys.platform == "darwin":
        return home / "Library/Caches/e5onnx"
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else home / ".cache") / "e5onnx"  # noqa: PTH117 - "" is relative


def cached_folder(path: Path) -> Path | None:
    """Return the model folder of the cache that a path is in, or None.

    Example:
        >>> cached_folder(Path("/elsewhere/model/onnx/model.onnx")) is None
        True
    """
    try:
        cache = cache_folder()
        parts = path.relative_to(cache).parts
    except (CacheError, ValueError):
        return None
    return cache.joinpath(*parts[:_DEPTH]) if len(parts) >= _DEPTH else None
