// Number formats of products. A format has its values, and `dot`, which adds the products of 4 bytes of `a` with 4
// bytes of `b` to each lane of the sums. Each simd_*.h has those that its instructions multiply; float32 is the same
// for all.
#pragma once

namespace e5onnx {
namespace {

struct Float32 {
  using Value = float;
  using Total = float;
  using Sum = Float;
  static constexpr int kDepth = 1;
  static Sum zero() { return zeros(); }
  static Sum dot(Sum total, Int a, Int b) { return multiply_add(as_floats(a), as_floats(b), total); }
  static void store_sum(Total* to, Sum x) { store(to, x); }
  static Float total(const Total* from) { return load(from); }
  static void store_pair(Value* to, Float low, Float high) {
    store(to, low);
    store(to + kLanes, high);
  }
  static void interleave(Value* to, Int a, Int) { store_bits(to, a); }
};

// What attention multiplies.
#ifdef E5ONNX_BF16
using Element = Bfloat16;
#else
using Element = Float32;
#endif

}  // namespace
}  // namespace e5onnx
