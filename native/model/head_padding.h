// Heads whose size the kernels don't take, padded with zeros.
#pragma once

#include <vector>

#include "core/status.h"
#include "model/weight_map.h"

namespace edgeshift {

// The head size to compute with: a multiple of 16 (the attention kernels' vectors; e.g. 100 becomes 112).
// Zeros behind a head's values change no dot product and leave rotary pairs where they are.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// A projection's rows [heads * head_dim, k] as [heads * padded, k], float.
Result<std::vector<float>> pad_head_rows(const CheckedWeight& weight, int heads, int padded);

// The output projection's columns [n, heads * head_dim] as [n, heads * padded], float.
Result<std::vector<float>> pad_head_columns(const CheckedWeight& weight, int heads, int padded);

}  // namespace edgeshift
