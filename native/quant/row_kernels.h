// The loops over rows of floats that a load spends its time in, for each instruction set (cpu/isa.h).
//
// All sets give the same bits: every sum has sixteen partial sums, one for each lane of the widest vector, whatever the
// width that the processor computes them in; nothing is fused, and nothing depends on the order of lanes.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cpu/isa.h"

namespace edgeshift {

// Sums of squares over rounded weights: what rounding took, and the weights themselves.
struct RoundingSums {
  double error = 0;
  double weights = 0;

  void add(const RoundingSums& other) {
    error += other.error;
    weights += other.weights;
  }
};

// Rows of k weights, all finite, each padded with zeros to whole groups; `group` is a multiple of 32.
struct FloatRows {
  const float* weights;
  int rows;
  int k;
  int group;

  int groups() const { return (k + group - 1) / group; }
  int padded() const { return groups() * group; }
};

struct RowKernels {
  // Largest magnitude of `count` floats as bits, which order like magnitudes; infinities and NaN are at and above
  // 0x7f800000.
  uint32_t (*largest_bits)(const float* values, int64_t count);

  // Symmetric codes [rows, padded] from -127 to 127; scales [rows, groups].
  void (*round_int8)(const FloatRows& in, uint8_t* codes, f16* scales, RoundingSums& sums);

  // Asymmetric codes from 0 to 15, two a byte [rows, padded / 2], zero past k; scales and minimums [rows, groups]. Of two
  // ranges of a group's weights, the least squares line that misses them least, refined once.
  void (*round_int4)(const FloatRows& in, uint8_t* codes, f16* scales, f16* minimums, RoundingSums& sums);

  // `count` floats to the nearest finite binary16.
  void (*to_halves)(const float* from, int64_t count, f16* to);

  // A row of q4_0 (without minimums) or q4_1 blocks, `count` blocks.
  void (*decode_q4)(const uint8_t* blocks, int64_t count, bool minimums, float* out);
};

// The kernels of an instruction set that the processor has.
const RowKernels& row_kernels(cpu::Isa isa);

// Those of default_isa(), looked up once.
const RowKernels& row_kernels();

}  // namespace edgeshift
