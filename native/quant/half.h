// Conversions between IEEE binary16, bfloat16 and float, bit for bit the same on every machine.
#pragma once

#include <bit>
#include <cstdint>

#include "core/dtype.h"

namespace edgeshift {

// Exact; NaN stays NaN.
inline float to_float(f16 h) {
  uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  uint32_t magnitude = h.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // The multiplication normalizes subnormals; both factors are exact.
  float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

// Rounds to nearest, ties to even; overflow becomes infinity.
inline f16 to_f16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (bits >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and above
  if (bits < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the mantissa, rounded, in the low bits.
    float shifted = std::bit_cast<float>(bits) + 0.5f;
    return {uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u;
  return {uint16_t(sign | rounded >> 13)};
}

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

}  // namespace edgeshift
