#include <bit>
#include <cstring>

#include "quant/block_decode.h"
#include "quant/half.h"

namespace edgeshift {

namespace {

float half_at(const uint8_t* from) {
  f16 h;
  std::memcpy(&h.bits, from, 2);
  return to_float(h);
}

// 16 scales and minimums of 4 bits, 64 bytes of 2-bit codes, d, dmin.
void decode_q2(const uint8_t* b, float* out) {
  const uint8_t* codes = b + 16;
  const float d = half_at(b + 80), dmin = half_at(b + 82);
  for (int i = 0; i < 256; ++i) {
    const int code = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const uint8_t packed = b[i / 16];
    out[i] = d * float(packed & 15) * float(code) - dmin * float(packed >> 4);
  }
}

// 32 bytes of high bits, 64 of 2-bit codes, 12 of 6-bit scales, d.
void decode_q3(const uint8_t* b, float* out) {
  const uint8_t* codes = b + 32;
  const uint8_t* scales = b + 96;
  const float d = half_at(b + 108);
  for (int i = 0; i < 256; ++i) {
    const int j = i / 16;
    const int scale = (scales[j % 8] >> (j / 8 * 4) & 15) | (scales[8 + j % 4] >> (j / 4 * 2) & 3) << 4;
    const int low = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const int high = b[i % 32] >> (i / 32) & 1;
    out[i] = d * float(scale - 32) * float(low - (high ? 0 : 4));
  }
}

// d, dmin, 12 bytes of scales; q5_k: 32 bytes of fifth bits; 128 bytes of nibbles.
void decode_q45(const uint8_t* b, bool five, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t* nibbles = b + (five ? 48 : 16);
  for (int j = 0; j < 8; ++j) {
    const SubBlock sub = k_sub_block(b + 4, j);
    const float scale = d * float(sub.scale), minimum = dmin * float(sub.minimum);
    for (int i = 0; i < 32; ++i) {
      int code = nibbles[j / 2 * 32 + i] >> (j % 2 * 4) & 15;
      if (five) code |= (b[16 + i] >> j & 1) << 4;
      out[j * 32 + i] = scale * float(code) - minimum;
    }
  }
}

// 128 bytes of low nibbles, 64 of high pairs of bits, 16 signed scales, d.
void decode_q6(const uint8_t* b, float* out) {
  const float d = half_at(b + 208);
  for (int j = 0; j < 16; ++j, out += 16) {
    // Sixteen weights of a quarter of a half.
    const int half = j / 8, quarter = j % 8 / 2, at = j % 2 * 16;
    const uint8_t* low = b + half * 64 + quarter % 2 * 32 + at;
    const uint8_t* high = b + 128 + half * 32 + at;
    const float scale = d * float(int8_t(b[192 + j]));
    for (int i = 0; i < 16; ++i) {
      const int code = (low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4;
      out[i] = scale * float(code - 32);
    }
  }
}

// Five ternary digits a byte, the first in the most significant place of byte / 256.
int ternary(uint8_t byte, int power) { return int(uint8_t(byte * power)) * 3 / 256 - 1; }

void decode_tq1(const uint8_t* b, float* out) {
  static constexpr int kPowers[] = {1, 3, 9, 27, 81};
  const float d = half_at(b + 52);
  for (int p = 0; p < 5; ++p) {
    for (int i = 0; i < 32; ++i) out[p * 32 + i] = d * float(ternary(b[i], kPowers[p]));
    for (int i = 0; i < 16; ++i) out[160 + p * 16 + i] = d * float(ternary(b[32 + i], kPowers[p]));
  }
  for (int p = 0; p < 4; ++p) {
    for (int i = 0; i < 4; ++i) out[240 + p * 4 + i] = d * float(ternary(b[48 + i], kPowers[p]));
  }
}

void decode_tq2(const uint8_t* b, float* out) {
  const float d = half_at(b + 64);
  for (int i = 0; i < 256; ++i) out[i] = d * float((b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) - 1);
}

// E2M1 values, doubled.
constexpr int8_t kE2m1[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void decode_mxfp4(const uint8_t* b, float* out) {
  const uint32_t e = b[0];
  const float scale = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * float(kE2m1[b[1 + i] & 15]);
    out[i + 16] = scale * float(kE2m1[b[1 + i] >> 4]);
  }
}

// Unsigned E4M3, halved for the doubled values.
float nvfp4_scale(uint8_t code) {
  if (code == 0 || code == 0x7f) return 0;
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float whole = exponent ? (1 + float(mantissa) / 8) : float(mantissa) / 8;
  // 2^(exponent - 7), halved; subnormals have the exponent of 1.
  return whole * std::bit_cast<float>(uint32_t((exponent ? exponent : 1) + 119) << 23);
}

void decode_nvfp4(const uint8_t* b, float* out) {
  for (int j = 0; j < 4; ++j) {
    const float scale = nvfp4_scale(b[j]);
    for (int i = 0; i < 8; ++i) {
      const uint8_t codes = b[4 + j * 8 + i];
      out[j * 16 + i] = scale * float(kE2m1[codes & 15]);
      out[j * 16 + 8 + i] = scale * float(kE2m1[codes >> 4]);
    }
  }
}

}  // namespace

SubBlock k_sub_block(const uint8_t* p, int j) {
  if (j < 4) return {p[j] & 63, p[j + 4] & 63};
  return {(p[j + 4] & 15) | (p[j - 4] >> 6) << 4, p[j + 4] >> 4 | (p[j] >> 6) << 4};
}

void decode_k_block(BlockType type, const uint8_t* b, float* out) {
  switch (type) {
    case BlockType::q2_k: return decode_q2(b, out);
    case BlockType::q3_k: return decode_q3(b, out);
    case BlockType::q4_k: return decode_q45(b, false, out);
    case BlockType::q5_k: return decode_q45(b, true, out);
    case BlockType::q6_k: return decode_q6(b, out);
    case BlockType::tq1_0: return decode_tq1(b, out);
    case BlockType::tq2_0: return decode_tq2(b, out);
    case BlockType::mxfp4: return decode_mxfp4(b, out);
    default: return decode_nvfp4(b, out);
  }
}

}  // namespace edgeshift
