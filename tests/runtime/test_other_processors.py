"""int8 on x86 processors without VNNI, by emulation: onnxruntime's AVX2 kernels add products in saturating 16 bits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from e5onnx import Encoder

_EMULATOR = shutil.which("qemu-x86_64")
_TEXT = "A man is playing a large flute."
# A product whose pairs of weights do saturate tells whether the emulated processor has the limit at all.
_CODE = """
import sys
import numpy as np, onnxruntime
from e5onnx import Encoder

product = onnxruntime.InferenceSession(sys.argv[3], providers=["CPUExecutionProvider"])
sums = product.run(None, {"a": np.full((1, 64), 255, np.uint8)})[0]
vector = Encoder(sys.argv[1], precision="int8", threads=1).encode(sys.argv[4])
np.savez(sys.argv[2], sums=sums, vector=vector)
"""


@pytest.mark.skipif(_EMULATOR is None, reason="qemu-x86_64 is not installed (Debian: qemu-user)")
def test_int8_vectors_are_the_same_without_vnni(sample_model: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.full((64, 8), 127, np.int8), "b")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [1, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 8])],
        [weights],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), tmp_path / "p"
    )
    command = [str(_EMULATOR), "-cpu", "Haswell", sys.executable, "-c", _CODE]
    subprocess.run([*command, sample_model, tmp_path / "out.npz", tmp_path / "p", _TEXT], check=True, timeout=600)
    emulated = np.load(tmp_path / "out.npz")
    assert emulated["sums"].max() < 64 * 255 * 127  # it has
    here = Encoder(sample_model, precision="int8").encode(_TEXT)
    np.testing.assert_allclose(emulated["vector"], here, rtol=0, atol=1e-6)
