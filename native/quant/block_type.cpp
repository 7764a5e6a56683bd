#include "quant/block_type.h"

#include <cstring>
#include <string>

#include "quant/block_decode.h"
#include "quant/half.h"
#include "quant/row_kernels.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace edgeshift {

namespace {

struct TypeRow {
  std::string_view name;
  int weights;
  int bytes;
};

// In the order of BlockType.
constexpr TypeRow kTypes[] = {
    {"f32", 1, 4},        {"f16", 1, 2},        {"bf16", 1, 2},       {"q4_0", 32, 18},      {"q4_1", 32, 20},
    {"q5_0", 32, 22},     {"q5_1", 32, 24},     {"q8_0", 32, 34},     {"q2_k", 256, 84},     {"q3_k", 256, 110},
    {"q4_k", 256, 144},   {"q5_k", 256, 176},   {"q6_k", 256, 210},   {"iq1_s", 256, 50},    {"iq1_m", 256, 56},
    {"iq2_xxs", 256, 66}, {"iq2_xs", 256, 74},  {"iq2_s", 256, 82},   {"iq3_xxs", 256, 98},  {"iq3_s", 256, 110},
    {"iq4_nl", 32, 18},   {"iq4_xs", 256, 136}, {"tq1_0", 256, 54},   {"tq2_0", 256, 66},    {"mxfp4", 32, 17},
    {"nvfp4", 64, 36}};

template <class T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float read_half(const uint8_t* from) { return to_float(f16{read<uint16_t>(from)}); }

#ifdef __x86_64__
__attribute__((target("avx,f16c"))) void halves_to_floats_f16c(const uint8_t* from, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i))));
  }
  for (; i < count; ++i) out[i] = read_half(from + 2 * i);
}
#endif

void halves_to_floats(const uint8_t* from, int64_t count, float* out) {
#ifdef __x86_64__
  static const bool fast = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  if (fast) return halves_to_floats_f16c(from, count, out);
#endif
  for (int64_t i = 0; i < count; ++i) out[i] = read_half(from + 2 * i);
}

// Weights i and i + 16 of a block share byte i: low nibble, high nibble; bit i of `high` is the fifth bit of weight i.
void decode_q5(const uint8_t* nibbles, uint32_t high, float scale, float minimum, int offset, float* out) {
  for (int i = 0; i < 16; ++i) {
    int low_code = (nibbles[i] & 15) | int(high >> i & 1u) << 4;
    int high_code = (nibbles[i] >> 4) | int(high >> (i + 16) & 1u) << 4;
    out[i] = float(low_code - offset) * scale + minimum;
    out[i + 16] = float(high_code - offset) * scale + minimum;
  }
}

void decode_floats(BlockType type, const uint8_t* from, int64_t count, float* out) {
  if (type == BlockType::f32) {
    std::memcpy(out, from, size_t(count) * sizeof(float));
  } else if (type == BlockType::f16) {
    halves_to_floats(from, count, out);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(read<uint16_t>(from + 2 * i));
  }
}

void decode_block(BlockType type, const uint8_t* b, float* out) {
  switch (type) {
    case BlockType::q5_0: decode_q5(b + 6, read<uint32_t>(b + 2), read_half(b), 0, 16, out); break;
    case BlockType::q5_1: decode_q5(b + 8, read<uint32_t>(b + 4), read_half(b), read_half(b + 2), 0, out); break;
    case BlockType::q8_0: {
      const float scale = read_half(b);
      for (int i = 0; i < 32; ++i) out[i] = float(int8_t(b[2 + i])) * scale;
      break;
    }
    case BlockType::q2_k:
    case BlockType::q3_k:
    case BlockType::q4_k:
    case BlockType::q5_k:
    case BlockType::q6_k:
    case BlockType::tq1_0:
    case BlockType::tq2_0:
    case BlockType::mxfp4:
    case BlockType::nvfp4: decode_k_block(type, b, out); break;
    default: decode_iq_block(type, b, out);
  }
}

}  // namespace

int block_weights(BlockType type) { return kTypes[int(type)].weights; }
int block_bytes(BlockType type) { return kTypes[int(type)].bytes; }

Precision native_width(BlockType type) {
  if (block_weights(type) == 1) return Precision::fp16;
  switch (type) {
    case BlockType::q4_0:
    case BlockType::q4_1:
    case BlockType::q4_k:
    case BlockType::q2_k:
    case BlockType::iq1_s:
    case BlockType::iq1_m:
    case BlockType::iq2_xxs:
    case BlockType::iq2_xs:
    case BlockType::iq2_s:
    case BlockType::tq1_0:
    case BlockType::tq2_0: return Precision::int4;
    default: return Precision::int8;
  }
}

Result<BlockType> parse_block_type(std::string_view name) {
  for (int i = 0; i < int(std::size(kTypes)); ++i) {
    if (kTypes[i].name == name) return BlockType(i);
  }
  return Status(Code::unsupported, "weight type \"" + std::string(name) + "\" is not supported");
}

Status dequantize_rows(BlockType type, const void* data, int64_t rows, int64_t k, float* out) {
  int weights = block_weights(type);
  if (rows < 0 || k < 0 || k % weights != 0) {
    return Status(Code::invalid_argument, "rows of " + std::to_string(k) + " weights are not whole blocks of " + std::to_string(weights));
  }
  const uint8_t* from = static_cast<const uint8_t*>(data);
  if (weights == 1) {
    decode_floats(type, from, rows * k, out);
    return {};
  }
  if (type == BlockType::q4_0 || type == BlockType::q4_1) {
    row_kernels().decode_q4(from, rows * k / weights, type == BlockType::q4_1, out);
    return {};
  }
  for (int64_t block = 0; block < rows * k / weights; ++block) {
    decode_block(type, from + block * block_bytes(type), out + block * weights);
  }
  return {};
}

}  // namespace edgeshift
