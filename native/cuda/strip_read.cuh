// Single elements out of a packed matrix: embedding lookup, tests.
#pragma once

#include "cuda/device.cuh"
#include "cuda/strip_layout.h"

namespace edgeshift::cuda {

// Weight (row, k) of a plain-ordered matrix, dequantized in fp32.
__device__ inline float strip_weight(const unsigned char* data, const StripLayout& layout, Precision precision, int row, int k) {
  const unsigned char* chunk = data + row / kStripRows * layout.strip_bytes() + size_t(k / layout.chunk) * layout.chunk_bytes();
  k %= layout.chunk;
  int g = row % 8, low = row / 8 % 2;
  int tile = k / kTileInputs, t = k % 32 / 8, step = k % kTileInputs / 32 * 2 + k % 8 / 4, half = k % 2;
  int reg = k % 4 / 2 * 2 + low, lane = g * 4 + t;
  auto word = [&](int quad, int part) {
    return *reinterpret_cast<const uint32_t*>(chunk + quad * 512 + lane * 16 + part * 4);
  };
  if (precision == Precision::fp16) {
    float2 pair = __half22float2(as_half2(word(tile * 4 + step, reg)));
    return half ? pair.y : pair.x;
  }
  const half2* scales = reinterpret_cast<const half2*>(chunk + layout.code_bytes);
  float2 scale = __half22float2(scales[k / layout.flush * kStripRows + g * 2 + low]);
  int code = precision == Precision::int4
                 ? int(word(tile, step) >> ((half * 4 + reg % 2 * 2 + reg / 2) * 4) & 15)
                 : int(word(tile * 2 + step / 2, step % 2 * 2 + reg / 2) >> ((reg % 2 * 2 + half) * 8) & 255) - 128;
  return code * scale.x + scale.y;
}

}  // namespace edgeshift::cuda
