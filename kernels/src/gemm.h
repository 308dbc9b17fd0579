// Products of rows with packed weights, and what follows on each block of them. Included by isa_*.cpp after a simd_*.h.
#pragma once

#include "kernels.h"

namespace e5onnx {
namespace {

constexpr int kColumns = kVectors * kLanes;  // of a panel

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

// y = x W + b of one row and panel.
template <class Format>
inline void finish(const typename Format::Total* totals, Range range, const Linear& linear, int column,
                   Float (&y)[kVectors]) {
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; j++) {
    const int at = column + j * kLanes;
    y[j] = Format::total(totals + j * kLanes);
    if constexpr (Format::kDepth == 4) {
      y[j] = negative_multiply_add(fill(range.zero), load(linear.column_sums + at), y[j]) * load(linear.scale + at);
      y[j] = multiply_add(fill(range.scale), y[j], load(linear.bias + at));
    } else {
      y[j] = y[j] + load(linear.bias + at);
    }
  }
}

// Calls `use(row, column, y)` with kVectors vectors of the product for every row and panel in [first, last).
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
      // The last block fetches the next panel: on one thread, 12 tokens take 1.29 ms in place of 1.57.
      if (block == blocks - 1)
        dot_rows<Format, kVectors * sizeof(Int) / 64>(end - begin, a, inputs, panel, steps, totals, panel + panel_bytes);
      else
        dot_rows<Format, 0>(end - begin, a, inputs, panel, steps, totals, nullptr);
      for (int row = begin; row < end; row++) {
        Float y[kVectors];
        finish<Format>(totals + (row - begin) * kColumns, x.ranges ? x.ranges[row] : Range{1, 0}, linear,
                       number * kColumns, y);
        use(row, number * kColumns, y);
      }
    }
  }
}

template <class Format>
void project(Activations x, int rows, int inputs, const Linear& linear, int first, int last, void* to, long stride) {
  auto* elements = static_cast<typename Element::Value*>(to);
  product<Format>(x, rows, inputs, linear, first, last, [=](int row, int column, Float (&y)[kVectors]) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j += 2)
      Element::store_pair(elements + row * stride + column + j * kLanes, y[j], y[j + 1]);
  });
}

template <class Format>
void multiply(Activations x, int rows, int inputs, const Linear& linear, int first, int last, float* to, long stride) {
  product<Format>(x, rows, inputs, linear, first, last, [=](int row, int column, Float (&y)[kVectors]) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) store(to + row * stride + column + j * kLanes, y[j]);
  });
}

// x Phi(x) (Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415). Phi(x) - 1/2 is x times a
// polynomial in x^2, fitted to the largest error on [-4.25, 4.25], 5e-5; outside, Phi is 0 or 1 to 2e-5. The
// coefficients are those of t = 2 (x / 4.25)^2 - 1.
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
  product<Format>(x, rows, inputs, linear, first, last, [=](int row, int column, Float (&y)[kVectors]) {
    const long at = row * stride + column;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) y[j] = gelu(y[j]);
    if constexpr (Format::kDepth == 4) {
      auto* middle = static_cast<float*>(to);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j++)
        store(middle + at + j * kLanes, y[j] * load(smoothing + column + j * kLanes));
    } else {
      auto* middle = static_cast<typename Format::Value*>(to);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j += 2) Format::store_pair(middle + at + j * kLanes, y[j], y[j + 1]);
    }
  });
}

}  // namespace
}  // namespace e5onnx
