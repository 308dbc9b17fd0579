// Which kernels this processor can run.
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace e5onnx {

#if defined(__x86_64__)

extern const Kernels kAvx512Bf16Int8, kAvx512Bf16, kAvx512VnniInt8, kAvxVnniInt8, kAvx2Int8;

namespace {

// gcc 12 and clang 14 do not know this name in __builtin_cpu_supports: leaf 7, subleaf 1, bit 4 of EAX.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

}  // namespace

const Kernels* find_kernels(bool int8) {
  // These also ask whether the system saves the registers.
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  if (has_avx512 && __builtin_cpu_supports("avx512bf16")) return int8 ? &kAvx512Bf16Int8 : &kAvx512Bf16;
  if (!int8) return nullptr;
  if (has_avx512) return &kAvx512VnniInt8;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
  return has_avx_vnni() ? &kAvxVnniInt8 : &kAvx2Int8;
}

#elif defined(__aarch64__)

extern const Kernels kNeonDotprodInt8, kNeonI8mmInt8;

const Kernels* find_kernels(bool int8) {
  bool has_dotprod = false, has_i8mm = false;
#if defined(__linux__)
  has_dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  has_i8mm = getauxval(AT_HWCAP2) & HWCAP2_I8MM;
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  has_dotprod = has("hw.optional.arm.FEAT_DotProd");
  has_i8mm = has("hw.optional.arm.FEAT_I8MM");
#endif
  if (!int8 || !has_dotprod) return nullptr;
  return has_i8mm ? &kNeonI8mmInt8 : &kNeonDotprodInt8;
}

#else

const Kernels* find_kernels(bool) { return nullptr; }

#endif

}  // namespace e5onnx
