// Decoders of ggml's super-block and codebook types (ggml-common.h, ggml-quants.c).
#pragma once

#include <cstdint>

#include "quant/block_type.h"

namespace edgeshift {

// Scale (6 bits) and minimum (6 bits) of sub-block j of a Q4_K or Q5_K block; `packed` is its 12 bytes.
struct SubBlock {
  int scale;
  int minimum;
};
SubBlock k_sub_block(const uint8_t* packed, int j);

// The values of IQ4_NL and IQ4_XS codes.
extern const int8_t kIq4Values[16];

// One block of q2_k .. q6_k, tq1_0, tq2_0, mxfp4 or nvfp4 to floats.
void decode_k_block(BlockType type, const uint8_t* block, float* out);

// One block of an iq type to floats.
void decode_iq_block(BlockType type, const uint8_t* block, float* out);

}  // namespace edgeshift
