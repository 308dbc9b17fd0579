// Attention of one text (Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1). Included by
// isa_*.cpp after a simd_*.h.
#pragma once

#include "kernels.h"

namespace e5onnx {
namespace {

using Value = Element::Value;

inline int round_up(int count, int unit) { return (count + unit - 1) / unit * unit; }

// Where the parts of `attend`'s memory are, for one head at a time.
struct AttentionMemory {
  char* keys;       // [keys / kLanes][head_size / kDepth][kLanes][kDepth]
  Value* values;    // [keys / kDepth][head_size][kDepth]
  float* scores;    // [kQueries][stride]
  Value* weights;   // [kQueries][stride], the softmax of the scores but for the sum
  int32_t* places;  // [stride], of the keys in the text
  int stride;

  AttentionMemory(void* memory, int count, int head_size) {
    stride = round_up(count, 2 * kLanes);
    auto* at = static_cast<char*>(memory);
    keys = at;
    at += static_cast<size_t>(stride) * head_size * sizeof(Value);
    values = reinterpret_cast<Value*>(at);
    at += static_cast<size_t>(stride) * head_size * sizeof(Value);
    scores = reinterpret_cast<float*>(at);
    at += static_cast<size_t>(stride) * kQueries * sizeof(float);
    weights = reinterpret_cast<Value*>(at);
    at += static_cast<size_t>(stride) * kQueries * sizeof(Value);
    places = reinterpret_cast<int32_t*>(at);
  }
};

size_t attention_bytes(int keys, int head_size) {
  const size_t stride = static_cast<size_t>(round_up(keys, 2 * kLanes));
  return stride * (2 * static_cast<size_t>(head_size) * sizeof(Value) + kQueries * (sizeof(float) + sizeof(Value)) +
                   sizeof(int32_t));
}

// 2^x, to a relative 8e-5 before bfloat16 and 1e-7 otherwise.
inline Float power_of_two(Float x) {
  const Float whole = round(x), f = x - whole;
  if constexpr (Element::kDepth == 2) {
    const Float y = multiply_add(fill(0.05517167f), f, fill(0.24261112f));
    return times_power_of_two(multiply_add(multiply_add(y, f, fill(0.69326099f)), f, fill(0.99992807f)), whole);
  } else {
    Float y = multiply_add(fill(0.00132765f), f, fill(0.00967554f));
    y = multiply_add(y, f, fill(0.05550713f));
    y = multiply_add(y, f, fill(0.2402212f));
    y = multiply_add(y, f, fill(0.69314697f));
    return times_power_of_two(multiply_add(y, f, fill(1.0f)), whole);
  }
}

inline void pack_keys(const Value* from, long stride, int count, int head_size, char* to) {
  constexpr int kSquare = kLanes * Element::kDepth;  // values in the row of a square of 4-byte elements
  for (int key = 0; key < count; key += kLanes) {
    for (int part = 0; part < head_size; part += kSquare, to += kLanes * sizeof(Int)) {
      Int square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++)
        square[i] = key + i < count ? load_bits(from + (key + i) * stride + part) : no_bits();
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) store_bits(to + i * sizeof(Int), square[i]);
    }
  }
}

inline void pack_values(const Value* from, long stride, int count, int head_size, Value* to) {
  constexpr int kWidth = kLanes * Element::kDepth;
  for (int key = 0; key < count; key += Element::kDepth) {
    for (int part = 0; part < head_size; part += kWidth, to += kWidth * Element::kDepth) {
      const Value* row = from + key * stride + part;
      Element::interleave(to, load_bits(row), key + 1 < count ? load_bits(row + stride) : no_bits());
    }
  }
}

// Scores of kCount queries with kBlocks vectors of keys.
template <int kCount, int kBlocks>
inline void score(const Value* queries, long stride, const char* keys, int head_size, float* scores, int score_stride) {
  const int steps = head_size / Element::kDepth;
  Float sums[kCount][kBlocks];
#pragma GCC unroll 16
  for (auto& row : sums) {
#pragma GCC unroll 2
    for (auto& sum : row) sum = zeros();
  }
  for (int step = 0; step < steps; step++) {
    Int b[kBlocks];
#pragma GCC unroll 2
    for (int j = 0; j < kBlocks; j++) b[j] = load_bits(keys + (j * steps + step) * static_cast<long>(sizeof(Int)));
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i++) {
      const Int query = broadcast(queries + i * stride + step * Element::kDepth);
#pragma GCC unroll 2
      for (int j = 0; j < kBlocks; j++) sums[i][j] = Element::dot(sums[i][j], query, b[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kCount; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < kBlocks; j++) store(scores + i * score_stride + j * kLanes, sums[i][j]);
  }
}

// Turns the scores of a query into weights; returns the inverse of their sum.
inline float softmax(float* scores, int count, const float* bias, const int32_t* places, Value* to) {
  const int padded = round_up(count, kLanes), last = padded - kLanes;
  if (bias) {
    for (int j = 0; j < padded; j += kLanes) store(scores + j, load(scores + j) + gather(bias, places + j));
  }
  store(scores + last, first_scores(load(scores + last), count - last));
  Float top = load(scores + last);
  for (int j = 0; j < last; j += kLanes) top = larger(load(scores + j), top);
  const Float highest = fill(largest(top));
  Float sums[2] = {zeros(), zeros()};
  for (int j = 0; j < padded; j += 2 * kLanes) {
    const Float low = power_of_two(load(scores + j) - highest);
    const Float high = j + kLanes < padded ? power_of_two(load(scores + j + kLanes) - highest) : zeros();
    sums[0] = sums[0] + low;
    sums[1] = sums[1] + high;
    Element::store_pair(to + j, low, high);
  }
  return 1 / sum(sums[0] + sums[1]);
}

// kCount queries of one head: scores, softmax, and the mean of the values. `to` gets `head_size` values a row.
template <class Format, int kCount>
[[gnu::noinline]] void attend_rows(const Model& model, const Value* queries, long stride, int count, const float* bias,
                                   const int32_t* places, const AttentionMemory& memory,
                                   void* to) {  // bias: of the head, at distance 0; places: of the queries
  const int head_size = model.head_size, blocks = round_up(count, kLanes) / kLanes;
  const long key_block = static_cast<long>(sizeof(Int)) * (head_size / Element::kDepth);
  int block = 0;
  for (; block + 2 <= blocks; block += 2)
    score<kCount, 2>(queries, stride, memory.keys + block * key_block, head_size, memory.scores + block * kLanes,
                     memory.stride);
  if (block < blocks)
    score<kCount, 1>(queries, stride, memory.keys + block * key_block, head_size, memory.scores + block * kLanes,
                     memory.stride);
  float inverse[kCount];
  for (int i = 0; i < kCount; i++)
    inverse[i] = softmax(memory.scores + i * memory.stride, count, bias ? bias - places[i] : nullptr, memory.places,
                         memory.weights + i * memory.stride);
  const int steps = (count + Element::kDepth - 1) / Element::kDepth;
  for (int part = 0; part < head_size; part += 2 * kLanes) {
    Float sums[kCount][2];
#pragma GCC unroll 16
    for (auto& row : sums) row[0] = row[1] = zeros();
    const auto* values = memory.values + part * Element::kDepth;
    for (int step = 0; step < steps; step++, values += head_size * Element::kDepth) {
      const Int low = load_bits(values), high = load_bits(values + kLanes * Element::kDepth);
#pragma GCC unroll 16
      for (int i = 0; i < kCount; i++) {
        const Int weight = broadcast(memory.weights + i * memory.stride + step * Element::kDepth);
        sums[i][0] = Element::dot(sums[i][0], weight, low);
        sums[i][1] = Element::dot(sums[i][1], weight, high);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i++) {
      const long at = static_cast<long>(i) * model.hidden + part;
      const Float low = sums[i][0] * fill(inverse[i]), high = sums[i][1] * fill(inverse[i]);
      if constexpr (Format::kDepth == 4) {
        store(static_cast<float*>(to) + at, low);
        store(static_cast<float*>(to) + at + kLanes, high);
      } else {
        Format::store_pair(static_cast<typename Format::Value*>(to) + at, low, high);
      }
    }
  }
}

template <class Format, int kCount = kQueries, class... Arguments>
inline void attend_count(int rows, const Arguments&... arguments) {
  if (rows == kCount) return attend_rows<Format, kCount>(arguments...);
  if constexpr (kCount > 1) attend_count<Format, kCount - 1>(rows, arguments...);
}

template <class Format>
void attend(const Model& model, const void* elements, const int32_t* places, int keys, int begin, int end, int first,
            int last, void* memory_block, void* to) {
  const int hidden = model.hidden, head_size = model.head_size;
  const long stride = 3L * hidden;
  const AttentionMemory memory(memory_block, keys, head_size);
  const auto* queries = static_cast<const Value*>(elements);
  if (model.distance_bias) {
    for (int key = 0; key < memory.stride; key++) memory.places[key] = places[key < keys ? key : keys - 1];
  }
  const int rows = end - begin, blocks = (rows + kQueries - 1) / kQueries;
  for (int head = first; head < last; head++) {
    const auto* key = queries + hidden + head * head_size;
    pack_keys(key, stride, keys, head_size, memory.keys);
    pack_values(key + hidden, stride, keys, head_size, memory.values);
    const float* bias =
        model.distance_bias ? model.distance_bias + head * (2L * model.farthest + 1) + model.farthest : nullptr;
    for (int block = 0; block < blocks; block++) {
      const int from = begin + static_cast<int>(static_cast<long>(rows) * block / blocks);
      const int until = begin + static_cast<int>(static_cast<long>(rows) * (block + 1) / blocks);
      const long at = static_cast<long>(from - begin) * hidden + head * head_size;
      void* result =
          static_cast<char*>(to) + at * (Format::kDepth == 4 ? sizeof(float) : sizeof(typename Format::Value));
      attend_count<Format>(until - from, model, queries + from * stride + head * head_size, stride, keys, bias,
                           places + from, memory, result);
    }
  }
}

}  // namespace
}  // namespace e5onnx
