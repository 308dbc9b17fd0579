// AVX-512 with VNNI and BF16: AMD from Zen 4 on, Intel from Cooper Lake and Sapphire Rapids on.
#define E5ONNX_BF16
#include "simd_avx512.h"
//
#include "isa.h"

namespace e5onnx {

extern const Kernels kAvx512Bf16Int8 = make_kernels<Int8>("avx512-bf16");
extern const Kernels kAvx512Bf16 = make_kernels<Bfloat16>("avx512-bf16");

}  // namespace e5onnx
