// Heads whose size the kernels don't take, padded with zeros.
#pragma once

#include <memory>

#include "quant/weight_reader.h"

namespace edgeshift {

// The head size to compute with: a multiple of 16 (the attention kernels' vectors; e.g. 100 becomes 112).
// Zeros behind a head's values change no dot product and leave rotary pairs where they are.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// A projection's rows [heads * head_dim, k] as [heads * padded, k]. Read as floats: groups of the file don't survive.
std::unique_ptr<WeightReader> pad_head_rows(std::unique_ptr<WeightReader> weight, int heads, int padded);

// The output projection's columns [n, heads * head_dim] as [n, heads * padded].
std::unique_ptr<WeightReader> pad_head_columns(std::unique_ptr<WeightReader> weight, int heads, int padded);

}  // namespace edgeshift
