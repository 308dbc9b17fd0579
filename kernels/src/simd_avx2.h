// AVX2 with FMA, and the int8 products of AVX-VNNI if E5ONNX_AVX_VNNI is defined. See simd_avx512.h for what each
// function does; without BF16, attention is in float32.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace e5onnx {
namespace {

constexpr int kLanes = 8;
using Float = __m256;
using Int = __m256i;

// Of 16 registers, 6 rows by 2 vectors are 12. Without VNNI a product needs two registers more, for the pairs.
#ifdef E5ONNX_AVX_VNNI
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
constexpr int kVectors = 2;
constexpr int kQueries = 6;

inline Float load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Float x) { _mm256_storeu_ps(to, x); }
inline Float fill(float x) { return _mm256_set1_ps(x); }
inline Float zeros() { return _mm256_setzero_ps(); }
inline Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Float negative_multiply_add(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
inline Float smaller(Float a, Float b) { return _mm256_min_ps(a, b); }
inline Float larger(Float a, Float b) { return _mm256_max_ps(a, b); }
inline float sum(Float x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline float smallest(Float x) {
  __m128 y = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_min_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_min_ss(y, _mm_movehdup_ps(y)));
}
inline float largest(Float x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline Float round(Float x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// `whole` is at most 0; below the smallest exponent the result is not 0, but 1e-38.
inline Float times_power_of_two(Float x, Float whole) {
  const Int exponent = _mm256_cvtps_epi32(larger(whole, fill(-126)));
  return x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
}
inline Float first_scores(Float x, int count) {
  const Int is_after = _mm256_cmpgt_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(count - 1));
  return _mm256_blendv_ps(x, fill(-1e30f), _mm256_castsi256_ps(is_after));
}
inline Float gather(const float* table, const int32_t* places) {
  return _mm256_i32gather_ps(table, _mm256_loadu_si256(reinterpret_cast<const Int*>(places)), 4);
}
inline void store_bytes(uint8_t* to, Float x) {
  const Int whole = _mm256_cvtps_epi32(x);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}
inline Float load_signed_bytes(const int8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
inline void prefetch(const void* from) { _mm_prefetch(from, _MM_HINT_T1); }

inline Int broadcast(const void* four_bytes) {
  int32_t bits;
  std::memcpy(&bits, four_bytes, sizeof bits);
  return _mm256_set1_epi32(bits);
}
inline Int load_bits(const void* from) { return _mm256_loadu_si256(static_cast<const Int*>(from)); }
inline void store_bits(void* to, Int x) { _mm256_storeu_si256(static_cast<Int*>(to), x); }
inline Int no_bits() { return _mm256_setzero_si256(); }
inline Float as_floats(Int x) { return _mm256_castsi256_ps(x); }

struct Int8 {
  using Value = uint8_t;
  using Total = int32_t;
  using Sum = Int;
  static constexpr int kDepth = 4;
  static constexpr float kShift = 0;  // taken from bytes of `a` before they are multiplied
  static Sum zero() { return no_bits(); }
  static Sum dot(Sum total, Int a, Int b) {
#ifdef E5ONNX_AVX_VNNI
    return _mm256_dpbusd_avx_epi32(total, a, b);
#else
    // Two products are added in 16 bits: load.cpp refuses weights that could overflow.
    const Int pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
  static void store_sum(Total* to, Sum x) { store_bits(to, x); }
  static Float total(const Total* from) { return _mm256_cvtepi32_ps(load_bits(from)); }
};

inline void transpose(Int (&r)[8]) {
  Int t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = t[i];
}

}  // namespace
}  // namespace e5onnx
