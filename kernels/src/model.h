// An encoder as the kernels read it: sizes, and tensors in the order in which the loops take them.
#pragma once

#include <cstdint>
#include <vector>

namespace e5onnx {

enum class Activation { kGelu, kGeluByTanh };

// Row r of a matrix of activations that enters a linear layer. In int8 its values are scale * (byte - zero); in
// bfloat16 the values themselves, and `ranges` is null.
struct Range {
  float scale, zero;
};
struct Activations {
  void* values;  // [rows, columns], columns without a gap
  Range* ranges;
};

// y = x W + b, packed by pack.cpp. In int8, W[k, n] is scale[n] times a whole number, and column_sums[n] is the sum of
// those over k, which takes the zero point of a row out of its products. In bfloat16 both are null.
struct Linear {
  const void* weight = nullptr;
  const float* scale = nullptr;
  const float* column_sums = nullptr;
  const float* bias = nullptr;
};

// Layer normalisation (Ba et al., arXiv 1607.06450). `smoothing` multiplies what goes to the next linear layers
// (Xiao et al., "SmoothQuant", arXiv 2211.10438); null where nothing does.
struct Norm {
  const float* scale = nullptr;
  const float* shift = nullptr;
  const float* smoothing = nullptr;
};

// A layer. `query_key_value` gives the queries, keys and values of all heads, [3 * hidden]; queries are multiplied by
// the scale of attention and by log2(e), so that softmax is a power of two.
struct Layer {
  Linear query_key_value, attention_output, intermediate, output;
  Norm attention_norm, output_norm;
  const float* activated_smoothing = nullptr;
};

struct Model {
  int hidden = 0, feed_forward = 0, heads = 0, head_size = 0;
  float epsilon = 0;
  Activation activation = Activation::kGelu;
  bool is_int8 = false;
  int64_t words = 0, positions = 0;    // rows of the tables
  const float* word_table = nullptr;   // bfloat16: [words, hidden] as in the file
  const int8_t* word_steps = nullptr;  // int8: [words, hidden], each row times its scale
  const float* word_scales = nullptr;
  const float* position_table = nullptr;  // [positions, hidden]
  int64_t padding_id = -1;                // RoBERTa counts positions from padding_id + 1; -1 for BERT, from 0
  const float* distance_bias = nullptr;   // MPNet: [heads, 2 * farthest + 1], times log2(e)
  int farthest = 0;
  Norm embedding_norm;
  std::vector<Layer> layers;
};

}  // namespace e5onnx
