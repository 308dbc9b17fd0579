"""What a container or a serverless function may take away: network, writable disk, processors; and idling."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from e5onnx import Encoder, InputValueError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and control groups are Linux'")
_TESTS = str(Path(__file__).parents[1])
_CGROUP = Path("/sys/fs/cgroup/cpu")


def run(command: list[str], **environment: str) -> str:
    """Run a command with this environment and more, and return what it printed."""
    variables = {**os.environ, "PYTHONPATH": _TESTS, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


_ENCODE = """
import json, sys
from e5onnx import Encoder
print(json.dumps(Encoder(sys.argv[1], precision=sys.argv[2], threads=1).encode("What is an embedding?").tolist()))
"""


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_without_network_and_on_a_read_only_disk_vectors_are_the_same(sample_model: Path, precision: str) -> None:
    isolation = ["unshare", "--net", "--mount", "sh", "-ec"]
    # every file system of this process is made read-only, for it alone
    read_only = (
        "mount --make-rprivate /; "
        "cut -d' ' -f2 /proc/mounts | while read -r mount; do mount -o remount,bind,ro \"$mount\" 2>&- || :; done; "
        'if touch "$HOME/x" 2>&- || touch /tmp/x 2>&-; then exit 9; fi; exec "$@"'
    )
    if shutil.which("unshare") is None or subprocess.run([*isolation, "true"], check=False).returncode:
        pytest.skip("namespaces are not permitted here")
    command = [sys.executable, "-B", "-c", _ENCODE, str(sample_model), precision]
    vector = np.array(json.loads(run([*isolation, read_only, "sh", *command], HOME="/", TMPDIR="/nowhere")))
    expected = Encoder(sample_model, precision="fp32" if precision == "fp32" else "int8", threads=1)
    np.testing.assert_allclose(vector, expected.encode("What is an embedding?"), rtol=0, atol=1e-6)


def test_no_socket_is_asked_for_and_no_file_written(sample_model: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace.log"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", "trace=network,open,openat,creat,mkdir,rename,unlink"]
    python = [sys.executable, "-B", "-c", _ENCODE, str(sample_model), "fp32"]
    done = subprocess.run([*strace, *python], capture_output=True, text=True, check=False, timeout=300)
    if "ptrace" in done.stderr:
        pytest.skip("strace is not permitted here")
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert any("model.onnx_data" in call for call in calls)  # it saw the model being read
    assert [call for call in calls if "socket(" in call or "connect(" in call] == []
    written = [call for call in calls if any(mode in call for mode in ("O_WRONLY", "O_RDWR", "O_CREAT", "mkdir("))]
    assert [call for call in written if "/dev/" not in call and "/proc/" not in call and "ENOENT" not in call] == []


_ENCODE_ALONE = """
import sys
allowed = {"numpy", "onnxruntime", "tokenizers", "e5onnx", "__main__", "cython_runtime", *sys.stdlib_module_names}
before = {name.partition(".")[0] for name in sys.modules}
for name in ("huggingface_hub", "flatbuffers", "google", "packaging", "sympy", "typing_extensions", "tqdm", "requests"):
    sys.modules[name] = None
from e5onnx import Encoder
Encoder(sys.argv[1], precision="int8").encode("text")
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print(*sorted(name for name in loaded - before - allowed if not name.startswith("_")))
"""


def test_only_three_packages_are_needed_and_imported(sample_model: Path) -> None:
    """So that a local folder runs where pip installed them with `--no-deps`."""
    assert run([sys.executable, "-c", _ENCODE_ALONE, str(sample_model)]).split() == []


_IDLE = """
import sys, time
from e5onnx import Encoder
encoder = Encoder(sys.argv[1], threads=2)
encoder.encode(["a text of some words"] * 200)
busy = time.process_time()
time.sleep(1)
print(time.process_time() - busy)
"""


def test_threads_do_not_spin_after_a_call(sample_model: Path) -> None:
    assert float(run([sys.executable, "-c", _IDLE, str(sample_model)])) < 0.2  # spinning takes 1 or more


_THREADS = "import sys; from e5onnx import Encoder; print(Encoder(sys.argv[1]).threads)"


def test_the_environment_overrides_the_number_of_threads(tiny_model: Path) -> None:
    assert run([sys.executable, "-c", _THREADS, str(tiny_model)], E5ONNX_THREADS="3") == "3\n"
    assert run([sys.executable, "-c", _THREADS, str(tiny_model)], E5ONNX_THREADS="") != "3\n"


@pytest.mark.parametrize("given", ["two", "0", "-1", "1.5"])
def test_an_impossible_number_of_threads_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("E5ONNX_THREADS", given)
    with pytest.raises(InputValueError, match="E5ONNX_THREADS must be a whole number from 1"):
        Encoder(tiny_model)
    assert Encoder(tiny_model, threads=1).threads == 1


@pytest.mark.parametrize("given", ["5000", "9" * 5000])
def test_an_absurd_number_of_threads_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("E5ONNX_THREADS", given)
    with pytest.raises(InputValueError, match=r"E5ONNX_THREADS must be at most [0-9]+ on this host"):
        Encoder(tiny_model)


@pytest.fixture
def one_processor() -> Iterator[Path]:
    """A real control group (version 1) with the quota of one processor."""
    group = _CGROUP / f"e5onnx-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (group / "cpu.cfs_quota_us").write_text("100000")
        (group / "cpu.cfs_period_us").write_text("100000")
        yield group
    finally:
        group.rmdir()


def test_a_real_quota_is_seen(one_processor: Path, tiny_model: Path) -> None:
    enter = f'echo $$ > {one_processor}/cgroup.procs; exec "$@"'
    command = [sys.executable, "-c", _THREADS, str(tiny_model)]
    assert run(["sh", "-ec", enter, "sh", *command]) == "1\n"
