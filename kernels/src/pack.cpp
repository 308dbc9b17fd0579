#include "pack.h"

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace e5onnx {
namespace {

constexpr int kRun = 16;  // columns that are next to each other in both orders

uint16_t to_bfloat16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Calls `copy(from, to, column)` for every run of columns and step of inputs.
template <class Copy>
void for_runs(Columns columns, Panels panels, Copy copy) {
  const long steps = panels.inputs / panels.depth;
  for (int first = 0; first < columns.count; first += panels.width) {
    for (long step = 0; step < steps; step++) {
      for (int column = first; column < first + panels.width; column += kRun)
        copy(step * panels.depth, columns.in_file(column),
             ((first / panels.width * steps + step) * panels.width + (column - first)) * panels.depth, column);
    }
  }
}

}  // namespace

void pack_int8(const int8_t* from, long row_stride, Columns columns, Panels panels, int8_t* to, float* sums) {
  std::fill(sums, sums + columns.count, 0.0f);
  for_runs(columns, panels, [&](long input, long source, long target, int column) {
    const int8_t* rows = from + input * row_stride + source;
    int8_t* packed = to + target;
    for (int n = 0; n < kRun; n++) {
      int sum = 0;
      for (int k = 0; k < 4; k++) {
        packed[n * 4 + k] = rows[k * row_stride + n];
        sum += rows[k * row_stride + n];
      }
      sums[column + n] += static_cast<float>(sum);  // whole numbers below 2^24
    }
  });
}

bool pack_bfloat16(const float* from, long row_stride, Columns columns, Panels panels, float factor, uint16_t* to) {
  uint32_t not_finite = 0;
  for_runs(columns, panels, [&](long input, long source, long target, int) {
    const float* rows = from + input * row_stride + source;
    uint16_t* packed = to + target;
    for (int n = 0; n < kRun; n++) {
      for (int k = 0; k < 2; k++) {
        const uint16_t value = to_bfloat16(rows[k * row_stride + n] * factor);
        packed[n * 2 + k] = value;
        not_finite |= static_cast<uint32_t>((value & 0x7f80) == 0x7f80);
      }
    }
  });
  return not_finite == 0;
}

int largest_pair(const int8_t* packed, size_t bytes) {
  int largest = 0;
  for (size_t i = 0; i + 1 < bytes; i += 2) largest = std::max(largest, std::abs(packed[i] + packed[i + 1]));
  return largest;
}

void give_back([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(from) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(from) + bytes) / page * page;
  if (begin >= end) return;
  std::FILE* maps = std::fopen("/proc/self/maps", "re");
  if (!maps) return;
  char line[512];
  while (std::fgets(line, sizeof line, maps)) {
    uintptr_t first, last;
    unsigned long inode;
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %lu", &first, &last, &inode) != 3) continue;
    if (first <= begin && end <= last) {
      // Memory without a file would be lost. Nobody writes to the weights, so what is mapped equals the file.
      if (inode != 0) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
      break;
    }
  }
  std::fclose(maps);
#endif
}

}  // namespace e5onnx
