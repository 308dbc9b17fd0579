// ARM64 with int8 dot products (FEAT_DotProd), and mixed signs (FEAT_I8MM) if E5ONNX_I8MM is defined. See
// simd_avx512.h for what each function does; attention is in float32.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace e5onnx {
namespace {

constexpr int kLanes = 4;
using Float = float32x4_t;
using Int = uint8x16_t;

constexpr int kRows = 6;  // by 4 vectors: 24 of 32 registers
constexpr int kVectors = 4;
constexpr int kQueries = 8;

inline Float load(const float* from) { return vld1q_f32(from); }
inline void store(float* to, Float x) { vst1q_f32(to, x); }
inline Float fill(float x) { return vdupq_n_f32(x); }
inline Float zeros() { return vdupq_n_f32(0); }
inline Float multiply_add(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
inline Float negative_multiply_add(Float a, Float b, Float c) { return vfmsq_f32(c, a, b); }
inline Float smaller(Float a, Float b) { return vminq_f32(a, b); }
inline Float larger(Float a, Float b) { return vmaxq_f32(a, b); }
inline float sum(Float x) { return vaddvq_f32(x); }
inline float smallest(Float x) { return vminvq_f32(x); }
inline float largest(Float x) { return vmaxvq_f32(x); }
inline Float round(Float x) { return vrndnq_f32(x); }
// `whole` is at most 0; below the smallest exponent the result is not 0, but 1e-38.
inline Float times_power_of_two(Float x, Float whole) {
  const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(larger(whole, fill(-126))), vdupq_n_s32(127));
  return x * vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
}
inline Float first_scores(Float x, int count) {
  const int32_t lanes[] = {0, 1, 2, 3};
  return vbslq_f32(vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(count)), x, fill(-1e30f));
}
inline Float gather(const float* table, const int32_t* places) {
  const float values[] = {table[places[0]], table[places[1]], table[places[2]], table[places[3]]};
  return load(values);
}
inline void store_bytes(uint8_t* to, Float x) {
  const uint16x4_t words = vqmovun_s32(vcvtnq_s32_f32(x));
  vst1_lane_u32(reinterpret_cast<uint32_t*>(to), vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words))), 0);
}
inline Float load_signed_bytes(const int8_t* from) {
  int32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bits))))));
}
inline void prefetch(const void* from) { __builtin_prefetch(from, 0, 2); }

inline Int broadcast(const void* four_bytes) {
  uint32_t bits;
  std::memcpy(&bits, four_bytes, sizeof bits);
  return vreinterpretq_u8_u32(vdupq_n_u32(bits));
}
inline Int load_bits(const void* from) { return vld1q_u8(static_cast<const uint8_t*>(from)); }
inline void store_bits(void* to, Int x) { vst1q_u8(static_cast<uint8_t*>(to), x); }
inline Int no_bits() { return vdupq_n_u8(0); }
inline Float as_floats(Int x) { return vreinterpretq_f32_u8(x); }

struct Int8 {
  using Value = uint8_t;
  using Total = int32_t;
  using Sum = int32x4_t;
  static constexpr int kDepth = 4;
  static Sum zero() { return vdupq_n_s32(0); }
#ifdef E5ONNX_I8MM
  static constexpr float kShift = 0;
  static Sum dot(Sum total, Int a, Int b) { return vusdotq_s32(total, a, vreinterpretq_s8_u8(b)); }
#else
  // Both factors are signed: activations are those less 128, which takes 128 from the zero point.
  static constexpr float kShift = 128;
  static Sum dot(Sum total, Int a, Int b) {
    return vdotq_s32(total, vreinterpretq_s8_u8(veorq_u8(a, vdupq_n_u8(128))), vreinterpretq_s8_u8(b));
  }
#endif
  static void store_sum(Total* to, Sum x) { vst1q_s32(to, x); }
  static Float total(const Total* from) { return vcvtq_f32_s32(vld1q_s32(from)); }
};

inline void transpose(Int (&r)[4]) {
  uint32x4_t t[4];
  for (int i = 0; i < 4; i++) t[i] = vreinterpretq_u32_u8(r[i]);
  const uint32x4_t a = vtrn1q_u32(t[0], t[1]), b = vtrn2q_u32(t[0], t[1]);
  const uint32x4_t c = vtrn1q_u32(t[2], t[3]), d = vtrn2q_u32(t[2], t[3]);
  const auto join = [](uint32x4_t x, uint32x4_t y, bool high) {
    const uint64x2_t p = vreinterpretq_u64_u32(x), q = vreinterpretq_u64_u32(y);
    return vreinterpretq_u8_u64(high ? vtrn2q_u64(p, q) : vtrn1q_u64(p, q));
  };
  r[0] = join(a, c, false);
  r[1] = join(b, d, false);
  r[2] = join(a, c, true);
  r[3] = join(b, d, true);
}

}  // namespace
}  // namespace e5onnx
