// A weight matrix in one backend's tile layout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace edgeshift {

// Logical [n, k] row-major (y = x * W^T); the bytes behind `data` belong to the backend that packed it.
struct PackedMatrix {
  Precision precision = Precision::fp16;
  int n = 0;  // output features
  int k = 0;  // input features
  // Inputs that share one (scale, minimum): a multiple of 32. Unused for fp16.
  int group = 0;
  bool has_minimums = false;  // always for int4
  // Input feature of each position along k, [k] in the backend's memory; null = identity.
  const int32_t* permutation = nullptr;
  void* data = nullptr;
  size_t bytes = 0;
};

// One logical weight before packing, canonical form (w = q * scale + minimum), all arrays in host or device memory
// as the backend's pack function says.
//   fp16: values  f16 [n, k]
//   int8: codes   int8 [n, kp], scales f16 [n, kp / group]; minimums f16 [n, kp / group] or null (symmetric)
//   int4: codes   uint8 [n, kp / 2], element 2i in the low nibble, unsigned 0..15; scales, minimums f16 [n, kp / group]
// group is a multiple of 32; kp is k rounded up to whole groups, the codes past k are zero.
struct CanonicalMatrix {
  int padded_k() const { return group ? (k + group - 1) / group * group : k; }

  Precision precision = Precision::fp16;
  int n = 0;
  int k = 0;
  int group = 0;
  const f16* values = nullptr;
  const void* codes = nullptr;
  const f16* scales = nullptr;
  const f16* minimums = nullptr;
  // Act-order: position j along k holds input feature permutation[j]; null = identity. [k]
  const int32_t* permutation = nullptr;
};

}  // namespace edgeshift
