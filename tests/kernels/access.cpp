// C functions for ctypes: they run a kernel of a table by itself, and choose the table that the operator takes.
// Compiled into the tests' build of the library, where `find_kernels` of dispatch.cpp has another name.
#include <cstdint>

#include "kernels.h"
#include "pack.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define E5ONNX_EXPORT extern "C" __attribute__((visibility("default")))

namespace e5onnx {

#if defined(__x86_64__)
extern const Kernels kAvx512Bf16Int8, kAvx512Bf16, kAvx512VnniInt8, kAvxVnniInt8, kAvx2Int8;
#elif defined(__aarch64__)
extern const Kernels kNeonDotprodInt8, kNeonI8mmInt8;
#endif

const Kernels* find_best_kernels(bool int8);

namespace {

const Kernels* chosen = nullptr;

// The tables in the order of access.py; null for one that the processor cannot run.
const Kernels* table([[maybe_unused]] int number) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_avx_vnni = has_avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
  if (number == 0 && has_bf16) return &kAvx512Bf16Int8;
  if (number == 1 && has_bf16) return &kAvx512Bf16;
  if (number == 2 && has_avx512) return &kAvx512VnniInt8;
  if (number == 3 && has_avx_vnni) return &kAvxVnniInt8;
  if (number == 4 && has_avx2) return &kAvx2Int8;
#elif defined(__aarch64__)
  const Kernels* best = find_best_kernels(true);
  if (number == 5 && best) return &kNeonDotprodInt8;
  if (number == 6 && best == &kNeonI8mmInt8) return &kNeonI8mmInt8;
#endif
  return nullptr;
}

}  // namespace

const Kernels* find_kernels(bool int8) {
  if (!chosen) return find_best_kernels(int8);
  return (chosen->quantize != nullptr) == int8 ? chosen : nullptr;
}

}  // namespace e5onnx

using namespace e5onnx;

struct AccessLinear {
  const void* weight;
  const float *scale, *column_sums, *bias;
  Linear linear() const { return {weight, scale, column_sums, bias}; }
};

struct AccessModel {
  int hidden, heads, farthest;
  float epsilon;
  const float* word_table;
  const int8_t* word_steps;
  const float *word_scales, *position_table, *distance_bias, *norm_scale, *norm_shift, *smoothing;
  Model model() const {
    Model model;
    model.hidden = hidden;
    model.heads = heads;
    model.head_size = hidden / heads;
    model.epsilon = epsilon;
    model.word_table = word_table;
    model.word_steps = word_steps;
    model.word_scales = word_scales;
    model.position_table = position_table;
    model.distance_bias = distance_bias;
    model.farthest = farthest;
    model.embedding_norm = {norm_scale, norm_shift, smoothing};
    return model;
  }
};

// Name of the instructions, and numbers: columns, depth, adds_pairs,
// activation_bytes, element_bytes, middle_bytes.
E5ONNX_EXPORT const char* access_table(int number, int64_t* facts) {
  const Kernels* kernels = table(number);
  if (!kernels) return nullptr;
  facts[0] = kernels->columns;
  facts[1] = kernels->depth;
  facts[2] = kernels->adds_pairs;
  facts[3] = static_cast<int64_t>(kernels->activation_bytes);
  facts[4] = static_cast<int64_t>(kernels->element_bytes);
  facts[5] = static_cast<int64_t>(kernels->middle_bytes);
  return kernels->instructions;
}

// The table of operators that are created from now on; -1 for the best.
E5ONNX_EXPORT void access_choose(int number) { chosen = number < 0 ? nullptr : table(number); }

E5ONNX_EXPORT void access_pack_int8(const int8_t* from, long row_stride, int count, int head, int stride, int inputs,
                                    int width, int depth, int8_t* to, float* sums) {
  pack_int8(from, row_stride, {count, head, stride}, {inputs, width, depth}, to, sums);
}

E5ONNX_EXPORT int access_pack_bfloat16(const float* from, long row_stride, int count, int head, int stride, int inputs,
                                       int width, int depth, float factor, uint16_t* to) {
  return pack_bfloat16(from, row_stride, {count, head, stride}, {inputs, width, depth}, factor, to);
}

E5ONNX_EXPORT int access_largest_pair(const int8_t* packed, size_t bytes) { return largest_pair(packed, bytes); }

E5ONNX_EXPORT void access_project(int number, void* values, Range* ranges, int rows, int inputs,
                                  const AccessLinear* linear, int first, int last, void* to, long stride) {
  table(number)->project({values, ranges}, rows, inputs, linear->linear(), first, last, to, stride);
}

E5ONNX_EXPORT void access_multiply(int number, void* values, Range* ranges, int rows, int inputs,
                                   const AccessLinear* linear, int first, int last, float* to, long stride) {
  table(number)->multiply({values, ranges}, rows, inputs, linear->linear(), first, last, to, stride);
}

E5ONNX_EXPORT void access_activate(int number, void* values, Range* ranges, int rows, int inputs,
                                   const AccessLinear* linear, int by_tanh, const float* smoothing, int first, int last,
                                   void* to, long stride) {
  table(number)->activate({values, ranges}, rows, inputs, linear->linear(),
                          by_tanh ? Activation::kGeluByTanh : Activation::kGelu, smoothing, first, last, to, stride);
}

E5ONNX_EXPORT size_t access_attention_bytes(int number, int keys, int head_size) {
  return table(number)->attention_bytes(keys, head_size);
}

E5ONNX_EXPORT void access_attend(int number, const AccessModel* model, const void* elements, const int32_t* places,
                                 int keys, int begin, int end, int first, int last, void* memory, void* to) {
  table(number)->attend(model->model(), elements, places, keys, begin, end, first, last, memory, to);
}

E5ONNX_EXPORT void access_quantize(int number, const void* from, int rows, int columns, void* values, Range* ranges) {
  table(number)->quantize(from, rows, columns, {values, ranges});
}

E5ONNX_EXPORT void access_add_norm(int number, const float* sums, int rows, int columns, const float* scale,
                                   const float* shift, const float* smoothing, float epsilon, float* hidden,
                                   void* values, Range* ranges) {
  table(number)->add_norm(sums, rows, columns, {scale, shift, smoothing}, epsilon, hidden, {values, ranges});
}

E5ONNX_EXPORT void access_embed(int number, const AccessModel* model, const int32_t* ids, const int32_t* positions,
                                int rows, float* hidden, void* values, Range* ranges) {
  table(number)->embed(model->model(), ids, positions, rows, hidden, {values, ranges});
}
