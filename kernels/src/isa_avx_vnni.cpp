// AVX2 with AVX-VNNI: Intel's desktop and small-core processors from Alder Lake on.
#define E5ONNX_AVX_VNNI
#include "simd_avx2.h"
//
#include "isa.h"

namespace e5onnx {

extern const Kernels kAvxVnniInt8 = make_kernels<Int8>("avx-vnni");

}  // namespace e5onnx
