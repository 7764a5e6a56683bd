// Token embedding lookup.
#pragma once

#include <cstdint>

#include "ops/packed_matrix.h"

namespace edgeshift {

struct EmbedArgs {
  const int32_t* tokens = nullptr;  // [t], each in 0..table.n - 1
  int t = 0;
  const PackedMatrix* table = nullptr;  // [vocab, hidden]
  float* out = nullptr;                 // [t, hidden], the residual stream
  float scale = 1;                      // multiplies out
};

}  // namespace edgeshift
