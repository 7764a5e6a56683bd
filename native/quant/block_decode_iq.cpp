#include <bit>
#include <cstring>

#include "quant/block_decode.h"
#include "quant/half.h"
#include "quant/iq_grids.h"

namespace edgeshift {

const int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

namespace {

constexpr float kLevels2[] = {8, 25, 43, 0};
constexpr float kLevels3Xxs[] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr float kLevels3S[] = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr float kDelta = 0.125f;

template <class T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float half_at(const uint8_t* from) { return to_float(f16{read<uint16_t>(from)}); }

// 7 stored signs; the eighth makes their number even.
uint32_t signs_of(uint32_t seven) { return seven | uint32_t(std::popcount(seven) & 1) << 7; }

// Eight elements of a codebook entry of 2-bit levels.
void put8(uint16_t entry, uint32_t signs, float scale, float* out) {
  for (int i = 0; i < 8; ++i) {
    const float value = scale * kLevels2[entry >> (2 * i) & 3];
    out[i] = signs >> i & 1 ? -value : value;
  }
}

// Four elements of a codebook entry of 3-bit levels.
void put4(uint16_t entry, const float* levels, uint32_t signs, float scale, float* out) {
  for (int i = 0; i < 4; ++i) {
    const float value = scale * levels[entry >> (3 * i) & 7];
    out[i] = signs >> i & 1 ? -value : value;
  }
}

// d, then for every 32 weights four indices and a word of four sevens of signs and a scale of 4 bits.
void decode_iq2_xxs(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int j = 0; j < 8; ++j) {
    const uint8_t* indices = b + 2 + j * 8;
    const uint32_t word = read<uint32_t>(indices + 4);
    const float scale = d * (0.5f + float(word >> 28)) * 0.25f;
    for (int l = 0; l < 4; ++l) {
      put8(kIq2XxsGrid[indices[l]], signs_of(word >> (7 * l) & 127), scale, out + j * 32 + l * 8);
    }
  }
}

// d, 32 words of a 9-bit index and 7 signs, 8 bytes of two scales.
void decode_iq2_xs(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int l = 0; l < 32; ++l) {
    const uint16_t word = read<uint16_t>(b + 2 + l * 2);
    const float scale = d * (0.5f + float(b[66 + l / 4] >> (l % 4 / 2 * 4) & 15)) * 0.25f;
    put8(kIq2XsGrid[word & 511], signs_of(word >> 9), scale, out + l * 8);
  }
}

// d, 32 low bytes of indices, 32 bytes of signs, 8 of high bits, 8 of two scales.
void decode_iq2_s(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int l = 0; l < 32; ++l) {
    const int index = b[2 + l] | (b[66 + l / 4] >> (l % 4 * 2) & 3) << 8;
    const float scale = d * (0.5f + float(b[74 + l / 4] >> (l % 4 / 2 * 4) & 15)) * 0.25f;
    put8(kIq2SGrid[index], b[34 + l], scale, out + l * 8);
  }
}

// d, 64 indices, 8 words of four sevens of signs and a scale of 4 bits.
void decode_iq3_xxs(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int j = 0; j < 8; ++j) {
    const uint32_t word = read<uint32_t>(b + 66 + j * 4);
    const float scale = d * (0.5f + float(word >> 28)) * 0.5f;
    for (int l = 0; l < 8; ++l) {
      const uint32_t signs = signs_of(word >> (l / 2 * 7) & 127) >> (l % 2 * 4);
      put4(kIq3XxsGrid[b[2 + j * 8 + l]], kLevels3Xxs, signs, scale, out + j * 32 + l * 4);
    }
  }
}

// d, 64 low bytes of indices, 8 of high bits, 32 of signs, 4 of two scales.
void decode_iq3_s(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int l = 0; l < 64; ++l) {
    const int index = b[2 + l] | (b[66 + l / 8] >> (l % 8) & 1) << 8;
    const float scale = d * float(1 + 2 * (b[106 + l / 16] >> (l / 8 % 2 * 4) & 15));
    put4(kIq3SGrid[index], kLevels3S, uint32_t(b[74 + l / 2] >> (l % 2 * 4)), scale, out + l * 4);
  }
}

void put_ternary(uint16_t entry, float scale, float delta, float* out) {
  for (int i = 0; i < 8; ++i) out[i] = scale * (float(int(entry >> (2 * i) & 3) - 1) + delta);
}

// d, 32 low bytes of indices, 8 words of four threes of high bits, a scale of 3 bits and the sign of the shift.
void decode_iq1_s(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int l = 0; l < 32; ++l) {
    const uint16_t word = read<uint16_t>(b + 34 + l / 4 * 2);
    const int index = b[2 + l] | (word >> (l % 4 * 3) & 7) << 8;
    const float scale = d * float(2 * (word >> 12 & 7) + 1);
    put_ternary(kIq1Grid[index], scale, word & 0x8000 ? -kDelta : kDelta, out + l * 8);
  }
}

// 32 low bytes of indices, 16 of nibbles (three high bits, the sign of the shift), four words of four scales of 3 bits
// whose top nibbles make up d.
void decode_iq1_m(const uint8_t* b, float* out) {
  uint16_t bits = 0;
  for (int w = 0; w < 4; ++w) bits = uint16_t(bits | (read<uint16_t>(b + 48 + w * 2) >> 12) << (4 * w));
  const float d = to_float(f16{bits});
  for (int l = 0; l < 32; ++l) {
    const int nibble = b[32 + l / 2] >> (l % 2 * 4) & 15;
    const int index = b[l] | (nibble & 7) << 8;
    const int half = l / 2;  // a scale for every 16 weights
    const int scale = read<uint16_t>(b + 48 + half / 4 * 2) >> (half % 4 * 3) & 7;
    put_ternary(kIq1Grid[index], d * float(2 * scale + 1), nibble & 8 ? -kDelta : kDelta, out + l * 8);
  }
}

void put_iq4(const uint8_t* nibbles, float scale, float* out) {
  for (int i = 0; i < 16; ++i) {
    out[i] = scale * float(kIq4Values[nibbles[i] & 15]);
    out[i + 16] = scale * float(kIq4Values[nibbles[i] >> 4]);
  }
}

// d, 8 pairs of high bits of scales, 4 bytes of their low nibbles, 128 bytes of nibbles.
void decode_iq4_xs(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const uint16_t high = read<uint16_t>(b + 2);
  for (int j = 0; j < 8; ++j) {
    const int scale = (b[4 + j / 2] >> (j % 2 * 4) & 15) | (high >> (2 * j) & 3) << 4;
    put_iq4(b + 8 + j * 16, d * float(scale - 32), out + j * 32);
  }
}

}  // namespace

void decode_iq_block(BlockType type, const uint8_t* b, float* out) {
  switch (type) {
    case BlockType::iq1_s: return decode_iq1_s(b, out);
    case BlockType::iq1_m: return decode_iq1_m(b, out);
    case BlockType::iq2_xxs: return decode_iq2_xxs(b, out);
    case BlockType::iq2_xs: return decode_iq2_xs(b, out);
    case BlockType::iq2_s: return decode_iq2_s(b, out);
    case BlockType::iq3_xxs: return decode_iq3_xxs(b, out);
    case BlockType::iq3_s: return decode_iq3_s(b, out);
    case BlockType::iq4_nl: return put_iq4(b + 2, half_at(b), out);
    default: return decode_iq4_xs(b, out);
  }
}

}  // namespace edgeshift
