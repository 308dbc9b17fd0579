"""Descriptions of machines and recommendations for them, from recorded processors and from this one."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest

from e5onnx.cpu import available_processors
from e5onnx.host import describe_host, recommendations

_XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni avx_vnni avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
_HASWELL = "processor : 0\nmodel name : Intel Core Processor (Haswell)\nflags : sse4_2 fma avx2\n"
_GRAVITON3 = "processor\t: 0\nFeatures\t: fp asimd atomics asimddp sve i8mm bf16\nCPU implementer : 0x41\n"


def recorded(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    return path


def test_instruction_sets_are_read_of_the_first_processor(tmp_path: Path) -> None:
    host = describe_host(recorded(tmp_path, _XEON))
    assert host.processor == "Intel(R) Xeon(R) Platinum 8488C"
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    assert host.instructions == wanted
    assert describe_host(recorded(tmp_path, _GRAVITON3)).instructions == ("asimd", "asimddp", "i8mm", "bf16", "sve")


def test_openvino_is_recommended_for_throughput_where_there_is_amx(tmp_path: Path) -> None:
    with_amx = recommendations(describe_host(recorded(tmp_path, _XEON)))
    assert with_amx["throughput"].startswith("provider openvino")
    assert with_amx["exactness"].startswith("precision fp32")
    assert recommendations(describe_host(recorded(tmp_path, _GRAVITON3)))["throughput"].startswith("precision int8")


def test_kernels_are_recommended_where_they_have_instructions(tmp_path: Path) -> None:
    host = replace(describe_host(recorded(tmp_path, _XEON)), providers={"cpu": "", "kernels": None, "openvino": None})
    advice = recommendations(host)
    assert advice["latency"].startswith("provider kernels (pip install 'e5onnx[kernels]'), precision int8: ")
    assert advice["exactness"].endswith("provider kernels (pip install 'e5onnx[kernels]'), precision bf16")
    installed = recommendations(replace(host, providers={**host.providers, "kernels": "e5onnx-kernels 0.1.0"}))
    assert installed["latency"].startswith("provider kernels, precision int8: ")
    for other in (_HASWELL, _GRAVITON3):
        assert "kernels" not in str(recommendations(describe_host(recorded(tmp_path, other))))


@pytest.mark.parametrize(("text", "known"), [(_XEON, True), (_GRAVITON3, True), (_HASWELL, False), ("", False)])
def test_int8_is_to_be_compared_where_dot_products_are_not_known(tmp_path: Path, text: str, known: bool) -> None:
    latency = recommendations(describe_host(recorded(tmp_path, text)))["latency"]
    assert ("compare it with fp32" in latency) is not known


def test_without_a_description_instructions_are_unknown(tmp_path: Path) -> None:
    assert describe_host(tmp_path / "nowhere").instructions is None
    assert describe_host(recorded(tmp_path, "\0\xff: : :\n")).instructions is None


def test_this_host() -> None:
    host = describe_host()
    assert host.processors == available_processors()
    assert host.providers["cpu"] == f"onnxruntime {importlib.metadata.version('onnxruntime')}"
