// The code layouts of GPTQ, AWQ and compressed-tensors.
//   gptq            i32 [k * bits / 32, n]: along k, a stream of bits from the least significant on (3-bit codes straddle)
//   awq gemm        i32 [k, n / 8]: nibble j of a word is output 8c + (0, 2, 4, 6, 1, 3, 5, 7)[j]; with 8 bits [k, n / 4],
//                   bytes in order (GPTQModel, its pack_awq())
//   awq gemv        i32 [n, k / 8]: along k, nibbles in order
//   awq gemv_fast   i16 [n / 4, k]: for every 64 inputs 64 words; nibble j of word p holds row 4r + p / 16 of the four
//                   and place 4 * (p % 16) + j of those 64 inputs, whose order within 32 is kFastOrder
//   pack-quantized  i32 [n, k * bits / 32]: along k, in order, offset by 2^(bits - 1)
//   int-quantized   i8 [n, k], signed
#include <cstring>

#include "quant/affine_matrix.h"

namespace edgeshift {

namespace {

uint32_t word_at(const uint8_t* data, int64_t index) {
  uint32_t word;
  std::memcpy(&word, data + index * 4, 4);
  return word;
}

// Eight nibbles to eight bytes, in order.
uint64_t spread_nibbles(uint32_t word) {
  uint64_t x = word;
  x = (x | x << 16) & 0x0000ffff0000ffffu;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
}

// The 32 / bits codes of a word, in order.
void unpack_word(uint32_t word, int bits, uint8_t* out) {
  if (bits == 4) {
    const uint64_t codes = spread_nibbles(word);
    std::memcpy(out, &codes, 8);
  } else if (bits == 8) {
    std::memcpy(out, &word, 4);
  } else {
    for (int i = 0; i < 16; ++i) out[i] = uint8_t(word >> (2 * i) & 3);
  }
}

// 32 codes of 3 bits from three words.
void unpack_three(uint32_t a, uint32_t b, uint32_t c, uint8_t* out) {
  const uint64_t low = uint64_t(b) << 32 | a;
  const uint64_t high = uint64_t(c) << 32 | b;
  for (int i = 0; i < 21; ++i) out[i] = uint8_t(low >> (3 * i) & 7);
  for (int i = 21; i < 32; ++i) out[i] = uint8_t(high >> (3 * i - 32) & 7);
}

void read_gptq(const AffineMatrix& m, int begin, int end, uint8_t* out) {
  const uint8_t* data = m.source.codes.data;
  const int step = m.bits == 3 ? 3 : 1;
  const int codes = 32 * step / m.bits;
  const int64_t words = int64_t(m.k) * m.bits / 32;
  for (int64_t w = 0; w < words; w += step) {
    uint8_t* to = out + w / step * codes;
    for (int row = begin; row < end; ++row, to += m.k) {
      const int64_t at = w * m.n + row;
      if (m.bits == 3) unpack_three(word_at(data, at), word_at(data, at + m.n), word_at(data, at + 2 * int64_t(m.n)), to);
      else unpack_word(word_at(data, at), m.bits, to);
    }
  }
}

void read_awq_gemm(const AffineMatrix& m, int begin, int end, uint8_t* out) {
  static constexpr int kPlace[] = {0, 4, 1, 5, 2, 6, 3, 7};
  const int64_t words = int64_t(m.n) * m.bits / 32;
  for (int i = 0; i < m.k; ++i) {
    const uint8_t* row_words = m.source.codes.data + i * words * 4;
    if (m.bits == 8) {
      for (int row = begin; row < end; ++row) out[int64_t(row - begin) * m.k + i] = row_words[row];
      continue;
    }
    for (int row = begin; row < end;) {
      const uint32_t word = word_at(row_words, row / 8);
      const int last = end < (row / 8 + 1) * 8 ? end : (row / 8 + 1) * 8;
      for (; row < last; ++row) out[int64_t(row - begin) * m.k + i] = uint8_t(word >> (4 * kPlace[row % 8]) & 15);
    }
  }
}

// Input, of 32, at each place of gemv_fast: pairs dealt to four lanes, then each eight as evens before odds.
constexpr uint8_t kFastOrder[] = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                                  4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};

void read_gemv_fast(const AffineMatrix& m, int begin, int end, uint8_t* out) {
  for (int row = begin; row < end; ++row) {
    uint8_t* to = out + int64_t(row - begin) * m.k;
    for (int i = 0; i < m.k; i += 64) {
      const uint8_t* words = m.source.codes.data + (int64_t(row / 4) * m.k + i + row % 4 * 16) * 2;
      for (int place = 0; place < 64; ++place) {
        uint16_t word;
        std::memcpy(&word, words + place / 4 * 2, 2);
        to[i + place / 32 * 32 + kFastOrder[place % 32]] = uint8_t(word >> (4 * (place % 4)) & 15);
      }
    }
  }
}

// Rows of words along k, the last one maybe partly used.
void read_rows(const AffineMatrix& m, int begin, int end, uint8_t* out) {
  const int per_word = 32 / m.bits;
  const int64_t words = (m.k + per_word - 1) / per_word;
  for (int row = begin; row < end; ++row, out += m.k) {
    const uint8_t* data = m.source.codes.data + row * words * 4;
    int i = 0;
    for (; i + per_word <= m.k; i += per_word) unpack_word(word_at(data, i / per_word), m.bits, out + i);
    uint8_t tail[16];
    if (i < m.k) unpack_word(word_at(data, i / per_word), m.bits, tail);
    for (int j = 0; i + j < m.k; ++j) out[i + j] = tail[j];
  }
}

void read_signed(const AffineMatrix& m, int begin, int end, uint8_t* out) {
  const uint8_t* data = m.source.codes.data + int64_t(begin) * m.k;
  for (int64_t i = 0; i < int64_t(end - begin) * m.k; ++i) out[i] = uint8_t(data[i] ^ 0x80);
}

}  // namespace

void read_codes(const AffineMatrix& m, int begin, int end, uint8_t* out) {
  switch (m.source.storage.method) {
    case Method::gptq: return read_gptq(m, begin, end, out);
    case Method::int_quantized: return read_signed(m, begin, end, out);
    case Method::awq:
      if (m.source.storage.version == AwqVersion::gemm) return read_awq_gemm(m, begin, end, out);
      if (m.source.storage.version == AwqVersion::gemv_fast) return read_gemv_fast(m, begin, end, out);
      return read_rows(m, begin, end, out);
    default: return read_rows(m, begin, end, out);
  }
}

}  // namespace edgeshift
