#include "load.h"

#include <cmath>
#include <cstring>
#include <numbers>
#include <set>

#include "ort_abi.h"
#include "pack.h"

namespace e5onnx {
namespace {

constexpr int kUnit = 64;  // of which hidden and feed-forward sizes are multiples
constexpr int64_t kMost = 1 << 16;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

float from_half(uint16_t half) {  // IEEE 754 binary16
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  float x = std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
  if (exponent == 31) x = fraction ? NAN : INFINITY;
  return half >> 15 ? -x : x;
}

class Loader {
 public:
  explicit Loader(const Node& node) : node_(node) {}

  Loaded load() {
    read_sizes();
    kernels_ = find_kernels(model_.is_int8);
    if (!kernels_)
      throw Refused(std::string("this processor has no instructions that this library uses for ") +
                    (model_.is_int8 ? "int8" : "bf16"));
    panels_ = {model_.hidden, kernels_->columns, kernels_->depth};
    read_embeddings();
    for (int number = 0; number < layers_; number++) read_layer("layer_" + std::to_string(number) + "_");
    for (const auto& [name, tensor] : node_.inputs) {
      if (!used_.contains(name)) throw Refused("the encoder has an input that this library does not know: " + name);
    }
    return {std::move(model_), kernels_, std::move(memory_)};
  }

 private:
  void read_sizes() {
    const Tensor& words = find("word_table");
    while (node_.inputs.contains("layer_" + std::to_string(layers_) + "_query_weight")) layers_++;
    if (layers_ == 0) throw Refused("the encoder has no layers");
    model_.is_int8 = find("layer_0_query_weight").type == ort::kInt8;
    const Tensor &inner = find("layer_0_intermediate_weight"), &positions = find("position_table");
    if (words.shape.size() != 2 || inner.shape.size() != 2 || positions.shape.size() != 2)
      throw Refused("the encoder's tables are not matrices");
    const int64_t hidden = words.shape[1], feed_forward = inner.shape[1];
    for (const auto& [name, size] : {std::pair{"hidden size", hidden}, {"feed-forward size", feed_forward}}) {
      if (size < kUnit || size > kMost || size % kUnit)
        throw Refused(std::string("the ") + name + " is " + std::to_string(size) + "; only multiples of " +
                      std::to_string(kUnit) + " are covered");
    }
    if (node_.heads < 1 || hidden % node_.heads || (hidden / node_.heads != 32 && hidden / node_.heads != 64))
      throw Refused("the encoder has " + std::to_string(node_.heads) + " heads for a hidden size of " +
                    std::to_string(hidden) + "; only heads of 32 and 64 are covered");
    model_.hidden = static_cast<int>(hidden);
    model_.feed_forward = static_cast<int>(feed_forward);
    model_.heads = static_cast<int>(node_.heads);
    model_.head_size = static_cast<int>(hidden / node_.heads);
    model_.words = words.shape[0];
    model_.positions = positions.shape[0];
    model_.padding_id = node_.padding_id;
    if (model_.words < 1 || model_.words > INT32_MAX || model_.positions < 1 || model_.positions > INT32_MAX)
      throw Refused("the encoder's tables are empty or too large");
    if (!(node_.epsilon >= 0 && node_.epsilon < 1) || !(node_.scale > 0 && node_.scale < 1e6f))
      throw Refused("the encoder's attributes epsilon and scale are not plausible");
    model_.epsilon = node_.epsilon;
    const auto is_one_of = [&](std::initializer_list<const char*> names) {
      for (const char* name : names) {
        if (node_.activation == name) return true;
      }
      return false;
    };
    // the names of build.py's ACTIVATIONS
    if (is_one_of({"gelu", "gelu_python"}))
      model_.activation = Activation::kGelu;
    else if (is_one_of({"gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"}))
      model_.activation = Activation::kGeluByTanh;
    else
      throw Refused("the activation function " + node_.activation + " is not covered, only GELU");
  }

  void read_embeddings() {
    const int64_t hidden = model_.hidden;
    if (model_.is_int8) {
      model_.word_steps = static_cast<const int8_t*>(take("word_table", ort::kInt8, {model_.words, hidden}));
      model_.word_scales = floats("word_scales", {model_.words, 1});
    } else {  // not looked through: most of it never leaves the file, and NaN would reach the output
      model_.word_table = static_cast<const float*>(take("word_table", ort::kFloat, {model_.words, hidden}));
    }
    const std::vector<int64_t> shape{model_.positions, hidden};
    if (find("position_table").type == ort::kFloat16) {
      const auto* half = static_cast<const uint16_t*>(take("position_table", ort::kFloat16, shape));
      const auto count = static_cast<size_t>(model_.positions * hidden);
      auto* table = allocate<float>(count);
      for (size_t i = 0; i < count; i++) table[i] = from_half(half[i]);
      check_finite("position_table", table, count);
      model_.position_table = table;
      give_back(half, count * sizeof *half);
    } else {
      model_.position_table = floats("position_table", shape);
    }
    if (node_.inputs.contains("distance_bias")) {
      const Tensor& bias = find("distance_bias");
      if (bias.shape.size() != 2 || bias.shape[1] % 2 == 0 || bias.shape[1] > kMost)
        throw Refused("distance_bias is " + shape_text(bias.shape));
      const float* from = floats("distance_bias", {node_.heads, bias.shape[1]});
      model_.farthest = static_cast<int>(bias.shape[1] / 2);
      model_.distance_bias =
          scaled(from, static_cast<size_t>(node_.heads * bias.shape[1]), std::numbers::log2e_v<float>);
    }
    model_.embedding_norm = norm("embedding_norm_");
    if (model_.is_int8) model_.embedding_norm.smoothing = floats("layer_0_hidden_smoothing", {hidden});
  }

  void read_layer(const std::string& prefix) {
    const int hidden = model_.hidden, inner = model_.feed_forward;
    Layer layer;
    layer.query_key_value = query_key_value(prefix);
    layer.attention_output = linear(prefix + "attention_output", hidden, hidden);
    layer.attention_norm = norm(prefix + "attention_norm_");
    layer.intermediate = linear(prefix + "intermediate", hidden, inner);
    layer.output = linear(prefix + "output", inner, hidden);
    layer.output_norm = norm(prefix + "output_norm_");
    if (model_.is_int8) {
      layer.attention_norm.smoothing = floats(prefix + "attention_normed_smoothing", {hidden});
      layer.activated_smoothing = floats(prefix + "activated_smoothing", {inner});
      const std::string next = "layer_" + std::to_string(model_.layers.size() + 1) + "_hidden_smoothing";
      if (node_.inputs.contains(next)) layer.output_norm.smoothing = floats(next, {hidden});
      // Every row gets a scale and zero point of its own.
      for (const char* name : {"hidden", "attended", "attention_normed", "activated"}) {
        used_.insert(prefix + name + "_scale");
        used_.insert(prefix + name + "_zero_point");
      }
    }
    model_.layers.push_back(layer);
  }

  // The first two have a column more for each head, build.py's mask. The file's keys and values have no bias.
  Linear query_key_value(const std::string& prefix) {
    const int hidden = model_.hidden, head = model_.head_size;
    const float factor = node_.scale * std::numbers::log2e_v<float>;
    Linear all;
    auto* bias = allocate<float>(static_cast<size_t>(3 * hidden));
    std::fill(bias, bias + 3 * hidden, 0.0f);
    const float* query_bias = floats(prefix + "query_bias", {model_.heads * (head + 1)});
    for (int column = 0; column < hidden; column++)
      bias[column] = query_bias[Columns{hidden, head, head + 1}.in_file(column)] * factor;
    all.bias = bias;
    const auto weights = static_cast<size_t>(3) * static_cast<size_t>(hidden) * static_cast<size_t>(hidden);
    auto* packed = allocate<char>(weights * kernels_->activation_bytes);
    float *scale = nullptr, *sums = nullptr;
    if (model_.is_int8) {
      all.scale = scale = allocate<float>(static_cast<size_t>(3 * hidden));
      all.column_sums = sums = allocate<float>(static_cast<size_t>(3 * hidden));
    }
    all.weight = packed;
    int first = 0;
    for (const char* name : {"query", "key", "value"}) {
      const Columns columns{hidden, head, std::strcmp(name, "value") == 0 ? head : head + 1};
      pack(prefix + name, columns, hidden, first == 0 ? factor : 1,
           packed + static_cast<size_t>(first) * static_cast<size_t>(hidden) * kernels_->activation_bytes,
           scale ? scale + first : nullptr, sums ? sums + first : nullptr);
      first += hidden;
    }
    return all;
  }

  Linear linear(const std::string& name, int inputs, int outputs) {
    Linear result;
    result.bias = floats(name + "_bias", {outputs});
    auto* packed =
        allocate<char>(static_cast<size_t>(inputs) * static_cast<size_t>(outputs) * kernels_->activation_bytes);
    float *scale = nullptr, *sums = nullptr;
    if (model_.is_int8) {
      result.scale = scale = allocate<float>(static_cast<size_t>(outputs));
      result.column_sums = sums = allocate<float>(static_cast<size_t>(outputs));
    }
    result.weight = packed;
    pack(name, {outputs, outputs, outputs}, inputs, 1, packed, scale, sums);
    return result;
  }

  void pack(const std::string& name, Columns columns, int inputs, float factor, char* to, float* scale, float* sums) {
    const int64_t outputs = columns.count / columns.head * columns.stride;
    const auto bytes = static_cast<size_t>(inputs) * static_cast<size_t>(columns.count);
    Panels panels = panels_;
    panels.inputs = inputs;
    const void* weight = take(name + "_weight", model_.is_int8 ? ort::kInt8 : ort::kFloat, {inputs, outputs});
    if (model_.is_int8) {
      const float* scales = floats(name + "_weight_scale", {outputs});
      for (int column = 0; column < columns.count; column++) scale[column] = scales[columns.in_file(column)] * factor;
      auto* packed = reinterpret_cast<int8_t*>(to);
      pack_int8(static_cast<const int8_t*>(weight), outputs, columns, panels, packed, sums);
      if (kernels_->adds_pairs && largest_pair(packed, bytes) > 128)
        throw Refused(name + "_weight holds neighbours that this processor cannot add without an overflow");
    } else if (!pack_bfloat16(static_cast<const float*>(weight), outputs, columns, panels, factor,
                              reinterpret_cast<uint16_t*>(to))) {
      throw Refused(name + "_weight holds NaN or infinity");
    }
    give_back(weight, static_cast<size_t>(inputs) * static_cast<size_t>(outputs) * (model_.is_int8 ? 1 : 4));
  }

  Norm norm(const std::string& prefix) {
    return {floats(prefix + "scale", {model_.hidden}), floats(prefix + "shift", {model_.hidden}), nullptr};
  }

  const Tensor& find(const std::string& name) {
    const auto found = node_.inputs.find(name);
    if (found == node_.inputs.end()) throw Refused("the encoder has no input " + name);
    return found->second;
  }

  const void* take(const std::string& name, int type, const std::vector<int64_t>& shape) {
    const Tensor& tensor = find(name);
    if (tensor.type != type || tensor.shape != shape)
      throw Refused("the encoder's input " + name + " has type " + std::to_string(tensor.type) + " and shape " +
                    shape_text(tensor.shape) + ", expected type " + std::to_string(type) + " and shape " +
                    shape_text(shape));
    used_.insert(name);
    return tensor.data;
  }

  const float* floats(const std::string& name, const std::vector<int64_t>& shape) {
    const auto* data = static_cast<const float*>(take(name, ort::kFloat, shape));
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    check_finite(name, data, count);
    return data;
  }

  static void check_finite(const std::string& name, const float* data, size_t count) {
    for (size_t i = 0; i < count; i++) {
      if (!std::isfinite(data[i])) throw Refused("the encoder's input " + name + " holds NaN or infinity");
    }
  }

  template <class T>
  T* allocate(size_t count) {
    memory_.push_back(std::make_unique<Block>());
    return static_cast<T*>(memory_.back()->reserve(count * sizeof(T)));
  }

  const float* scaled(const float* from, size_t count, float factor) {
    auto* to = allocate<float>(count);
    for (size_t i = 0; i < count; i++) to[i] = from[i] * factor;
    return to;
  }

  const Node& node_;
  Model model_;
  const Kernels* kernels_ = nullptr;
  Panels panels_{};
  int layers_ = 0;
  std::set<std::string> used_;
  std::vector<std::unique_ptr<Block>> memory_;
};

}  // namespace

Loaded load(const Node& node) { return Loader(node).load(); }

}  // namespace e5onnx
