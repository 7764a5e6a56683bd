// The inner kernels of matmul, one set per instruction set. All of them compute, for every output (row r, column c),
//   fp16:       acc = fma(w[c, i], x[r, i], acc) for i = 0 .. k-1
//   int8, int4: for every 32 inputs b:  acc = fma(float(sum of code * x_code), scale[c, b] * x_scale[r, b], acc),
//               then, with minimums,    acc = fma(minimum[c, b], x_sum[r, b], acc)
// and add the bias last: the same operations in the same order for any number of rows, so a batch never changes a result.
#pragma once

#include <cstdint>

#include "cpu/tile.h"
#include "ops/packed_matrix.h"

namespace edgeshift::cpu {

inline constexpr int kRowBundle = 8;

// x quantized to 15 bits per row and per 32 inputs: x ~ (128 * high + low) * scale. Eight bits alone, as other engines
// keep, cost SmolLM2 0.055 (rms) in the logarithms of its probabilities; with the second plane it is 0.0008, for one more
// integer product on weights already in registers. Rows are padded with zeros to the weight's padded_k and stored in
// bundles of 8, block by block: per plane [t / 8][padded_k / 32][8][32] codes, [t / 8][padded_k / 32][8] parameters.
// So a kernel that works on 8 rows reads one contiguous stream from one pointer.
struct QuantizedRows {
  int8_t* high = nullptr;      // -127 .. 127
  int8_t* low = nullptr;       // -64 .. 63
  float* scales = nullptr;
  float* sums = nullptr;       // scale * (sum of codes), for the minimums
  int32_t* offsets = nullptr;  // -128 * (sum of codes), for int8 codes biased to unsigned

  // Index of row `row`'s first block's parameters; the next block's are kRowBundle further. Codes: times 32.
  static int64_t place(int row, int blocks) { return int64_t(row / kRowBundle) * blocks * kRowBundle + row % kRowBundle; }
};

// The largest code, 128 * 127: with it the high plane's codes keep within a signed byte.
inline constexpr int kLargestCode = 16256;

struct MatmulKernelArgs {
  const PackedMatrix* weight = nullptr;
  TileLayout tile;
  const float* x = nullptr;  // [t, k], fp16 weights
  QuantizedRows xq;          // int8 and int4 weights
  const float* bias = nullptr;
  float* y = nullptr;  // [t, n]
  int64_t y_stride = 0;
  int row_begin = 0;
  int row_end = 0;
};

// Computes output columns of tiles [tile_begin, tile_end) for the rows of args.
using MatmulKernel = void (*)(const MatmulKernelArgs& args, int64_t tile_begin, int64_t tile_end);

// Quantizes x[k] into row `row` of `to`; scale = largest / kLargestCode, codes rounded to nearest even.
using QuantizeKernel = void (*)(const float* x, int k, int padded_k, QuantizedRows to, int row);

struct MatmulKernels {
  MatmulKernel fp16;
  MatmulKernel int8;
  MatmulKernel int4;
  QuantizeKernel quantize;
};

extern const MatmulKernels matmul_scalar;
extern const MatmulKernels matmul_avx2;
extern const MatmulKernels matmul_avx512;

}  // namespace edgeshift::cpu
