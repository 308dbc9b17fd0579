// ARM64 with int8 dot products: from Armv8.2 on, such as Graviton 2, Apple's M1, Raspberry Pi 5.
#include "simd_neon.h"
//
#include "isa.h"

namespace e5onnx {

extern const Kernels kNeonDotprodInt8 = make_kernels<Int8>("neon-dotprod");

}  // namespace e5onnx
