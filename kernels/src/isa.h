// The tables of kernels of one instruction set, made of the loops. Included by isa_*.cpp after a simd_*.h.
//
// Those files are compiled for instructions that the processor may not have. So all they define is in unnamed
// namespaces, and they use no templates of the standard library: a linker may keep any one copy of such a function.
#pragma once

#include "formats.h"
//
#include "attention.h"
#include "gemm.h"
#include "rows.h"

namespace e5onnx {
namespace {

template <class Format>
constexpr Kernels make_kernels(const char* instructions, bool adds_pairs = false) {
  constexpr bool kIsInt8 = Format::kDepth == 4;
  return {
      .instructions = instructions,
      .columns = kColumns,
      .depth = Format::kDepth,
      .adds_pairs = adds_pairs,
      .activation_bytes = sizeof(typename Format::Value),
      .element_bytes = sizeof(typename Element::Value),
      .middle_bytes = kIsInt8 ? sizeof(float) : sizeof(typename Format::Value),
      .embed = embed<Format>,
      .project = project<Format>,
      .multiply = multiply<Format>,
      .activate = activate<Format>,
      .attention_bytes = attention_bytes,
      .attend = attend<Format>,
      .quantize = kIsInt8 ? quantize<Format> : nullptr,
      .add_norm = add_norm<Format>,
  };
}

}  // namespace
}  // namespace e5onnx
