// Products of rows with packed weights, and what follows on each block of them. Included by isa_*.cpp after a simd_*.h.
#pragma once

#include "kernels.h"

namespace e5onnx {
namespace {

constexpr int kColumns = kVectors * kLanes;                            // of a panel
constexpr int kLines = static_cast<int>(kVectors * sizeof(Int) / 64);  // cache lines that a step reads

// [rows, 4 * steps bytes] times a panel, into `totals`. The compiler spills accumulators if this is not a function of
// its own: gcc 12 then reaches half of the speed. `next` points to what the loop fetches into the second-level cache
// while it works, kAhead lines a step.
template <class Format, int kRowCount, int kAhead>
[[gnu::noinline]] void dot(const typename Format::Value* a, long stride, const char* panel, long steps,
                           typename Format::Total* totals, const char* next) {
  typename Format::Sum sums[kRowCount][kVectors];
#pragma GCC unroll 32
  for (auto& row : sums) {
#pragma GCC unroll 8
    for (auto& sum : row) sum = Format::zero();
  }
  for (long step = 0; step < steps; step++, panel += sizeof(Int) * kVectors) {
    Int weights[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) weights[j] = load_bits(panel + j * sizeof(Int));
#pragma GCC unroll 8
    for (int line = 0; line < kAhead; line++) prefetch(next + (step * kAhead + line) * 64);
#pragma GCC unroll 32
    for (int i = 0; i < kRowCount; i++) {
      const Int value = broadcast(a + i * stride + step * Format::kDepth);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j++) sums[i][j] = Format::dot(sums[i][j], value, weights[j]);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kRowCount; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) Format::store_sum(totals + i * kColumns + j * kLanes, sums[i][j]);
  }
}

template <class Format, int kAhead, int kRowCount = kRows>
inline void dot_rows(int rows, const typename Format::Value* a, long stride, const char* panel, long steps,
                     typename Format::Total* totals, const char* next) {
  if (rows == kRowCount) return dot<Format, kRowCount, kAhead>(a, stride, panel, steps, totals, next);
  if constexpr (kRowCount > 1) dot_rows<Format, kAhead, kRowCount - 1>(rows, a, stride, panel, steps, totals, next);
}

// y = x W + b for a block of rows and two vectors of columns; calls `use(row, column, y, the next y)`.
template <class Format, class Use>
inline void finish(const typename Format::Total* totals, int begin, int end, const Range* ranges, const Linear& linear,
                   int column, Use use) {
  const Float bias[2] = {load(linear.bias + column), load(linear.bias + column + kLanes)};
  Float scale[2], column_sums[2];
  if constexpr (Format::kDepth == 4) {
    for (int j = 0; j < 2; j++) {
      scale[j] = load(linear.scale + column + j * kLanes);
      column_sums[j] = load(linear.column_sums + column + j * kLanes);
    }
  }
  for (int row = begin; row < end; row++, totals += kColumns) {
    Float y[2];
    for (int j = 0; j < 2; j++) {
      y[j] = Format::total(totals + j * kLanes);
      if constexpr (Format::kDepth == 4) {
        y[j] = negative_multiply_add(fill(ranges[row].zero - Format::kShift), column_sums[j], y[j]) * scale[j];
        y[j] = multiply_add(fill(ranges[row].scale), y[j], bias[j]);
      } else {
        y[j] = y[j] + bias[j];
      }
    }
    use(row, column, y[0], y[1]);
  }
}

// Calls `use` of `finish` for every row, and every column of the panels in [first, last).
template <class Format, class Use>
inline void product(Activations x, int rows, int inputs, const Linear& linear, int first, int last, Use use) {
  using Value = typename Format::Value;
  const auto* values = static_cast<const Value*>(x.values);
  const int blocks = (rows + kRows - 1) / kRows;
  const long steps = inputs / Format::kDepth, panel_bytes = steps * static_cast<long>(sizeof(Int)) * kVectors;
  alignas(64) typename Format::Total totals[kRows * kColumns];
  for (int number = first; number < last; number++) {
    const char* panel = static_cast<const char*>(linear.weight) + number * panel_bytes;
    for (int block = 0; block < blocks; block++) {
      const int begin = static_cast<int>(static_cast<long>(rows) * block / blocks);
      const int end = static_cast<int>(static_cast<long>(rows) * (block + 1) / blocks);
      const Value* a = values + static_cast<long>(begin) * inputs;
      // The last blocks fetch the next panel, each a part: 36 tokens in bfloat16 take 3.5 ms in place of 4.4.
      const int left = blocks - 1 - block;
      if (blocks < kLines && left == 0)
        dot_rows<Format, kLines>(end - begin, a, inputs, panel, steps, totals, panel + panel_bytes);
      else if (left < kLines && blocks >= kLines)
        dot_rows<Format, 1>(end - begin, a, inputs, panel, steps, totals, panel + panel_bytes + left * steps * 64);
      else
        dot_rows<Format, 0>(end - begin, a, inputs, panel, steps, totals, nullptr);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; j += 2)
        finish<Format>(totals + j * kLanes, begin, end, x.ranges, linear, number * kColumns + j * kLanes, use);
    }
  }
}

template <class Format>
void project(Activations x, int rows, int inputs, const Linear& linear, int first, int last, void* to, long stride) {
  auto* elements = static_cast<typename Element::Value*>(to);
  product<Format>(x, rows, inputs, linear, first, last, [=](int row, int column, Float low, Float high) {
    Element::store_pair(elements + row * stride + column, low, high);
  });
}

template <class Format>
void multiply(Activations x, int rows, int inputs, const Linear& linear, int first, int last, float* to, long stride) {
  product<Format>(x, rows, inputs, linear, first, last, [=](int row, int column, Float low, Float high) {
    Float32::store_pair(to + row * stride + column, low, high);
  });
}

// x Phi(x) (Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415). Phi(x) - 1/2 is x times a
// polynomial in x^2, fitted to the largest error of Phi on [-4.25, 4.25], 5e-5; outside, Phi is 0 or 1 to 6e-5. The
// coefficients are those of t = 2 (x / 4.25)^2 - 1. bfloat16 rounds to 2e-3 of a value, int8 to more.
struct Gelu {
  static constexpr float kEnd = 4.25f;
  static constexpr float kExact[] = {0.16592377f,  -0.080822155f, 0.056133267f, -0.038743574f,
                                     0.023125334f, -0.015569519f, 0.013019297f, -0.0054315329f};
  static constexpr float kByTanh[] = {0.1659665f,   -0.080931678f, 0.056262001f, -0.03853881f,
                                      0.022192456f, -0.015031844f, 0.013763451f, -0.0060477257f};
  Float coefficients[8];

  explicit Gelu(Activation activation) {
    const float* from = activation == Activation::kGelu ? kExact : kByTanh;
    for (int i = 0; i < 8; i++) coefficients[i] = fill(from[i]);
  }
  Float operator()(Float x) const {
    const Float inside = smaller(larger(x, fill(-kEnd)), fill(kEnd));
    const Float t = multiply_add(inside * inside, fill(2 / (kEnd * kEnd)), fill(-1));
    Float y = coefficients[7];
#pragma GCC unroll 8
    for (int i = 6; i >= 0; i--) y = multiply_add(y, t, coefficients[i]);
    return x * multiply_add(inside, y, fill(0.5f));
  }
};

template <class Format>
void activate(Activations x, int rows, int inputs, const Linear& linear, Activation activation, const float* smoothing,
              int first, int last, void* to, long stride) {
  const Gelu gelu(activation);
  product<Format>(x, rows, inputs, linear, first, last, [=](int row, int column, Float low, Float high) {
    const long at = row * stride + column;
    if constexpr (Format::kDepth == 4)
      Float32::store_pair(static_cast<float*>(to) + at, gelu(low) * load(smoothing + column),
                          gelu(high) * load(smoothing + column + kLanes));
    else
      Format::store_pair(static_cast<typename Format::Value*>(to) + at, gelu(low), gelu(high));
  });
}

}  // namespace
}  // namespace e5onnx
