// Matrix product with a packed weight.
#pragma once

#include "ops/packed_matrix.h"

namespace edgeshift {

// y[t, n] = x[t, k] * W^T + bias. A row of y depends on its own row of x alone, bit for bit, whatever t is
// (CPU; CUDA within tolerance). The CPU quantizes x to 15 bits per group of 32 inputs for int8 and int4 weights.
template <class Act>
struct MatmulArgs {
  const Act* x = nullptr;  // [t, k]
  const PackedMatrix* weight = nullptr;
  const float* bias = nullptr;  // [n] or null
  Act* y = nullptr;             // [t, n]
  int t = 0;
  int y_stride = 0;  // values from a row of y to the next; 0 = n
};

}  // namespace edgeshift
