"""How many processors this process may really use.

`os.cpu_count()` counts the host's processors. A container may usually use fewer, because of its affinity mask or the
CPU quota of its control group (version 1 or 2); more threads than that only wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from .errors import InputValueError, plural

_THREADS_PER_PROCESSOR = 4
_ALWAYS_ALLOWED = 16
"""Threads that even the smallest host accepts, so that code for many threads can be tested there."""
_LONGEST_NUMBER = 9


def available_processors(root: Path = Path("/")) -> int:
    """Return the number of processors this process may use, at least 1.

    This is the size of the affinity mask, or the tightest CPU quota of the process's control group and its ancestors if
    that is smaller. A fractional quota is rounded down: a thread beyond the quota would be throttled in the middle of a
    run while the others wait for it.

    Args:
        root: where `proc` and `sys` are mounted; tests pass a folder of recorded files.

    Example:
        >>> available_processors() >= 1
        True
    """
    processors = _affinity()
    quota = _cgroup_quota(root)
    if quota is not None:
        processors = min(processors, int(quota))
    return max(1, processors)


def default_threads() -> int:
    """Return the default number of threads: `E5ONNX_THREADS`, or else the number of available processors.

    Raises:
        InputValueError: the variable is not a whole number from 1, or is far above the number of processors.
    """
    given = os.environ.get("E5ONNX_THREADS", "").strip()
    if not given:
        return available_processors()
    name = "the environment variable E5ONNX_THREADS"
    if not (given.isascii() and given.isdecimal() and given.strip("0")):
        raise InputValueError(f"{name} must be a whole number from 1, got {given!r}")
    return check_threads(int(given[:_LONGEST_NUMBER]), name)


def check_threads(threads: int, name: str) -> int:
    """Return a number of threads; raise :class:`InputValueError` if it is below 1 or far above the processors."""
    processors = os.cpu_count() or 1
    most = max(_ALWAYS_ALLOWED, _THREADS_PER_PROCESSOR * processors)
    if threads < 1:
        raise InputValueError(f"{name} must be at least 1, got {threads}")
    if threads > most:
        host = f"this host of {plural(processors, 'processor')}"
        raise InputValueError(f"{name} must be at most {most} on {host}, got {threads}")
    return threads


def processors_for_threads(threads: int) -> list[int]:
    """Return a processor for each thread, the caller's first, if the threads need every processor; otherwise [].

    Linux may wake a thread on the processor of its waker, where the two take turns for milliseconds while another
    processor idles: after a pause, a question then takes twice as long. A process with processors to spare, or with a
    quota, is better placed by the system.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows
        return []
    processors = sorted(os.sched_getaffinity(0))
    return processors if len(processors) == threads > 1 else []


@contextmanager
def kept_on_processor(processor: int | None) -> Iterator[None]:
    """Keep the calling thread on a processor of :func:`processors_for_threads`; None changes nothing."""
    if processor is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, (processor,))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota(root: Path) -> float | None:
    """Return the tightest CPU quota in processors, or None if there is none.

    Formats: /proc/self/cgroup and /proc/self/mountinfo in cgroups(7) and proc(5); `cpu.max` in the kernel's
    Documentation/admin-guide/cgroup-v2.rst; `cpu.cfs_quota_us` in Documentation/scheduler/sched-bwc.rst.
    """
    quotas = [
        quota
        for folder, version in _cpu_cgroup_folders(root)
        if (quota := _read_quota_v2(folder) if version == 2 else _read_quota_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def _cpu_cgroup_folders(root: Path) -> list[tuple[Path, int]]:
    """Return the folders of this process's CPU control group and its ancestors, each with its cgroup version."""
    groups = {}  # version -> path of the group in its hierarchy
    for line in _read_lines(root / "proc/self/cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            groups[2] = path
        elif "cpu" in controllers.split(","):
            groups[1] = path
    folders = []
    for line in _read_lines(root / "proc/self/mountinfo"):
        mount, _, file_system = line.partition(" - ")
        fields, kind = mount.split(" "), file_system.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            version = 2
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            version = 1
        else:
            continue
        if version in groups:
            mount_point = root / fields[4].lstrip("/")
            folders += [(folder, version) for folder in _lineage(mount_point, fields[3], groups[version])]
    return folders


def _lineage(mount_point: Path, mounted: str, group: str) -> list[Path]:
    """Return the folder of `group` and its parents, within a mount whose root is the group `mounted`."""
    path = PurePosixPath(group)
    # Without a cgroup namespace, a container sees the host's path of its group, but its mount starts at that group.
    inside = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
    folder = mount_point.joinpath(*(part for part in inside.parts if part not in ("/", "..")))
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount_point))]


def _read_quota_v2(folder: Path) -> float | None:
    fields = " ".join(_read_lines(folder / "cpu.max")).split()
    return _ratio(fields[0], fields[1]) if len(fields) == 2 else None


def _read_quota_v1(folder: Path) -> float | None:
    quota, period = (_read_lines(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return _ratio(quota[0], period[0]) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    """Return quota / period; None for "max", -1 and anything else that is not a limit."""
    try:
        limit, span = int(quota), int(period)
    except ValueError:
        return None
    return limit / span if limit > 0 and span > 0 else None


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux, or not readable: no known limit
        return []
