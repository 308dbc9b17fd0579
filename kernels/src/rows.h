// What is done to rows one by one: embeddings, layer normalisation, quantising. Included by isa_*.cpp after a simd_*.h.
#pragma once

#include <cmath>

#include "kernels.h"

namespace e5onnx {
namespace {

constexpr int kStride = 4 * kLanes;  // four sums at a time, to hide the latency of an addition

// Scale and zero point that cover the row and zero. Nothing is clipped, and the batch has no say in it. `nothing` is 0,
// or NaN where the row holds NaN or infinity: the smallest and the largest leave NaN out.
inline Range range_of(float low, float high, float nothing) {
  const float scale = (high - low) / 255 + nothing;
  if (!(scale > 0)) return {scale == 0 ? 1 : scale, 0};  // zeros, or NaN, which goes on into the products
  return {scale, std::nearbyint(-low / scale)};
}

inline void quantize_row(const float* from, int columns, Range range, uint8_t* to) {
  const Float inverse = fill(1 / range.scale), zero = fill(range.zero);
  for (int j = 0; j < columns; j += kLanes) store_bytes(to + j, multiply_add(load(from + j), inverse, zero));
}

template <class Format>
void quantize(const void* from, int rows, int columns, Activations to) {
  for (int row = 0; row < rows; row++) {
    const float* values = static_cast<const float*>(from) + static_cast<long>(row) * columns;
    Float low[4] = {zeros(), zeros(), zeros(), zeros()}, high[4] = {zeros(), zeros(), zeros(), zeros()};
    Float nothing[4] = {zeros(), zeros(), zeros(), zeros()};
    for (int j = 0; j < columns; j += kStride) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const Float x = load(values + j + i * kLanes);
        low[i] = smaller(x, low[i]);
        high[i] = larger(x, high[i]);
        nothing[i] = multiply_add(x, zeros(), nothing[i]);
      }
    }
    to.ranges[row] = range_of(smallest(smaller(smaller(low[0], low[1]), smaller(low[2], low[3]))),
                              largest(larger(larger(high[0], high[1]), larger(high[2], high[3]))),
                              sum((nothing[0] + nothing[1]) + (nothing[2] + nothing[3])));
    quantize_row(values, columns, to.ranges[row], static_cast<uint8_t*>(to.values) + static_cast<long>(row) * columns);
  }
}

// Normalises the row in `hidden`, whose sum is known by lanes, and writes it to row `number` of `input`.
template <class Format>
inline void normalize_row(float* hidden, int columns, Float total, const Norm& norm, float epsilon, Activations input,
                          int number) {
  const Float mean = fill(sum(total) / static_cast<float>(columns));
  Float squares[4] = {zeros(), zeros(), zeros(), zeros()};
  for (int j = 0; j < columns; j += kStride) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const Float x = load(hidden + j + i * kLanes) - mean;
      squares[i] = multiply_add(x, x, squares[i]);
    }
  }
  const float variance = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(columns);
  const Float inverse = fill(1 / std::sqrt(variance + epsilon));
  auto* values = static_cast<typename Format::Value*>(input.values) + static_cast<long>(number) * columns;
  if constexpr (Format::kDepth == 4) {
    Float low = zeros(), high = zeros();
    for (int j = 0; j < columns; j += kLanes) {
      const Float x = multiply_add((load(hidden + j) - mean) * inverse, load(norm.scale + j), load(norm.shift + j));
      store(hidden + j, x);
      if (!norm.smoothing) continue;
      const Float smoothed = x * load(norm.smoothing + j);
      low = smaller(smoothed, low);
      high = larger(smoothed, high);
    }
    if (!norm.smoothing) return;  // the last layer
    const Range range = range_of(smallest(low), largest(high), 0 * variance);
    const Float steps = fill(1 / range.scale), zero = fill(range.zero);
    input.ranges[number] = range;
    for (int j = 0; j < columns; j += kLanes)
      store_bytes(values + j, multiply_add(load(hidden + j) * load(norm.smoothing + j), steps, zero));
  } else {
    for (int j = 0; j < columns; j += 2 * kLanes) {
      Float x[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        const int at = j + i * kLanes;
        x[i] = multiply_add((load(hidden + at) - mean) * inverse, load(norm.scale + at), load(norm.shift + at));
        store(hidden + at, x[i]);
      }
      Format::store_pair(values + j, x[0], x[1]);
    }
  }
}

template <class Format>
void add_norm(const float* sums, int rows, int columns, const Norm& norm, float epsilon, float* hidden,
              Activations input) {
  for (int row = 0; row < rows; row++) {
    const float* add = sums + static_cast<long>(row) * columns;
    float* to = hidden + static_cast<long>(row) * columns;
    Float total[4] = {zeros(), zeros(), zeros(), zeros()};
    for (int j = 0; j < columns; j += kStride) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const Float x = load(to + j + i * kLanes) + load(add + j + i * kLanes);
        store(to + j + i * kLanes, x);
        total[i] = total[i] + x;
      }
    }
    normalize_row<Format>(to, columns, (total[0] + total[1]) + (total[2] + total[3]), norm, epsilon, input, row);
  }
}

template <class Format>
void embed(const Model& model, const int32_t* ids, const int32_t* positions, int rows, float* hidden,
           Activations input) {
  const int columns = model.hidden;
  for (int row = 0; row < rows; row++) {
    const float* position = model.position_table + static_cast<long>(positions[row]) * columns;
    const long word = static_cast<long>(ids[row]) * columns;
    float* to = hidden + static_cast<long>(row) * columns;
    Float total = zeros();
    for (int j = 0; j < columns; j += kLanes) {
      Float x;
      if constexpr (Format::kDepth == 4)
        x = multiply_add(load_signed_bytes(model.word_steps + word + j), fill(model.word_scales[ids[row]]),
                         load(position + j));
      else
        x = load(model.word_table + word + j) + load(position + j);
      store(to + j, x);
      total = total + x;
    }
    normalize_row<Format>(to, columns, total, model.embedding_norm, model.epsilon, input, row);
  }
}

}  // namespace
}  // namespace e5onnx
