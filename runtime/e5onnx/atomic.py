"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` at the end, or remove it after an error.

    Raises:
        OSError: the file system failed, for example because the disk is full, or `path` is a folder, a pipe or a
            device such as /dev/stdout, which a file must not replace; the error names `path`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with written_whole(folder / "file") as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> (folder / "file").read_text()
        'all of it'
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "There is something other than a file", str(path))
    # a random name, since processes on other machines may write beside the same file
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(temporary), temporary):
            raise
        if error.errno is None:  # numpy's error for a partial write
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # for example because there is no such folder
            temporary.unlink()
