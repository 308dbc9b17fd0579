"""Damaged files, full disks, too little memory, and very many calls."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from e5onnx import Encoder, InferenceError, ModelFolderError
from e5onnx.engine import Output
from folders import put_file
from texts import TEXTS

linux = pytest.mark.skipif(sys.platform != "linux", reason="measured and limited as Linux does")
_CLI = [sys.executable, "-m", "e5onnx"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["model{}.onnx", "model{}.onnx_data", "tokenizer.json"])
def test_a_flipped_bit_is_found_as_the_model_is_loaded(
    sample_model: Path, tmp_path: Path, precision: str, kind: str
) -> None:
    folder = shutil.copytree(sample_model, tmp_path / "model")
    name = kind.format("" if precision == "fp32" else "_int8")
    path = folder / (name if name == "tokenizer.json" else f"onnx/{name}")
    size = path.stat().st_size
    for position in (0, size // 2, size - 1):
        with path.open("r+b") as stream:
            stream.seek(position)
            byte = stream.read(1)[0]
            stream.seek(position)
            stream.write(bytes([byte ^ 1]))
        with pytest.raises(ModelFolderError, match=f"{path} was changed after the export: its SHA-256 is"):
            Encoder(folder, precision="fp32" if precision == "fp32" else "int8")
        with path.open("r+b") as stream:
            stream.seek(position)
            stream.write(bytes([byte]))
    Encoder(folder, precision="fp32" if precision == "fp32" else "int8")


def test_vectors_that_are_not_finite_are_an_error(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    name = "onnx/model.onnx_data"
    put_file(folder, tiny_model, name, b"\0\0\xc0\x7f" * ((folder / name).stat().st_size // 4))  # all NaN
    encoder = Encoder(folder)
    outputs: tuple[Output, ...] = ("sentence_embedding", "pooled_embedding")
    for output in outputs:
        with pytest.raises(InferenceError, match=r"gives NaN or infinity for token ids of shape \(1, 3\)"):
            encoder.encode("text", output_value=output)


@linux
def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = 'mount -t tmpfs -o size=100k tmpfs "$1"; cd "$1"; shift; "$@"; status=$?; ls -A >&2; exit $status'
    isolated = ["unshare", "--mount", "sh", "-c", mount, "sh", str(small)]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    texts = tmp_path / "texts.txt"
    texts.write_text("a text\n" * 2000)  # 384 kB of vectors
    command = [*isolated, *_CLI, "embed", str(tiny_model), str(texts), "--output", "vectors.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("e5onnx: error: ")
    assert "space left" in done.stderr or "requested" in done.stderr  # numpy's own words for it
    assert done.stderr.count("\n") == 1


@linux
def test_too_little_memory_is_an_error_and_no_crash(sample_model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(("word " * 300 + "\n") * 64)
    command = [*_CLI, "embed", str(sample_model), str(texts), "--threads", "1", "--output", str(tmp_path / "x.npy")]
    failed = []
    for megabytes in (200, 260, 350, 2000):
        limited = ["sh", "-c", f'ulimit -v {megabytes * 1024}; exec "$@"', "sh", *command]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # it maps 30 MB a thread
        done = subprocess.run(limited, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode in (0, 1), done.stderr  # not killed by a signal
        if done.returncode:
            failed.append(megabytes)
            last = done.stderr.splitlines()[-1]
            assert last.startswith(("e5onnx: error: ", "ImportError: ", "MemoryError")), done.stderr
    assert 200 in failed
    assert 2000 not in failed


_SOAK = """
import random, sys
from e5onnx import Encoder
encoder = Encoder(sys.argv[1], threads=2)
random.seed(0)
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024
def calls(number):
    for _ in range(number):
        encoder.encode(["word " * random.randrange(1, 500) for _ in range(random.choice([1, 1, 1, 9]))])
calls(500)
before = resident()
calls(1200)
print(resident() - before)
"""


@linux
def test_memory_stays_flat_over_many_calls(tiny_model: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _SOAK, str(tiny_model)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 10  # MB; benchmarks/soak.py has the long run


def test_the_order_and_company_of_calls_leave_no_trace(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model)
    expected = encoder.encode(TEXTS)
    generator = random.Random(0)
    for _ in range(200):
        chosen = generator.choices(range(len(TEXTS)), k=generator.randrange(1, 20))
        vectors = encoder.encode([TEXTS[i] for i in chosen])
        np.testing.assert_allclose(vectors, expected[chosen], rtol=0, atol=1e-5)
