// What encoder.cpp needs of an instruction set, for one precision. Each isa_*.cpp fills one such table or two.
//
// A row's result never depends on the other rows, on how many there are, or on which columns are computed together.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model.h"

namespace e5onnx {

struct Kernels {
  const char* instructions;
  int columns;              // of a packed panel of weights
  int depth;                // neighbouring inputs that a packed panel keeps together: 4 bytes of them
  bool adds_pairs;          // two products of bytes are added in 16 bits, with saturation
  size_t activation_bytes;  // of an activation that enters a linear layer: 1 or 2
  size_t element_bytes;     // of a query, key or value: 2 or 4
  size_t middle_bytes;      // of the output of attention and of the activation function, before `quantize`

  // hidden = LayerNorm(words + positions), and `input`, the same for the first layer.
  void (*embed)(const Model&, const int32_t* ids, const int32_t* positions, int rows, float* hidden, Activations input);
  // Columns of panels [first, last) of the queries, keys and values.
  void (*project)(Activations x, int rows, int inputs, const Linear&, int first, int last, void* to, long stride);
  // Columns of panels [first, last) as float32.
  void (*multiply)(Activations x, int rows, int inputs, const Linear&, int first, int last, float* to, long stride);
  // Columns of panels [first, last) through the activation function and smoothing.
  void (*activate)(Activations x, int rows, int inputs, const Linear&, Activation, const float* smoothing, int first,
                   int last, void* to, long stride);
  // Bytes of memory that `attend` needs for a text.
  size_t (*attention_bytes)(int keys, int head_size);
  // Heads [first, last) for queries [begin, end) of a text, whose first row is row 0 of `elements`, [rows, 3 * hidden].
  void (*attend)(const Model&, const void* elements, const int32_t* positions, int keys, int begin, int end, int first,
                 int last, void* memory, void* to);
  // Each row with a scale and zero point of its own. Null where activations are not quantised.
  void (*quantize)(const void* from, int rows, int columns, Activations to);
  // hidden = LayerNorm(hidden + sums), and `input`, the same for the next linear layers.
  void (*add_norm)(const float* sums, int rows, int columns, const Norm&, float epsilon, float* hidden,
                   Activations input);
};

// The kernels for this processor (dispatch.cpp), or null.
const Kernels* find_kernels(bool int8);

}  // namespace e5onnx
