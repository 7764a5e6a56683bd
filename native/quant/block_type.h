// Decoding of the weight types that GGUF files hold (ggml-common.h block layouts; FORMATS: "GGUF").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/dtype.h"
#include "core/status.h"

namespace edgeshift {

enum class BlockType {
  f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s,
  iq3_xxs, iq3_s, iq4_nl, iq4_xs, tq1_0, tq2_0, mxfp4, nvfp4
};

// Weights per block: 1 for floats, 32, 64 or 256 for the others.
int block_weights(BlockType type);
// Bytes per block.
int block_bytes(BlockType type);
inline size_t row_bytes(BlockType type, int64_t k) {
  return size_t(k / block_weights(type)) * size_t(block_bytes(type));
}

// The precision that a weight of this type is kept in when its file is loaded as it is: fp16 for floats; int4 for linear
// 4-bit codes in blocks of 32 (q4_0, q4_1, q4_k) and for types of less than 3 bits, whose rounding to 4 is small beside
// their own; int8 for all others.
Precision native_width(BlockType type);

// From the lower-case name, e.g. "q4_1"; unsupported for any other.
Result<BlockType> parse_block_type(std::string_view name);

// out[rows, k] in float, exactly. `data` holds `rows` whole rows, row-major, unaligned.
// invalid_argument when k is not a whole number of blocks.
Status dequantize_rows(BlockType type, const void* data, int64_t rows, int64_t k, float* out);

}  // namespace edgeshift
