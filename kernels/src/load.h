// From the inputs and attributes of a node `BertEncoder` to a `Model`.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "model.h"

namespace e5onnx {

// What this library cannot run; the message is for users.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tensor {
  int type;  // ort::ElementType
  std::vector<int64_t> shape;
  const void* data;
};

// A node as export/e5onnx_export/build.py writes it. Tensors stay where they are as long as the node lives.
struct Node {
  int64_t heads = 0, padding_id = -1;
  float scale = 0, epsilon = 0;
  std::string activation;
  std::map<std::string, Tensor> inputs;  // all but input_ids and attention_mask
};

struct Loaded {
  Model model;
  const Kernels* kernels;
  std::vector<std::unique_ptr<Block>> memory;  // that `model` points to
};

// Throws Refused if the node is not covered, damaged, or needs instructions that the processor does not have.
Loaded load(const Node& node);

}  // namespace e5onnx
