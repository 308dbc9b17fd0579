// ARM64 with int8 dot products of mixed signs: from Armv8.6 on, such as Graviton 3 and Apple's M2.
#define E5ONNX_I8MM
#include "simd_neon.h"
//
#include "isa.h"

namespace e5onnx {

extern const Kernels kNeonI8mmInt8 = make_kernels<Int8>("neon-i8mm");

}  // namespace e5onnx
