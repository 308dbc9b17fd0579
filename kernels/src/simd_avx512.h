// AVX-512 with VNNI, and BF16 if E5ONNX_BF16 is defined: the operations that the loops are written in.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace e5onnx {
namespace {

constexpr int kLanes = 16;
using Float = __m512;
using Int = __m512i;

// Blocks of outputs that stay in registers: 6 rows by 4 vectors are 24 of 32 registers, and 4 loads of weights serve
// 24 products, so that the product instruction is the limit and not the loads.
constexpr int kRows = 6;
constexpr int kVectors = 4;
constexpr int kQueries = 12;  // by 2 vectors

inline Float load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Float x) { _mm512_storeu_ps(to, x); }
inline Float fill(float x) { return _mm512_set1_ps(x); }
inline Float zeros() { return _mm512_setzero_ps(); }
inline Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }            // a * b + c
inline Float negative_multiply_add(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
inline Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }
inline Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }
inline float sum(Float x) { return _mm512_reduce_add_ps(x); }
inline float smallest(Float x) { return _mm512_reduce_min_ps(x); }
inline float largest(Float x) { return _mm512_reduce_max_ps(x); }
inline Float round(Float x) { return _mm512_roundscale_ps(x, 0); }
inline Float times_power_of_two(Float x, Float whole) { return _mm512_scalef_ps(x, whole); }
// The first `count` lanes, the others so low that they vanish in a softmax.
inline Float first_scores(Float x, int count) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(-1e30f), static_cast<__mmask16>((1u << count) - 1), x);
}
inline Float gather(const float* table, const int32_t* places) {
  return _mm512_i32gather_ps(_mm512_loadu_si512(places), table, 4);
}
// Whole numbers from 0 to 255, rounded to nearest.
inline void store_bytes(uint8_t* to, Float x) {
  const Int whole = _mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(whole));
}
inline Float load_signed_bytes(const int8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void prefetch(const void* from) { _mm_prefetch(from, _MM_HINT_T1); }

// See formats.h.
struct Int8 {
  using Value = uint8_t;
  using Total = int32_t;
  using Sum = Int;
  static constexpr int kDepth = 4;
  static constexpr float kShift = 0;  // taken from bytes of `a` before they are multiplied
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum dot(Sum total, Int a, Int b) { return _mm512_dpbusd_epi32(total, a, b); }
  static void store_sum(Total* to, Sum x) { _mm512_storeu_si512(to, x); }
  static Float total(const Total* from) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(from)); }
};

inline Int broadcast(const void* four_bytes) {
  int32_t bits;
  std::memcpy(&bits, four_bytes, sizeof bits);
  return _mm512_set1_epi32(bits);
}
inline Int load_bits(const void* from) { return _mm512_loadu_si512(from); }
inline void store_bits(void* to, Int x) { _mm512_storeu_si512(to, x); }
inline Int no_bits() { return _mm512_setzero_si512(); }
inline Float as_floats(Int x) { return _mm512_castsi512_ps(x); }

// A square of 4-byte elements: lane j of row i becomes lane i of row j.
inline void transpose(Int (&r)[16]) {
  Int t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#ifdef E5ONNX_BF16
struct Bfloat16 {
  using Value = uint16_t;
  using Total = float;
  using Sum = Float;
  static constexpr int kDepth = 2;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum dot(Sum total, Int a, Int b) {
    return _mm512_dpbf16_ps(total, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static void store_sum(Total* to, Sum x) { _mm512_storeu_ps(to, x); }
  static Float total(const Total* from) { return _mm512_loadu_ps(from); }
  static void store_pair(Value* to, Float low, Float high) {
    _mm512_storeu_si512(to, reinterpret_cast<Int>(_mm512_cvtne2ps_pbh(high, low)));
  }
  // kDepth rows of as many values as a vector holds, value by value.
  static void interleave(Value* to, Int a, Int b) {
    const Int low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                     36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const Int high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(to + 2 * kLanes, _mm512_permutex2var_epi16(a, high, b));
  }
};
#endif

}  // namespace
}  // namespace e5onnx
