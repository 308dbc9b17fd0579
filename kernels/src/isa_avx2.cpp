// AVX2 without VNNI: Intel from Haswell on, AMD up to Zen 3.
#include "simd_avx2.h"
//
#include "isa.h"

namespace e5onnx {

extern const Kernels kAvx2Int8 = make_kernels<Int8>("avx2", /*adds_pairs=*/true);

}  // namespace e5onnx
