#include <cmath>

#include "cpu/matmul_kernels.h"
#include "quant/half.h"

namespace edgeshift::cpu {

namespace {

void store(const MatmulKernelArgs& a, int row, int64_t tile, const float* acc) {
  for (int c = 0; c < kTileRows; ++c) {
    int64_t column = tile * kTileRows + c;
    if (column >= a.weight->n) return;
    a.y[row * a.y_stride + column] = acc[c] + (a.bias ? a.bias[column] : 0.0f);
  }
}

const char* tile_at(const MatmulKernelArgs& a, int64_t tile) {
  return static_cast<const char*>(a.weight->data) + size_t(tile) * a.tile.bytes;
}

void fp16(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const f16* w = reinterpret_cast<const f16*>(tile_at(a, tile));
    for (int row = a.row_begin; row < a.row_end; ++row) {
      float acc[kTileRows] = {};
      const float* x = a.x + int64_t(row) * a.weight->k;
      for (int i = 0; i < a.weight->k; ++i) {
        for (int c = 0; c < kTileRows; ++c) acc[c] += to_float(w[i * kTileRows + c]) * x[i];
      }
      store(a, row, tile, acc);
    }
  }
}

// Code of input i in column c.
int code_at(Precision precision, const char* codes, int i, int c) {
  if (precision == Precision::int8) return static_cast<int8_t>(codes[(i / 4) * 64 + c * 4 + i % 4]);
  uint8_t byte = uint8_t(codes[(i / 8) * 64 + c * 4 + i % 4]);
  return i % 8 < 4 ? byte & 15 : byte >> 4;
}

void quantized(const MatmulKernelArgs& a, int64_t tile, int row) {
  const char* base = tile_at(a, tile);
  const f16* scales = reinterpret_cast<const f16*>(base);
  const f16* minimums = reinterpret_cast<const f16*>(base + a.tile.minimums);
  int blocks = a.tile.padded_k / 32;
  float acc[kTileRows] = {};
  for (int b = 0; b < blocks; ++b) {
    int g = b * 32 / a.weight->group;
    int64_t place = QuantizedRows::place(row, blocks) + b * kRowBundle;
    int x[32];
    for (int i = 0; i < 32; ++i) x[i] = 128 * a.xq.high[place * 32 + i] + a.xq.low[place * 32 + i];
    for (int c = 0; c < kTileRows; ++c) {
      int sum = 0;
      for (int i = 0; i < 32; ++i) sum += code_at(a.weight->precision, base + a.tile.codes, b * 32 + i, c) * x[i];
      acc[c] += float(sum) * (to_float(scales[g * kTileRows + c]) * a.xq.scales[place]);
      if (a.weight->has_minimums) acc[c] += to_float(minimums[g * kTileRows + c]) * a.xq.sums[place];
    }
  }
  store(a, row, tile, acc);
}

void integer(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    for (int row = a.row_begin; row < a.row_end; ++row) quantized(a, tile, row);
  }
}

void quantize(const float* x, int k, int padded_k, QuantizedRows to, int row) {
  for (int b = 0; b < padded_k / 32; ++b) {
    int64_t place = QuantizedRows::place(row, padded_k / 32) + b * kRowBundle;
    int count = k - b * 32 < 32 ? (k > b * 32 ? k - b * 32 : 0) : 32;
    float largest = 0;
    for (int i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(x[b * 32 + i]));
    float inverse = largest > 0 ? float(kLargestCode) / largest : 0.0f;
    int sum = 0;
    for (int i = 0; i < 32; ++i) {
      int code = i < count ? int(std::nearbyint(x[b * 32 + i] * inverse)) : 0;
      int high = (code + 64) >> 7;
      to.high[place * 32 + i] = int8_t(high);
      to.low[place * 32 + i] = int8_t(code - 128 * high);
      sum += code;
    }
    to.scales[place] = largest / float(kLargestCode);
    to.sums[place] = largest / float(kLargestCode) * float(sum);
    to.offsets[place] = -128 * sum;
  }
}

}  // namespace

const MatmulKernels matmul_scalar = {fp16, integer, integer, quantize};

}  // namespace edgeshift::cpu
