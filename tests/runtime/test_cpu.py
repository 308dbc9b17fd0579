"""The number of processors: CPU quotas of recorded cgroup trees, version 1 and 2, and the affinity mask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from e5onnx.cpu import available_processors, processors_for_threads

CONTAINER = "/docker/6f1c7a0f5d1e"
CGROUP_V2 = "30 24 0:26 {mounted} {point} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
CGROUP_V1 = "37 32 0:33 {mounted} {point} rw,nosuid,relatime shared:15 - cgroup cgroup rw,{controllers}\n"
OTHER_MOUNTS = (
    "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard\n"
    "24 22 0:22 / /sys rw,nosuid,nodev,noexec,relatime - sysfs sysfs rw\n"
)


@pytest.fixture(autouse=True)
def _sixteen_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the affinity mask hold 16 processors, so that every smaller number comes from a quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)


def write_tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def mount_v2(mounted: str = "/", point: str = "/sys/fs/cgroup") -> str:
    return CGROUP_V2.format(mounted=mounted, point=point)


def mount_v1(controllers: str, mounted: str = "/") -> str:
    return CGROUP_V1.format(mounted=mounted, point=f"/sys/fs/cgroup/{controllers}", controllers=controllers)


def write_v2(root: Path, cpu_max: str | bytes) -> Path:
    """Write the tree of a container with a cgroup namespace of version 2, as Docker and Kubernetes make it."""
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": OTHER_MOUNTS + mount_v2(),
        "sys/fs/cgroup/cpu.max": cpu_max,
    }
    return write_tree(root, files)


def write_v1(root: Path, quota: str, period: str = "100000\n") -> Path:
    """Write the tree of a container of version 1 without a cgroup namespace: the host's path, the container's mount."""
    files: dict[str, str | bytes] = {
        "proc/self/cgroup": f"9:cpuset:{CONTAINER}\n4:cpu,cpuacct:{CONTAINER}\n1:name=systemd:{CONTAINER}\n",
        "proc/self/mountinfo": (
            OTHER_MOUNTS + mount_v1("cpuset", mounted=CONTAINER) + mount_v1("cpu,cpuacct", mounted=CONTAINER)
        ),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": period,
    }
    return write_tree(root, files)


@pytest.mark.parametrize(
    ("cpu_max", "processors"),
    [
        ("300000 100000\n", 3),
        ("25000 10000\n", 2),
        ("50000 100000\n", 1),
        ("150000 100000\n", 1),
        ("199999 100000\n", 1),
        ("200000 100000\n", 2),
        ("1600000 100000\n", 16),
        ("6400000 100000\n", 16),
        ("max 100000\n", 16),
    ],
)
def test_quota_of_version_2_is_rounded_down_to_at_least_one(tmp_path: Path, cpu_max: str, processors: int) -> None:
    assert available_processors(write_v2(tmp_path, cpu_max)) == processors


@pytest.mark.parametrize(
    ("quota", "period", "processors"),
    [
        ("300000\n", "100000\n", 3),
        ("50000\n", "100000\n", 1),
        ("150000\n", "100000\n", 1),
        ("200000\n", "50000\n", 4),
        ("-1\n", "100000\n", 16),
    ],
)
def test_quota_of_version_1_in_a_container(tmp_path: Path, quota: str, period: str, processors: int) -> None:
    assert available_processors(write_v1(tmp_path, quota, period)) == processors


@pytest.mark.parametrize("tightest", ["", "/user.slice", "/user.slice/job", "/user.slice/job/step"])
def test_tightest_group_among_the_ancestors_of_version_2_counts(tmp_path: Path, tightest: str) -> None:
    groups = ["", "/user.slice", "/user.slice/job", "/user.slice/job/step"]
    files: dict[str, str | bytes] = {f"sys/fs/cgroup{group}/cpu.max": "800000 100000\n" for group in groups}
    files["sys/fs/cgroup/user.slice/other/cpu.max"] = "100000 100000\n"  # no ancestor
    files["sys/fs/cpu.max"] = "100000 100000\n"  # above the mount
    files[f"sys/fs/cgroup{tightest}/cpu.max"] = "200000 100000\n"
    files["proc/self/cgroup"] = "0::/user.slice/job/step\n"
    files["proc/self/mountinfo"] = OTHER_MOUNTS + mount_v2()
    assert available_processors(write_tree(tmp_path, files)) == 2


def test_a_group_without_limit_is_held_by_its_parent(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "proc/self/cgroup": "0::/job/step\n",
        "proc/self/mountinfo": OTHER_MOUNTS + mount_v2(),
        "sys/fs/cgroup/job/cpu.max": "500000 100000\n",
        "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
    }
    assert available_processors(write_tree(tmp_path, files)) == 5


def test_tightest_group_among_the_ancestors_of_version_1_counts(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "proc/self/cgroup": "7:cpuacct:/\n3:cpu:/job/step\n2:cpuset:/\n1:name=cpu:/\n",
        "proc/self/mountinfo": OTHER_MOUNTS + mount_v1("cpuacct") + mount_v1("cpu"),
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/job/step/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/job/step/cpu.cfs_period_us": "100000\n",
    }
    assert available_processors(write_tree(tmp_path, files)) == 3


@pytest.mark.parametrize(
    ("group", "mounted", "processors"),
    [
        (f"{CONTAINER}/worker", CONTAINER, 4),  # no namespace: the mount starts at the container's own group
        ("/worker", "/", 4),  # a namespace, mounted inside of it
        ("/worker", "/..", 6),  # a namespace, mounted outside of it: nothing says where below the mount the group is
    ],
)
def test_group_below_the_root_of_a_mount(tmp_path: Path, group: str, mounted: str, processors: int) -> None:
    files: dict[str, str | bytes] = {
        "proc/self/cgroup": f"0::{group}\n",
        "proc/self/mountinfo": OTHER_MOUNTS + mount_v2(mounted),
        "sys/fs/cgroup/cpu.max": "600000 100000\n",
        "sys/fs/cgroup/worker/cpu.max": "400000 100000\n",
    }
    assert available_processors(write_tree(tmp_path, files)) == processors


def test_hybrid_takes_the_quota_of_version_1(tmp_path: Path) -> None:
    write_v1(tmp_path, "300000\n")
    mounts = (tmp_path / "proc/self/mountinfo").read_text() + mount_v2(point="/sys/fs/cgroup/unified")
    groups = (tmp_path / "proc/self/cgroup").read_text() + "0::/system.slice/containerd.service\n"
    files: dict[str, str | bytes] = {
        "proc/self/mountinfo": mounts,
        "proc/self/cgroup": groups,
        "sys/fs/cgroup/unified/system.slice/containerd.service/cgroup.procs": "1\n",
    }
    assert available_processors(write_tree(tmp_path, files)) == 3


def test_quotas_of_other_controllers_and_named_hierarchies_do_not_count(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "proc/self/cgroup": "5:cpuset:/\n4:cpu:/\n3:name=cpu:/\n2:cpuacct:/\n",
        "proc/self/mountinfo": mount_v1("cpuset") + mount_v1("name=cpu") + mount_v1("cpuacct"),
    }
    for controller in ("cpuset", "name=cpu", "cpuacct"):
        files[f"sys/fs/cgroup/{controller}/cpu.cfs_quota_us"] = "100000\n"
        files[f"sys/fs/cgroup/{controller}/cpu.cfs_period_us"] = "100000\n"
    assert available_processors(write_tree(tmp_path, files)) == 16


@pytest.mark.parametrize(
    "cpu_max",
    [
        "",
        "\n",
        "max\n",
        "200000\n",
        "200000 0\n",
        "200000 -1\n",
        "-1 100000\n",
        "2e5 100000\n",
        "200000 100000 7\n",
        "two processors\n",
        "² 100000\n",  # a digit to str.isdigit, no number to int
        b"\xff\xfe\x00",
    ],
)
def test_garbage_in_cpu_max_is_no_limit(tmp_path: Path, cpu_max: str | bytes) -> None:
    assert available_processors(write_v2(tmp_path, cpu_max)) == 16


@pytest.mark.parametrize(
    ("quota", "period"),
    [("", "100000\n"), ("200000\n", ""), ("200000\n", "0\n"), ("x\n", "y\n"), ("max\n", "100000\n")],
)
def test_garbage_in_the_quota_of_version_1_is_no_limit(tmp_path: Path, quota: str, period: str) -> None:
    assert available_processors(write_v1(tmp_path, quota, period)) == 16


@pytest.mark.parametrize("file", ["proc/self/cgroup", "proc/self/mountinfo"])
@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"garbage", b"::::\n - \n - cgroup2\n1 2 3 - cgroup2 a b\n", b"\xff\xfe"]
)
def test_garbage_in_proc_is_no_limit(tmp_path: Path, file: str, content: bytes) -> None:
    write_v2(tmp_path, "200000 100000\n")
    write_tree(tmp_path, {file: content})
    assert available_processors(tmp_path) == 16


@pytest.mark.parametrize("file", ["proc/self/cgroup", "proc/self/mountinfo", "sys/fs/cgroup/cpu.max"])
@pytest.mark.parametrize("unreadable", [False, True])
def test_a_missing_or_unreadable_file_is_no_limit(tmp_path: Path, file: str, unreadable: bool) -> None:
    write_v2(tmp_path, "200000 100000\n")
    (tmp_path / file).unlink()
    if unreadable:
        (tmp_path / file).mkdir()  # cannot be read by root either
    assert available_processors(tmp_path) == 16


def test_without_any_file_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert available_processors(tmp_path) == 16


def test_an_affinity_mask_below_the_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert available_processors(write_v2(tmp_path, "800000 100000\n")) == 2


@pytest.mark.parametrize(("counted", "processors"), [(6, 6), (None, 1)])
def test_systems_without_affinity_count_all_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: int | None, processors: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert available_processors(tmp_path) == processors


@pytest.mark.parametrize(("threads", "processors"), [(1, []), (2, []), (3, [3, 5, 8]), (4, [])])
def test_threads_have_processors_of_their_own_only_where_they_take_all(
    monkeypatch: pytest.MonkeyPatch, threads: int, processors: list[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {8, 3, 5})
    assert processors_for_threads(threads) == processors
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processors_for_threads(threads) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has affinity masks")
def test_an_encoders_threads_stay_where_they_are_put(tiny_model: Path) -> None:
    program = (
        "import os, pathlib, sys; from e5onnx import Encoder\n"
        "from e5onnx.cpu import kept_on_processor, processors_for_threads\n"
        "processors = sorted(os.sched_getaffinity(0))\n"
        "encoder = Encoder(sys.argv[1], threads=len(processors)); encoder.warmup()\n"
        "first = next(iter(processors_for_threads(encoder.threads)), None)\n"
        "with kept_on_processor(first):\n"
        "    masks = [os.sched_getaffinity(int(task.name)) for task in pathlib.Path('/proc/self/task').iterdir()]\n"
        "print(len(processors) == 1 or all({each} in masks for each in processors))\n"
        "print(sorted(os.sched_getaffinity(0)) == processors)"
    )
    command = [sys.executable, "-c", program, str(tiny_model)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\nTrue\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has affinity masks")
def test_a_process_held_on_one_processor_sees_one() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from e5onnx.cpu import available_processors; print(available_processors())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"
