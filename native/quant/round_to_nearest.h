// Rounding of float weights to codes with the best scale of their group.
#pragma once

#include "ops/packed_matrix.h"

namespace edgeshift {

// One group on its way to the canonical arrays.
struct CodedGroup {
  f16 scale{};
  f16 minimum{};
  int* codes;  // [group]
};

// The largest finite binary16.
inline constexpr float kLargestHalf = 65504.0f;

// The nearest finite binary16.
f16 to_finite_f16(float value);

// Symmetric 8-bit codes of `count` weights; the minimum is 0.
void round_symmetric(const float* w, int count, CodedGroup& out);

// Asymmetric 4-bit codes of `count` weights: of a few ranges around them, each refined by least squares, the one with
// the least squared error.
void round_asymmetric(const float* w, int count, CodedGroup& out);

}  // namespace edgeshift
