"""The kernels for ARM64, cross-compiled and run by an emulator: they are right there. Nothing is timed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from e5onnx_export.build import DOMAIN
from imports import REPOSITORY
from kernels.building import SOURCES
from kernels.encoders import PADDING_ID, Tensors, last_hidden_state, random_network, random_texts, tensors

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
TYPES = {"float32": 1, "int8": 3, "float16": 10, "uint8": 2}
PROCESSORS = {"neon-dotprod": "neoverse-n1", "neon-i8mm": "max"}
LENGTHS = [1, 5, 17, 40, 33]
LARGEST, MEAN_SQUARE = 0.06, 0.007
"""Of one layer: a byte may be rounded the other way, as in test_operator.py."""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in (COMPILER, EMULATOR):
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp("arm64")
    cmake = (REPOSITORY / "kernels/CMakeLists.txt").read_text()
    flags = {f"isa_{name}": shlex.split(own) for name, own in re.findall(r"add_isa\((neon_\w+) ([^)]*)\)", cmake)}
    assert len(flags) == 2
    sources = [*(SOURCES / f"{name}.cpp" for name in ("dispatch", "encoder", "load", "pack", *flags))]
    objects = []
    for source in (*sources, Path(__file__).with_name("emulated.cpp")):
        objects.append(str(folder / f"{source.stem}.o"))
        options = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{SOURCES}"]
        command = [COMPILER, *options, *flags.get(source.stem, []), "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    subprocess.run([COMPILER, "-static", *objects, "-o", str(folder / "encoder")], check=True)
    return folder / "encoder"


@pytest.mark.parametrize("instructions", PROCESSORS)
@pytest.mark.parametrize(("family", "heads"), [("bert", 2), ("mpnet", 4)])
def test_hidden_states(program: Path, tmp_path: Path, instructions: str, family: str, heads: int) -> None:
    source = tensors(random_network(128, heads, inner=192, layers=1, family=family), "int8")
    ids, mask = random_texts(LENGTHS)
    write(source, [row[:length] for row, length in zip(ids, LENGTHS, strict=True)], tmp_path / "encoder")
    command = [EMULATOR, "-cpu", PROCESSORS[instructions], str(program), "encoder", "states"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, f"{instructions}\n"), result.stderr
    whole, divided = np.fromfile(tmp_path / "states", np.float32).reshape(2, sum(LENGTHS), 128)
    np.testing.assert_array_equal(divided, whole)
    expected = [
        last_hidden_state(source, row, mask_row, rounds_elements=False) for row, mask_row in zip(ids, mask, strict=True)
    ]
    error = whole - np.concatenate([states[:length] for states, length in zip(expected, LENGTHS, strict=True)])
    assert np.abs(error).max() <= LARGEST
    assert np.sqrt((error**2).mean()) <= MEAN_SQUARE


def write(source: Tensors, texts: list[np.ndarray[tuple[int], np.dtype[np.int64]]], path: Path) -> None:
    """Write a node and a batch as emulated.cpp reads them."""
    graph = source.graph().graph
    (node,) = (node for node in graph.node if node.domain == DOMAIN)
    attributes = {each.name: each for each in node.attribute}
    named = dict(source.embeddings)
    for number, layer in enumerate(source.layers):
        named |= {f"layer_{number}_{name}": tensor for name, tensor in layer.items()}
    padding_id = attributes["padding_id"].i
    with path.open("wb") as file:
        head = (attributes["num_heads"].i, padding_id, attributes["scale"].f, attributes["epsilon"].f)
        file.write(" ".join([*map(str, head), attributes["activation"].s.decode(), f"{len(named)}\n"]).encode())
        for name, value in named.items():
            tensor = np.ascontiguousarray(value)
            shape = " ".join(map(str, value.shape))
            file.write(f"{name} {TYPES[tensor.dtype.name]} {value.ndim} {shape} {tensor.nbytes}\n".encode())
            file.write(tensor.tobytes())
        file.write(f"{len(texts)}\n".encode())
        for text in texts:
            positions = np.arange(len(text)) + (0 if padding_id < 0 else PADDING_ID + 1)
            pairs = np.stack([text, positions], axis=1).reshape(-1)
            file.write(f"{len(text)} {' '.join(map(str, pairs))}\n".encode())
