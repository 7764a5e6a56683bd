// Keys and values in one byte each: a code times the scale of its token and kv head.
//
// One scale for the keys and one for the values of every (token, kv head). A coarser one (per tensor, as calibrated fp8
// checkpoints have) needs calibration and clips what it did not foresee; one per channel suits keys (Liu et al. 2024, KIVI)
// but is known only when a block is full, so that a block in the making needs a second form. Per token a row is final when
// it is written, pages are shared and moved as in fp16, and the scale comes out of both products: scores are multiplied by
// the keys' scale and probabilities by the values', not elements.
//
// Scales are bf16, rounded up: nothing saturates, and no scale of a float row is out of range. Codes are made with the
// rounded scale, so its own rounding costs no accuracy. int8 is symmetric: errors up to 1/254 of the row's largest value,
// fp8 (e4m3, Micikevicius et al. 2022) up to 1/16 of each value's own size, however large its neighbours are.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/dtype.h"
#include "quant/half.h"

namespace edgeshift {

// The largest magnitude of a code.
constexpr float largest_code(KvDtype dtype) { return dtype == KvDtype::fp8 ? 448.0f : 127.0f; }

// The bf16 scale of a row with that largest magnitude: never zero, infinite or NaN.
inline uint16_t kv_scale(float largest, KvDtype dtype) {
  const float scale = std::clamp(largest / largest_code(dtype), 1e-30f, 1e30f);
  return uint16_t((std::bit_cast<uint32_t>(scale) + 0xffffu) >> 16);
}

// e4m3 has three bits of fraction and a bias of 7, binary16 ten and 15: shifted into it a code is 2^-8 of its value.
inline constexpr float kFp8AsHalf = 256;
inline f16 fp8_as_half(uint8_t code) { return {uint16_t((code & 0x80u) << 8 | (code & 0x7fu) << 7)}; }

inline float kv_code_value(uint8_t code, KvDtype dtype) {
  return dtype == KvDtype::int8 ? float(int8_t(code)) : to_float(fp8_as_half(code)) * kFp8AsHalf;
}

// Nearest code, ties to even, saturating. NaN becomes some finite code.
inline uint8_t int8_code(float x) {
  // Floats at 2^23 have a spacing of one.
  const float shifted = std::max(-127.0f, std::min(127.0f, x)) + 0x1.8p23f;
  return uint8_t(std::bit_cast<uint32_t>(shifted));
}
inline uint8_t fp8_code(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), size = bits & 0x7fffffffu;
  const uint32_t normal = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
  // Below 2^-6 codes are steps of 2^-9, the spacing of floats at 2^14.
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0x1p14f) - std::bit_cast<uint32_t>(0x1p14f);
  const uint32_t code = size < 0x3c800000u ? small : normal;
  return uint8_t((bits >> 24 & 0x80u) | (size > 0x43e00000u ? 0x7eu : code));
}

}  // namespace edgeshift
