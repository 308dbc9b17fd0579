// Which kernels this processor can run.
#include <string_view>

#include "kernels.h"

namespace e5onnx {

#if defined(__x86_64__)
extern const Kernels kAvx512Bf16Int8, kAvx512Bf16, kAvx512VnniInt8;

const Kernels* find_kernels(bool int8) {
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  if (has_avx512 && __builtin_cpu_supports("avx512bf16")) return int8 ? &kAvx512Bf16Int8 : &kAvx512Bf16;
  if (has_avx512 && int8) return &kAvx512VnniInt8;
  return nullptr;
}
#else
const Kernels* find_kernels(bool) { return nullptr; }
#endif

}  // namespace e5onnx
