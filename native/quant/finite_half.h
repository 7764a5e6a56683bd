// Conversion to binary16 that saturates.
#pragma once

#include "quant/half.h"

namespace edgeshift {

// The largest finite binary16.
inline constexpr float kLargestHalf = 65504.0f;

// The nearest finite binary16; NaN stays NaN.
inline f16 to_finite_f16(float value) {
  return to_f16(value > kLargestHalf ? kLargestHalf : value < -kLargestHalf ? -kLargestHalf : value);
}

}  // namespace edgeshift
