// Matrices of known codes in the formats of GPTQ, AWQ and compressed-tensors, packed one code at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "quant/half.h"
#include "quant/weight_source.h"
#include "test/random.h"

namespace edgeshift::test {

// w[row, i] = (codes[row * k + i] - zeros[row * groups + g]) * scales[row * groups + g], g = group_of[i].
struct Stored {
  int n = 0, k = 0, bits = 0, group = 0, groups = 0;
  std::vector<int> codes, zeros, group_of;
  std::vector<f16> scales;
  WeightSource source;
  std::deque<std::vector<uint8_t>> bytes;

  double value(int row, int i) const {
    const size_t at = size_t(row * groups + group_of[size_t(i)]);
    return double(codes[size_t(row * k + i)] - zeros[at]) * double(to_float(scales[at]));
  }
};

class StoredBuilder {
 public:
  // Scales are drawn from 0 to `scale`.
  StoredBuilder(Storage storage, int n, int k, bool act_order, bool symmetric, Random& random, float scale = 0.1f)
      : random_(random) {
    Stored& s = out_;
    s.n = n, s.k = k, s.bits = storage.bits;
    s.group = storage.group_size == 0 ? k : std::min(storage.group_size, k);
    s.groups = (k + s.group - 1) / s.group;
    s.source.slot = "test";
    s.source.shape = {n, k};
    s.source.storage = storage;
    for (int i = 0; i < n * k; ++i) s.codes.push_back(random.below(1 << s.bits));
    for (int i = 0; i < n * s.groups; ++i) {
      s.zeros.push_back(symmetric ? 1 << (s.bits - 1) : random.below(1 << s.bits));
      s.scales.push_back(to_f16((0.01f + random.uniform()) * scale));
    }
    for (int i = 0; i < k; ++i) s.group_of.push_back(i / s.group);
    if (act_order) shuffle();
    pack();
  }
  Stored take() { return std::move(out_); }

 private:
  void shuffle() {
    std::vector<int>& g = out_.group_of;
    for (size_t i = g.size() - 1; i > 0; --i) std::swap(g[i], g[size_t(random_.below(int(i) + 1))]);
    std::vector<uint8_t> index(g.size() * 4);
    for (size_t i = 0; i < g.size(); ++i) std::memcpy(&index[i * 4], &g[i], 4);
    put(out_.source.group_index, "i32", {out_.k}, std::move(index));
  }

  void put(TensorBytes& tensor, const char* type, std::vector<int64_t> shape, std::vector<uint8_t> bytes) {
    out_.bytes.push_back(std::move(bytes));
    tensor = {type, std::move(shape), out_.bytes.back().data(), out_.bytes.back().size()};
  }

  static void put_bits(std::vector<uint8_t>& to, int64_t bit, int bits, int value) {
    for (int i = 0; i < bits; ++i) {
      if (value >> i & 1) to[size_t((bit + i) / 8)] |= uint8_t(1 << ((bit + i) % 8));
    }
  }

  void pack() {
    switch (out_.source.storage.method) {
      case Method::gptq: return pack_gptq();
      case Method::awq: return pack_awq();
      case Method::pack_quantized: return pack_packed();
      default: return pack_bytes();
    }
  }

  // Scales at [group][row] or, by_row, [row][width].
  void put_scales(bool by_row, int width) {
    Stored& s = out_;
    std::vector<uint8_t> bytes(size_t(by_row ? s.n * width : width * s.n) * 2);
    for (int r = 0; r < s.n; ++r) {
      for (int g = 0; g < s.groups; ++g) {
        std::memcpy(&bytes[size_t(by_row ? r * width + g : g * s.n + r) * 2], &s.scales[size_t(r * s.groups + g)], 2);
      }
    }
    put(s.source.scales, "f16", by_row ? std::vector<int64_t>{s.n, width} : std::vector<int64_t>{width, s.n}, std::move(bytes));
  }

  void pack_gptq() {
    Stored& s = out_;
    const int words = s.k * s.bits / 32, zero_words = s.n * s.bits / 32;
    // A column's words lie n apart: packed as [n][words], then transposed.
    std::vector<uint8_t> columns(size_t(s.n * words) * 4), codes(columns.size()), zeros(size_t(s.groups * zero_words) * 4);
    for (int r = 0; r < s.n; ++r) {
      for (int i = 0; i < s.k; ++i) put_bits(columns, int64_t(r) * words * 32 + i * s.bits, s.bits, s.codes[size_t(r * s.k + i)]);
      for (int w = 0; w < words; ++w) std::memcpy(&codes[size_t(w * s.n + r) * 4], &columns[size_t(r * words + w) * 4], 4);
      for (int g = 0; g < s.groups; ++g) put_bits(zeros, int64_t(g) * zero_words * 32 + r * s.bits, s.bits, s.zeros[size_t(r * s.groups + g)]);
    }
    if (s.source.storage.zero_points_minus_one) subtract(zeros, zero_words);
    put(s.source.codes, "i32", {words, s.n}, std::move(codes));
    put(s.source.zero_points, "i32", {s.groups, zero_words}, std::move(zeros));
    put_scales(false, s.groups);
  }

  // GPTQModel's convert_gptq_v2_to_v1_format: whole words.
  void subtract(std::vector<uint8_t>& zeros, int row_words) {
    const uint32_t three[] = {0b00100100100100100100100100100100u, 0b10010010010010010010010010010010u, 0b01001001001001001001001001001001u};
    for (size_t w = 0; w < zeros.size() / 4; ++w) {
      uint32_t word;
      std::memcpy(&word, &zeros[w * 4], 4);
      const int bits = out_.bits;
      word -= bits == 2 ? 0x55555555u : bits == 3 ? three[w % size_t(row_words) % 3] : bits == 4 ? 0x11111111u : 0x01010101u;
      std::memcpy(&zeros[w * 4], &word, 4);
    }
  }

  void pack_awq() {
    Stored& s = out_;
    const AwqVersion version = s.source.storage.version;
    static const int order[] = {0, 2, 4, 6, 1, 3, 5, 7};
    if (version == AwqVersion::gemm && s.bits == 8) {
      std::vector<uint8_t> codes(size_t(s.k * s.n)), zeros(size_t(s.groups * s.n));
      for (int r = 0; r < s.n; ++r) {
        for (int i = 0; i < s.k; ++i) codes[size_t(i * s.n + r)] = uint8_t(s.codes[size_t(r * s.k + i)]);
        for (int g = 0; g < s.groups; ++g) zeros[size_t(g * s.n + r)] = uint8_t(s.zeros[size_t(r * s.groups + g)]);
      }
      put(s.source.codes, "i32", {s.k, s.n / 4}, std::move(codes));
      put(s.source.zero_points, "i32", {s.groups, s.n / 4}, std::move(zeros));
      return put_scales(false, s.groups);
    }
    if (version == AwqVersion::gemm) {
      std::vector<uint8_t> codes(size_t(s.k * s.n / 2)), zeros(size_t(s.groups * s.n / 2));
      for (int c = 0; c < s.n / 8; ++c) {
        for (int j = 0; j < 8; ++j) {
          const int row = c * 8 + order[j];
          for (int i = 0; i < s.k; ++i) put_bits(codes, (int64_t(i) * (s.n / 8) + c) * 32 + 4 * j, 4, s.codes[size_t(row * s.k + i)]);
          for (int g = 0; g < s.groups; ++g) put_bits(zeros, (int64_t(g) * (s.n / 8) + c) * 32 + 4 * j, 4, s.zeros[size_t(row * s.groups + g)]);
        }
      }
      put(s.source.codes, "i32", {s.k, s.n / 8}, std::move(codes));
      put(s.source.zero_points, "i32", {s.groups, s.n / 8}, std::move(zeros));
      return put_scales(false, s.groups);
    }
    const int unit = s.group >= 128 ? 1 : s.group == 64 ? 2 : 4;
    const int width = ((s.groups + 7) / 8 + unit - 1) / unit * unit;
    if (version == AwqVersion::gemv) {
      std::vector<uint8_t> codes(size_t(s.n * s.k / 2)), zeros(size_t(s.n * width) * 4);
      for (int r = 0; r < s.n; ++r) {
        for (int i = 0; i < s.k; ++i) put_bits(codes, (int64_t(r) * s.k + i) * 4, 4, s.codes[size_t(r * s.k + i)]);
        for (int g = 0; g < s.groups; ++g) put_bits(zeros, int64_t(r) * width * 32 + g * 4, 4, s.zeros[size_t(r * s.groups + g)]);
      }
      put(s.source.codes, "i32", {s.n, s.k / 8}, std::move(codes));
      put(s.source.zero_points, "i32", {s.n, width}, std::move(zeros));
      return put_scales(true, width * 8);
    }
    pack_gemv_fast(width);
  }

  // AutoAWQ's pack_intweight step by step: each 32 codes are cut into pairs (a, b, c) of 4 x 4 x 2 and transposed to
  // (b, a, c); each 8 of those again to evens and odds; four rows are interleaved in runs of 64; four codes a word.
  void pack_gemv_fast(int width) {
    Stored& s = out_;
    std::vector<int> first(s.codes.size()), second(s.codes.size());
    for (size_t base = 0; base < s.codes.size(); base += 32) {
      for (size_t a = 0; a < 4; ++a) {
        for (size_t b = 0; b < 4; ++b) {
          for (size_t c = 0; c < 2; ++c) first[base + b * 8 + a * 2 + c] = s.codes[base + a * 8 + b * 2 + c];
        }
      }
      for (size_t a = 0; a < 4; ++a) {
        for (size_t b = 0; b < 4; ++b) {
          for (size_t c = 0; c < 2; ++c) second[base + a * 8 + c * 4 + b] = first[base + a * 8 + b * 2 + c];
        }
      }
    }
    std::vector<uint8_t> codes(size_t(s.n * s.k / 2)), zeros(size_t(width * 8 * s.n) * 2);
    int64_t nibble = 0;
    for (int r = 0; r < s.n; r += 4) {
      for (int run = 0; run < s.k; run += 64) {
        for (int inner = 0; inner < 4; ++inner) {
          for (int i = 0; i < 64; ++i) put_bits(codes, 4 * nibble++, 4, second[size_t((r + inner) * s.k + run + i)]);
        }
      }
    }
    for (int r = 0; r < s.n; ++r) {
      for (int g = 0; g < s.groups; ++g) {
        const size_t at = size_t(r * s.groups + g);
        const f16 minimum = to_f16(-to_float(s.scales[at]) * float(s.zeros[at]));
        std::memcpy(&zeros[size_t(g * s.n + r) * 2], &minimum, 2);
      }
    }
    put(s.source.codes, "i16", {s.n / 4, s.k}, std::move(codes));
    put(s.source.zero_points, "f16", {width * 8, s.n}, std::move(zeros));
    put_scales(false, width * 8);
  }

  void pack_packed() {
    Stored& s = out_;
    const int per_word = 32 / s.bits, words = (s.k + per_word - 1) / per_word, zero_words = (s.n + per_word - 1) / per_word;
    std::vector<uint8_t> codes(size_t(s.n * words) * 4), zeros(size_t(zero_words * s.groups) * 4);
    for (int r = 0; r < s.n; ++r) {
      for (int i = 0; i < s.k; ++i) put_bits(codes, int64_t(r) * words * 32 + i * s.bits, s.bits, s.codes[size_t(r * s.k + i)]);
      for (int g = 0; g < s.groups; ++g) {
        put_bits(zeros, (int64_t(r / per_word) * s.groups + g) * 32 + r % per_word * s.bits, s.bits, s.zeros[size_t(r * s.groups + g)]);
      }
    }
    put(s.source.codes, "i32", {s.n, words}, std::move(codes));
    if (!s.source.storage.symmetric) put(s.source.zero_points, "i32", {zero_words, s.groups}, std::move(zeros));
    put_scales(true, s.groups);
  }

  void pack_bytes() {
    Stored& s = out_;
    std::vector<uint8_t> codes, zeros;
    for (int code : s.codes) codes.push_back(uint8_t(code - 128));
    for (int zero : s.zeros) zeros.push_back(uint8_t(zero - 128));
    put(s.source.codes, "i8", {s.n, s.k}, std::move(codes));
    if (!s.source.storage.symmetric) put(s.source.zero_points, "i8", {s.n, s.groups}, std::move(zeros));
    put_scales(true, s.groups);
  }

  Random& random_;
  Stored out_;
};

}  // namespace edgeshift::test
