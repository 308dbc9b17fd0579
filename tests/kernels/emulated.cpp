// Runs an encoder without onnxruntime, so that an emulator of another processor can: reads a node and a batch from a
// file, writes the hidden states to another. See test_arm64.py.
#include <fstream>
#include <iostream>

#include "encoder.h"
#include "load.h"

using namespace e5onnx;

namespace {

struct OneThread : Parallel {
  void run(size_t count, void (*task)(void*, size_t), void* data) const override {
    for (size_t number = 0; number < count; number++) task(data, number);
  }
};

}  // namespace

int main(int, char** arguments) try {
  std::ifstream in(arguments[1], std::ios::binary);
  Node node;
  size_t tensors = 0, texts = 0;
  in >> node.heads >> node.padding_id >> node.scale >> node.epsilon >> node.activation >> tensors;
  std::vector<std::vector<char>> memory(tensors);
  for (auto& bytes : memory) {
    std::string name;
    Tensor tensor{};
    size_t axes = 0, size = 0;
    in >> name >> tensor.type >> axes;
    tensor.shape.resize(axes);
    for (auto& axis : tensor.shape) in >> axis;
    in >> size;
    in.get();  // the newline
    bytes.resize(size);
    in.read(bytes.data(), static_cast<std::streamsize>(size));
    tensor.data = bytes.data();
    node.inputs[name] = tensor;
  }
  Batch batch;
  in >> texts;
  for (size_t text = 0; text < texts; text++) {
    int length = 0;
    in >> length;
    const int first = static_cast<int>(batch.ids.size());
    batch.texts.push_back({first, length, length});
    for (int place = 0; place < length; place++) {
      int32_t id = 0, position = 0;
      in >> id >> position;
      batch.outputs.push_back(static_cast<int64_t>(batch.ids.size()));
      batch.ids.push_back(id);
      batch.positions.push_back(position);
      batch.places.push_back(place);
    }
  }
  if (!in) throw std::runtime_error("the file ends too early");
  const Loaded loaded = load(node);
  std::cout << loaded.kernels->instructions << "\n";
  std::ofstream out(arguments[2], std::ios::binary);
  std::vector<float> hidden(batch.ids.size() * static_cast<size_t>(loaded.model.hidden));
  for (const int threads : {1, 2}) {  // whole texts, and a part of the rows or columns
    Encoder(loaded.model, *loaded.kernels, threads).run(batch, OneThread(), hidden.data());
    out.write(reinterpret_cast<const char*>(hidden.data()),
              static_cast<std::streamsize>(hidden.size() * sizeof(float)));
  }
  return out.good() ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
