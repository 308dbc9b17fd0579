"""What ort_abi.h says of onnxruntime's C API against onnxruntime's own header, where that is installed.

Debian has it in `libonnxruntime-dev`; `ONNXRUNTIME_INCLUDE_DIR` names another folder.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from kernels.building import SOURCES, compiler

HEADER = "onnxruntime_c_api.h"
FOLDERS = [f"{root}/include/onnxruntime{below}" for root in ("/usr", "/usr/local") for below in ("", "/core/session")]
# ours -> onnxruntime's
NUMBERS = {
    "kFail": "ORT_FAIL",
    "kInvalidArgument": "ORT_INVALID_ARGUMENT",
    "kNotImplemented": "ORT_NOT_IMPLEMENTED",
    "kAny": "ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED",
    "kFloat": "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT",
    "kUint8": "ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8",
    "kInt8": "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8",
    "kInt64": "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64",
    "kFloat16": "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16",
    "kRequired": "INPUT_OUTPUT_REQUIRED",
    "kVariadic": "INPUT_OUTPUT_VARIADIC",
}
START = f"""
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include "{HEADER}"
namespace ours {{
#include "ort_abi.h"
}}
namespace ort = ours::e5onnx::ort;

// How the arguments and the result of a function are passed: their sizes, and which are pointers.
template <class T> constexpr size_t size = sizeof(T);
template <> constexpr size_t size<void> = 0;
template <class...> struct Passed;
template <class R, class... A> struct Passed<R (*)(A...)> {{
  static constexpr size_t count = sizeof...(A);
  static constexpr size_t sizes[] = {{size<R>, size<A>...}};
  static constexpr bool pointers[] = {{std::is_pointer_v<R>, std::is_pointer_v<A>...}};
}};
template <class R, class... A> struct Passed<R (*)(A...) noexcept> : Passed<R (*)(A...)> {{}};
template <class A, class B> constexpr bool passed_alike() {{
  if (Passed<A>::count != Passed<B>::count) return false;
  for (size_t i = 0; i <= Passed<A>::count; i++) {{
    if (Passed<A>::sizes[i] != Passed<B>::sizes[i] || Passed<A>::pointers[i] != Passed<B>::pointers[i]) return false;
  }}
  return true;
}}
static_assert(ort::kVersion <= ORT_API_VERSION);
static_assert(sizeof(ours::OrtApi) <= sizeof(::OrtApi));
"""


@pytest.fixture
def include() -> Path:
    folders = [Path(folder) for folder in (os.environ.get("ONNXRUNTIME_INCLUDE_DIR"), *FOLDERS) if folder]
    for folder in folders:
        if (folder / HEADER).is_file():
            return folder
    pytest.skip("onnxruntime's header is not installed")


def compiled(include: Path, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    source = folder / "abi.cpp"
    source.write_text(text)
    command = [compiler(), "-std=c++20", "-fsyntax-only", f"-I{include}", f"-I{SOURCES}", str(source)]
    return subprocess.run(command, capture_output=True, text=True)


def members(text: str, name: str) -> list[str]:
    (body,) = re.findall(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    return re.findall(r"\(\*(\w+)\)", body)


def test_the_api_is_as_the_header_has_it(include: Path, tmp_path: Path) -> None:
    text = (SOURCES / "ort_abi.h").read_text()
    checks = [(f"ort::{name} == static_cast<int>({number})", f"number {name}") for name, number in NUMBERS.items()]
    entries = re.findall(r"using (\w+) =\s+Entry<", text)
    for name in entries:
        checks.append((f"ort::{name}::place == offsetof(::OrtApi, {name}) / sizeof(void*)", f"place of {name}"))
        alike = f"passed_alike<ort::{name}::Function, decltype(::OrtApi::{name})>()"
        checks.append((alike, f"signature of {name}"))
    for structure in ("OrtCustomOp", "OrtApiBase"):
        for name in members(text, structure):
            places = [f"offsetof({side}::{structure}, {name})" for side in ("ours", "")]
            checks.append((" == ".join(places), f"place of {structure}::{name}"))
            types = [f"decltype({side}::{structure}::{name})" for side in ("ours", "")]
            checks.append((f"passed_alike<{', '.join(types)}>()", f"signature of {structure}::{name}"))
    assert len(entries) == text.count("= Entry<") + text.count("=\n    Entry<") > 20
    assert set(re.findall(r"\b(k[A-Z]\w*) = \d", text)) == {*NUMBERS, "kVersion"}
    asserts = "".join(f'static_assert({condition}, "{what}");\n' for condition, what in checks)
    result = compiled(include, START + asserts, tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_wrong_place_is_found(include: Path, tmp_path: Path) -> None:
    wrong = 'static_assert(ort::CreateStatus::place == offsetof(::OrtApi, GetErrorMessage) / sizeof(void*), "moved");'
    result = compiled(include, START + wrong, tmp_path)
    assert result.returncode != 0
    assert "moved" in result.stderr
