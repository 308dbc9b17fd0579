// AVX-512 with VNNI and without BF16: Intel Cascade Lake, Ice Lake, Tiger Lake.
#include "simd_avx512.h"
//
#include "isa.h"

namespace e5onnx {

extern const Kernels kAvx512VnniInt8 = make_kernels<Int8>("avx512-vnni");

}  // namespace e5onnx
