// The encoder: which thread does what. The loops are those of a `Kernels` table.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "model.h"

namespace e5onnx {

// Texts without padding: their tokens are the rows of one matrix.
struct Batch {
  struct Text {
    int first;  // row
    int keys;   // rows that all rows of the text attend to
    int rows;   // `keys`, and one more if the first token is masked: cls pooling reads it all the same
  };
  std::vector<Text> texts;
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;  // rows of the position table
  std::vector<int32_t> places;     // in the text, for distances
  std::vector<int64_t> outputs;    // rows of the output
};

// Runs tasks 0 to count - 1, each once, on whatever threads there are, and returns when all are done.
class Parallel {
 public:
  virtual ~Parallel() = default;
  virtual void run(size_t count, void (*task)(void*, size_t), void* data) const = 0;
};

class Encoder {
 public:
  Encoder(Model model, const Kernels& kernels, int threads)
      : model_(std::move(model)), kernels_(kernels), threads_(threads) {}

  // Writes the last hidden state of every row of the batch to its row of `output`, [any, hidden]. Threads may call it
  // at the same time.
  void run(const Batch& batch, const Parallel& parallel, float* output);

 private:
  struct Rows;
  struct Scratch;
  struct Lane;
  class Run;
  Model model_;
  const Kernels& kernels_;
  int threads_;
  Pool<Block> pool_;
};

}  // namespace e5onnx
