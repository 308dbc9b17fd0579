// Weights in the order in which gemm.h reads them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace e5onnx {

// Columns of matrices that are put side by side: `count` in all, of which those of a head are `head` apart in the
// packed matrix and `stride` in the file's, where every head may have a column more.
struct Columns {
  int count;
  int head;
  int stride;
  int in_file(int column) const { return column / head * stride + column % head; }
};

// A panel holds `width` columns; in it, `depth` neighbouring inputs of a column follow each other:
// [columns / width][inputs / depth][width][depth].
struct Panels {
  int inputs;
  int width;
  int depth;
};

// Packs int8 weights [inputs, any], and adds up each column. `to` and `sums` are where the first of the columns goes.
void pack_int8(const int8_t* from, long row_stride, Columns columns, Panels panels, int8_t* to, float* sums);

// Packs float32 weights [inputs, any] times a factor as bfloat16, rounded to nearest. Returns false if one of them is
// NaN or infinite.
bool pack_bfloat16(const float* from, long row_stride, Columns columns, Panels panels, float factor, uint16_t* to);

// The largest sum of two weights that meet the same 16 bits in processors without VNNI, by absolute value.
int largest_pair(const int8_t* packed, size_t bytes);

// Tells the system that the memory between is not needed for now, if it maps a file, which can be read again.
void give_back(const void* from, size_t bytes);

}  // namespace e5onnx
