// Quantized weights as f16, for products so large that turning each weight once is cheaper than in every block.
#pragma once

#include "cuda/launch.h"
#include "cuda/strip_layout.h"

namespace edgeshift::cuda {

// Bytes of a strip of k inputs in f16.
inline size_t widened_strip_bytes(int k) { return strip_layout(Precision::fp16, kStripRows, k, 0).strip_bytes(); }

// Writes strips [first, first + strips) of an int4 or int8 matrix to `out` in the f16 layout.
Status widen(const PackedMatrix& weight, int first, int strips, void* out, const Launch& on);

}  // namespace edgeshift::cuda
