"""The image, built and run by podman on a base of Debian's packages. It takes two minutes: `make deploy-check`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from e5onnx import Encoder

pytestmark = [
    pytest.mark.skipif("E5ONNX_IMAGE_TEST" not in os.environ, reason="takes two minutes: run `make deploy-check`"),
    pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="makes a base image as root on Linux"),
]
TOOLS = ("podman", "runc", "mmdebstrap")
SOURCES = (".dockerignore", "deploy", "pyproject.toml", "README.md", "LICENSE", "runtime", "export")
LOCKED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges")
# Some hosts may not raise limits, as podman would.
ISOLATED = ("--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
UNTIL_READY = """
import time, urllib.request as request
for _ in range(300):
    try:
        request.urlopen("http://127.0.0.1:8080/health")
        break
    except OSError:
        time.sleep(0.1)
"""


class Podman:
    """podman with a store of its own."""

    def __init__(self, folder: Path) -> None:
        options = ("--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--runtime=runc")
        self._command = ["podman", f"--root={folder / 'store'}", f"--runroot={folder / 'run'}", *options]

    def __call__(self, *arguments: str | Path, timeout: float = 600) -> str:
        """Run a command and return its standard output; fail with its standard error."""
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"podman {arguments[0]}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def python(self, code: str) -> str:
        """Run a program beside the server."""
        return self("exec", "server", "python", "-c", code)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman, with an image `base` that has Debian's Python."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    folder = tmp_path_factory.mktemp("podman")
    base, podman = folder / "base.tar", Podman(folder)
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
    run = partial(subprocess.run, check=True, capture_output=True)
    run(["mmdebstrap", "--variant=minbase", "--include=python3-venv,ca-certificates", suite, base])
    podman("import", base, "base")
    base.unlink()
    try:
        podman("run", *ISOLATED, "--rm", *LOCKED, "base", "true")
    except AssertionError as error:
        pytest.skip(f"podman cannot run a container here: {error}")
    yield podman
    podman("rm", "--all", "--force", "--time=0")
    podman("rmi", "--all", "--force")
    run(["umount", folder / "store/overlay"], check=False)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(podman: Podman, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of a tiny checkpoint, built as without a network: from a folder of wheels."""
    context = tmp_path_factory.mktemp("context")
    for name in SOURCES:
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy
        copy(name, context / name)
    shutil.copytree(tiny_checkpoint, context / "checkpoint")
    version = podman(
        "run", *ISOLATED, "--rm", "base", "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"
    ).strip()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", context / "own", "."], check=True)
    (own,) = (context / "own").iterdir()
    wanted = [f"{own}[export,serve]", "hatchling"]
    binary = ["--only-binary=:all:", f"--python-version={version}", f"--dest={context / 'wheels'}"]
    subprocess.run([*pip, "download", *binary, *wanted], check=True)
    given = {"BASE": "localhost/base", "CHECKPOINT": "checkpoint", "PRECISION": "fp32"}
    given |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/src/wheels"}
    arguments = [f"--build-arg={name}={value}" for name, value in given.items()]
    how = (*ISOLATED, "--isolation=oci", "--layers=false", "--format=docker")
    podman("build", *how, *arguments, f"--file={context}/deploy/Dockerfile", "--tag=e5onnx", context)
    shutil.rmtree(context)
    return "localhost/e5onnx"


def test_it_serves_without_rights_a_network_or_a_file_to_write(podman: Podman, image: str, tiny_model: Path) -> None:
    podman("run", *ISOLATED, "--detach", "--name=server", *LOCKED, image, "--precision", "fp32")
    podman.python(UNTIL_READY)
    podman("healthcheck", "run", "server")
    status = dict(line.split(":\t") for line in podman("exec", "server", "cat", "/proc/1/status").splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
    assert (int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, "1")
    for path in ("/x", "/tmp/x", "/model/x"):
        attempt = f"try: open({path!r}, 'w')\nexcept OSError as error: print(error.strerror)"
        assert podman.python(attempt).strip() == "Read-only file system"
    texts = ["query: a", "passage: b c"]
    body = json.dumps({"input": texts, "input_type": "raw"})
    kind = "{'Content-Type': 'application/json'}"
    call = f"r.Request('http://127.0.0.1:8080/v1/embeddings', {body!r}.encode(), {kind})"
    reply = json.loads(podman.python(f"import urllib.request as r; print(r.urlopen({call}).read().decode())"))
    found = np.array([item["embedding"] for item in reply["data"]])
    np.testing.assert_allclose(found, Encoder(tiny_model).encode(texts), atol=1e-6, rtol=1e-5)
    podman("stop", "--time=60", "server")
    assert podman("inspect", "server", "--format={{.State.ExitCode}}").strip() == "0"
