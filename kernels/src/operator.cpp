// The operator `BertEncoder` for onnxruntime, in place of the function of that name in the graph.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "encoder.h"
#include "load.h"
#include "ort_abi.h"

#define E5ONNX_EXPORT extern "C" __attribute__((visibility("default")))

namespace e5onnx {
namespace {

constexpr char kDomain[] = "e5onnx";
constexpr char kThreads[] = "e5onnx.threads";  // entry of the session's configuration
constexpr int kMostThreads = 1024;

ort::Api api;
thread_local int created = 0;

template <class E, class... Arguments>
void call(Arguments... arguments) {
  OrtStatus* status = api.get<E>()(arguments...);
  if (!status) return;
  const std::string message = api.get<ort::GetErrorMessage>()(status);
  api.get<ort::ReleaseStatus>()(status);
  throw std::runtime_error(message);
}

// Calls a function that may throw, for a caller that may not see exceptions.
template <class Function>
OrtStatus* guarded(Function function) {
  const auto status = [](int code, const char* message) { return api.get<ort::CreateStatus>()(code, message); };
  try {
    function();
    return nullptr;
  } catch (const Refused& error) {
    return status(ort::kNotImplemented, (std::string("e5onnx-kernels: ") + error.what()).c_str());
  } catch (const std::exception& error) {
    return status(ort::kFail, (std::string("e5onnx-kernels: ") + error.what()).c_str());
  }
}

Tensor tensor_of(const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  call<ort::GetTensorTypeAndShape>(value, &info);
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
      info, api.get<ort::ReleaseTensorTypeAndShapeInfo>());
  Tensor tensor{};
  size_t axes = 0;
  void* data = nullptr;
  call<ort::GetTensorElementType>(info, &tensor.type);
  call<ort::GetDimensionsCount>(info, &axes);
  tensor.shape.resize(axes);
  call<ort::GetDimensions>(info, tensor.shape.data(), axes);
  call<ort::GetTensorMutableData>(const_cast<OrtValue*>(value), &data);
  tensor.data = data;
  return tensor;
}

// Strings of the API: the first call tells the size.
template <class E, class... Arguments>
std::string text(Arguments... arguments) {
  size_t size = 0;
  call<E>(arguments..., nullptr, &size);
  std::string result(size, '\0');
  call<E>(arguments..., result.data(), &size);
  while (!result.empty() && result.back() == '\0') result.pop_back();
  return result;
}

Node read_node(const OrtKernelInfo* info) {
  Node node;
  call<ort::KernelInfoGetAttribute_int64>(info, "num_heads", &node.heads);
  call<ort::KernelInfoGetAttribute_int64>(info, "padding_id", &node.padding_id);
  call<ort::KernelInfoGetAttribute_float>(info, "scale", &node.scale);
  call<ort::KernelInfoGetAttribute_float>(info, "epsilon", &node.epsilon);
  node.activation = text<ort::KernelInfoGetAttribute_string>(info, "activation");
  size_t count = 0;
  call<ort::KernelInfo_GetInputCount>(info, &count);
  for (size_t index = 2; index < count; index++) {
    const std::string name = text<ort::KernelInfo_GetInputName>(info, index);
    int is_constant = 0;
    const OrtValue* value = nullptr;
    call<ort::KernelInfoGetConstantInput_tensor>(info, index, &is_constant, &value);
    if (!is_constant || !value) throw Refused("the encoder's input " + name + " is not a constant");
    node.inputs.emplace(name, tensor_of(value));
  }
  return node;
}

class OrtParallel : public Parallel {
 public:
  explicit OrtParallel(const OrtKernelContext* context) : context_(context) {}
  void run(size_t count, void (*task)(void*, size_t), void* data) const override {
    call<ort::KernelContext_ParallelFor>(context_, task, count, count, data);
  }

 private:
  const OrtKernelContext* context_;
};

class Kernel {
 public:
  Kernel(const OrtKernelInfo* info, int threads) : Kernel(load(read_node(info)), threads) {}

  void compute(OrtKernelContext* context) {
    const OrtValue* inputs[2] = {};
    for (size_t i = 0; i < 2; i++) call<ort::KernelContext_GetInput>(context, i, &inputs[i]);
    const Tensor ids = tensor_of(inputs[0]), mask = tensor_of(inputs[1]);
    if (ids.type != ort::kInt64 || mask.type != ort::kInt64 || ids.shape.size() != 2 || mask.shape != ids.shape)
      throw std::runtime_error("input_ids and attention_mask must be int64 [batch, sequence] of the same shape");
    const int64_t dimensions[3] = {ids.shape[0], ids.shape[1], hidden_};
    OrtValue* result = nullptr;
    call<ort::KernelContext_GetOutput>(context, size_t{0}, dimensions, size_t{3}, &result);
    void* data = nullptr;
    call<ort::GetTensorMutableData>(result, &data);
    auto* output = static_cast<float*>(data);
    const Batch batch = flatten(static_cast<const int64_t*>(ids.data), static_cast<const int64_t*>(mask.data),
                                ids.shape[0], ids.shape[1], output);
    encoder_.run(batch, OrtParallel(context), output);
  }

 private:
  Kernel(Loaded loaded, int threads)
      : memory_(std::move(loaded.memory)),
        hidden_(loaded.model.hidden),
        words_(loaded.model.words),
        positions_(loaded.model.positions),
        padding_id_(loaded.model.padding_id),
        farthest_(loaded.model.distance_bias ? loaded.model.farthest : INT32_MAX - 1),
        encoder_(std::move(loaded.model), *loaded.kernels, threads) {}

  // Leaves out the padding, whose rows of the output become zeros.
  Batch flatten(const int64_t* ids, const int64_t* mask, int64_t texts, int64_t length, float* output) const {
    if (length > farthest_ + 1)
      throw std::runtime_error("texts of " + std::to_string(length) + " tokens are longer than the encoder's maximum");
    if (texts * length > INT32_MAX / 4) throw std::runtime_error("too many tokens at once");
    Batch batch;
    for (int64_t text = 0; text < texts; text++) {
      const int first = static_cast<int>(batch.ids.size());
      int64_t counted = 0;  // RoBERTa's positions
      std::vector<int32_t> masked;
      bool reads_first = false;
      int32_t first_position = 0;
      for (int64_t place = 0; place < length; place++) {
        const int64_t at = text * length + place, id = ids[at];
        if (mask[at] != 0 && mask[at] != 1)
          throw std::runtime_error("attention_mask holds " + std::to_string(mask[at]) + " in row " +
                                   std::to_string(text) + "; it must hold 0 and 1");
        int64_t position = place;
        if (padding_id_ >= 0) position = id == padding_id_ ? padding_id_ : padding_id_ + ++counted;
        const bool is_needed = mask[at] == 1 || place == 0;
        if (is_needed && (id < 0 || id >= words_))
          throw std::runtime_error("token id " + std::to_string(id) + " in row " + std::to_string(text) +
                                   " is outside the vocabulary of " + std::to_string(words_));
        if (is_needed && position >= positions_)
          throw std::runtime_error("texts of " + std::to_string(length) +
                                   " tokens are longer than the encoder's maximum");
        if (place == 0 && mask[at] == 0) {
          reads_first = true;
          first_position = static_cast<int32_t>(position);
        }
        if (mask[at] == 1)
          add(batch, id, position, place, at);
        else
          std::fill_n(output + at * hidden_, hidden_, 0.0f);
      }
      const int keys = static_cast<int>(batch.ids.size()) - first;
      if (keys == 0) continue;
      if (reads_first) add(batch, ids[text * length], first_position, 0, text * length);
      batch.texts.push_back({first, keys, keys + reads_first});
    }
    return batch;
  }

  static void add(Batch& batch, int64_t id, int64_t position, int64_t place, int64_t output) {
    batch.ids.push_back(static_cast<int32_t>(id));
    batch.positions.push_back(static_cast<int32_t>(position));
    batch.places.push_back(static_cast<int32_t>(place));
    batch.outputs.push_back(output);
  }

  std::vector<std::unique_ptr<Block>> memory_;
  int64_t hidden_, words_, positions_, padding_id_, farthest_;
  Encoder encoder_;
};

// The operator of sessions with one number of threads. Inputs after the first two are weights.
struct Operator : OrtCustomOp {
  int threads;

  explicit Operator(int number) : OrtCustomOp{}, threads(number) {
    version = ort::kVersion;
    GetName = [](const OrtCustomOp*) { return "BertEncoder"; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 3; };
    GetInputType = [](const OrtCustomOp*, size_t index) -> int { return index < 2 ? ort::kInt64 : ort::kAny; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) -> int {
      return index < 2 ? ort::kRequired : ort::kVariadic;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetOutputType = [](const OrtCustomOp*, size_t) -> int { return ort::kFloat; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return ort::kRequired; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp* self, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return guarded([&] {
        *kernel = new Kernel(info, static_cast<const Operator*>(self)->threads);
        created++;
      });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return guarded([&] { static_cast<Kernel*>(kernel)->compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }
};

int wanted_threads(const OrtSessionOptions* options) {
  int has_entry = 0;
  call<ort::HasSessionConfigEntry>(options, kThreads, &has_entry);
  if (!has_entry) return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, unsigned{kMostThreads}));
  const std::string entry = text<ort::GetSessionConfigEntry>(options, kThreads);
  int threads = 0;
  const auto [end, error] = std::from_chars(entry.data(), entry.data() + entry.size(), threads);
  if (error != std::errc{} || end != entry.data() + entry.size() || threads < 1 || threads > kMostThreads)
    throw std::runtime_error(std::string(kThreads) + " must be a number from 1 to " + std::to_string(kMostThreads) +
                             ", got " + entry);
  return threads;
}

}  // namespace
}  // namespace e5onnx

// Makes the operator known to a session. onnxruntime finds the function by its name.
E5ONNX_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace e5onnx;
  const OrtApi* table = base->GetApi(ort::kVersion);
  if (!table) return nullptr;  // onnxruntime has already written that the version is too old
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  static const bool is_known = (api = ort::Api(table), true);  // once: other sessions may be running
  static_cast<void>(is_known);
  return guarded([&] {
    const int threads = wanted_threads(options);
    // Sessions keep pointers to both, so they are never freed: one pair for each number of threads.
    static auto& domains = *new std::map<int, OrtCustomOpDomain*>;
    OrtCustomOpDomain*& domain = domains[threads];
    if (!domain) {
      call<ort::CreateCustomOpDomain>(kDomain, &domain);
      call<ort::CustomOpDomain_Add>(domain, static_cast<const OrtCustomOp*>(new Operator(threads)));
    }
    call<ort::AddCustomOpDomain>(options, domain);
  });
}

// Name of the best instructions that this processor and this library have; "" for none.
E5ONNX_EXPORT const char* e5onnx_kernels_instructions() {
  const auto* kernels = e5onnx::find_kernels(true);
  return kernels ? kernels->instructions : "";
}

// Whether a precision, "int8" or "bf16", runs on this processor.
E5ONNX_EXPORT int e5onnx_kernels_has(const char* precision) {
  const bool is_int8 = std::strcmp(precision, "int8") == 0;
  return (is_int8 || std::strcmp(precision, "bf16") == 0) && e5onnx::find_kernels(is_int8) != nullptr;
}

// How many nodes the calling thread has put this library's operator in place of.
E5ONNX_EXPORT int e5onnx_kernels_created() { return e5onnx::created; }
