// The body of row_kernels.h on sixteen floats, in as many vectors as the instruction set needs for them. Included once
// by the file of each set.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "quant/half.h"
#include "quant/finite_half.h"
#include "quant/row_kernels.h"

namespace edgeshift {

namespace {

constexpr int kLanes = 16;

#define ES_INLINE inline __attribute__((always_inline))

// Sixteen floats. Set::V is the compiler's vector of the set's width; Set has what the compiler does not find by itself:
// max, min (the second operand where one is NaN), half (to binary16 and back) of a vector; largest, store_half, store_bytes
// of all lanes; and from_bytes.
template <class Set>
struct Wide {
  using V = typename Set::V;
  static constexpr int kParts = int(kLanes * sizeof(float) / sizeof(V));
  V part[kParts];

  Wide() = default;
  ES_INLINE Wide(float value) {
    for (V& p : part) p = V{} + value;
  }
  // Whole vectors: a copy of memory would go through smaller ones and stall.
  using Unaligned [[gnu::vector_size(sizeof(V)), gnu::aligned(4), gnu::may_alias]] = float;
  ES_INLINE static Wide load(const float* from) {
    Wide out;
    for (int i = 0; i < kParts; ++i) out.part[i] = V(reinterpret_cast<const Unaligned*>(from)[i]);
    return out;
  }
  ES_INLINE void store(float* to) const {
    for (int i = 0; i < kParts; ++i) reinterpret_cast<Unaligned*>(to)[i] = part[i];
  }

  // A function of the parts of its operands.
  template <class Function, class... More>
  ES_INLINE static Wide map(Function function, const Wide& a, const More&... more) {
    Wide out;
    for (int i = 0; i < kParts; ++i) out.part[i] = function(a.part[i], more.part[i]...);
    return out;
  }

  ES_INLINE friend Wide operator+(const Wide& a, const Wide& b) { return map([](V x, V y) { return x + y; }, a, b); }
  ES_INLINE friend Wide operator-(const Wide& a, const Wide& b) { return map([](V x, V y) { return x - y; }, a, b); }
  ES_INLINE friend Wide operator*(const Wide& a, const Wide& b) { return map([](V x, V y) { return x * y; }, a, b); }
  ES_INLINE friend Wide operator/(const Wide& a, const Wide& b) { return map([](V x, V y) { return x / y; }, a, b); }
  ES_INLINE Wide& operator+=(const Wide& b) { return *this = *this + b; }

  ES_INLINE friend Wide larger(const Wide& a, const Wide& b) { return map(Set::max, a, b); }
  ES_INLINE friend Wide smaller(const Wide& a, const Wide& b) { return map(Set::min, a, b); }
  // x where a < b, else y.
  ES_INLINE friend Wide where_less(const Wide& a, const Wide& b, const Wide& x, const Wide& y) {
    return map([](V a, V b, V x, V y) { return V(a < b ? x : y); }, a, b, x, y);
  }
};

// Four rows of `count` values (a multiple of four) into four neighbouring lanes.
ES_INLINE void transpose_rows(const float* const* rows, int count, float* to) {
  using Quad = float __attribute__((vector_size(16)));
  for (int j = 0; j < count; j += 4) {
    Quad a, b, c, d;
    std::memcpy(&a, rows[0] + j, 16);
    std::memcpy(&b, rows[1] + j, 16);
    std::memcpy(&c, rows[2] + j, 16);
    std::memcpy(&d, rows[3] + j, 16);
    const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Quad out[] = {
        __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
        __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
    for (int r = 0; r < 4; ++r) std::memcpy(to + (j + r) * kLanes, &out[r], 16);
  }
}

template <class Set>
struct Rows {
  using Floats = Wide<Set>;

  // Sixteen groups, one a lane: w = q * scale + minimum.
  struct Lines {
    Floats scale, minimum;
  };

  // Sums of one row's squares.
  struct LaneSums {
    Floats error{0.0f}, weights{0.0f};

    ES_INLINE void add(const Floats& miss, const Floats& w) {
      error += miss * miss;
      weights += w * w;
    }
    void flush(RoundingSums& sums) const {
      float lanes[2][kLanes];
      error.store(lanes[0]);
      weights.store(lanes[1]);
      for (int i = 0; i < kLanes; ++i) {
        sums.error += double(lanes[0][i]);
        sums.weights += double(lanes[1][i]);
      }
    }
  };

  static uint32_t largest_bits(const float* values, int64_t count) {
    using Bits [[gnu::vector_size(sizeof(typename Set::V))]] = int32_t;
    constexpr int parts = Floats::kParts, width = kLanes / parts;
    Bits largest[parts] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Floats v = Floats::load(values + i);
      for (int p = 0; p < parts; ++p) {
        const Bits bits = Bits(v.part[p]) & 0x7fffffff;
        largest[p] = bits > largest[p] ? bits : largest[p];
      }
    }
    int32_t result = 0;
    for (int lane = 0; lane < kLanes; ++lane) result = std::max(result, largest[lane / width][lane % width]);
    for (; i < count; ++i) result = std::max(result, std::bit_cast<int32_t>(values[i]) & 0x7fffffff);
    return uint32_t(result);
  }

  ES_INLINE static Floats clamp(const Floats& v, float low, float high) { return smaller(larger(v, low), high); }

  // Nearest integer inside [low, high], ties to even. 1.5 * 2^23: such a sum has no fraction bits left.
  ES_INLINE static Floats round_codes(const Floats& v, float low, float high) {
    return (clamp(v, low, high) + 12582912.0f) - 12582912.0f;
  }

  ES_INLINE static Floats finite_half(const Floats& v) {
    return Floats::map(Set::half, clamp(v, -kLargestHalf, kLargestHalf));
  }

  ES_INLINE static Lines rounded(const Lines& line) { return {finite_half(line.scale), finite_half(line.minimum)}; }

  ES_INLINE static Floats inverse_of(const Floats& scale) {
    return where_less(0.0f, scale, Floats(1.0f) / scale, 0.0f);
  }

  // Squared error of coding `count` weights of each lane with its line.
  ES_INLINE static Floats error_of(const float* w, int count, const Lines& line) {
    const Floats inverse = inverse_of(line.scale);
    Floats error = 0.0f;
    for (int j = 0; j < count; ++j) {
      const Floats offset = Floats::load(w + j * kLanes) - line.minimum;
      const Floats miss = offset - round_codes(offset * inverse, 0, 15) * line.scale;
      error += miss * miss;
    }
    return error;
  }

  // The least squares line for the codes that a line gives. Offsets from the minimum keep the sums small.
  ES_INLINE static Lines refined(const float* w, int count, const Lines& line) {
    const Floats inverse = inverse_of(line.scale), n = float(count);
    Floats sum_q = 0.0f, sum_qq = 0.0f, sum_w = 0.0f, sum_qw = 0.0f;
    for (int j = 0; j < count; ++j) {
      const Floats offset = Floats::load(w + j * kLanes) - line.minimum;
      const Floats q = round_codes(offset * inverse, 0, 15);
      sum_q += q;
      sum_qq += q * q;
      sum_w += offset;
      sum_qw += q * offset;
    }
    const Floats spread = n * sum_qq - sum_q * sum_q;
    const Floats scale = (n * sum_qw - sum_q * sum_w) / spread;
    const Floats minimum = line.minimum + (sum_w - scale * sum_q) / n;
    return rounded({where_less(0.0f, spread, scale, line.scale), where_less(0.0f, spread, minimum, line.minimum)});
  }

  ES_INLINE static Lines best_lines(const float* w, int count) {
    Floats low = Floats::load(w), high = low;
    for (int j = 1; j < count; ++j) {
      low = smaller(Floats::load(w + j * kLanes), low);
      high = larger(Floats::load(w + j * kLanes), high);
    }
    const Floats range = high - low;
    auto line_of = [&](float cut) {
      return refined(w, count, rounded({range * Floats((1.0f - 2 * cut) / 15.0f), low + range * Floats(cut)}));
    };
    Lines best = line_of(0);
    Floats least = error_of(w, count, best);
    for (float cut : {0.04f, 0.08f}) {
      const Lines line = line_of(cut);
      const Floats error = error_of(w, count, line);
      best.scale = where_less(error, least, line.scale, best.scale);
      best.minimum = where_less(error, least, line.minimum, best.minimum);
      least = smaller(error, least);
    }
    return best;
  }

  // Up to sixteen groups of `count` weights, one a lane, and where their lines go.
  struct Batch {
    const float* weights[kLanes];
    size_t place[kLanes];
    int lanes = 0;
  };

  static void fit_batch(Batch& batch, int count, float* scratch, f16* scales, f16* minimums) {
    if (batch.lanes == 0) return;
    for (int lane = batch.lanes; lane < kLanes; ++lane) batch.weights[lane] = batch.weights[0];
    for (int lane = 0; lane < kLanes; lane += 4) transpose_rows(batch.weights + lane, (count + 3) / 4 * 4, scratch + lane);
    const Lines best = best_lines(scratch, count);
    float scale[kLanes], minimum[kLanes];
    best.scale.store(scale);
    best.minimum.store(minimum);
    for (int lane = 0; lane < batch.lanes; ++lane) {
      scales[batch.place[lane]] = to_f16(scale[lane]);
      minimums[batch.place[lane]] = to_f16(minimum[lane]);
    }
    batch.lanes = 0;
  }

  // Groups [first, last) of every row, all of `count` weights.
  static void fit_columns(const FloatRows& in, int first, int last, int count, f16* scales, f16* minimums) {
    static thread_local std::vector<float> scratch;
    scratch.resize(size_t(in.group) * kLanes);
    Batch batch{};
    for (int row = 0; row < in.rows; ++row) {
      for (int g = first; g < last; ++g) {
        const size_t place = size_t(row) * size_t(in.groups()) + size_t(g);
        batch.weights[batch.lanes] = in.weights + place * size_t(in.group);
        batch.place[batch.lanes] = place;
        if (++batch.lanes == kLanes) fit_batch(batch, count, scratch.data(), scales, minimums);
      }
    }
    fit_batch(batch, count, scratch.data(), scales, minimums);
  }

  // Two codes a byte.
  ES_INLINE static void store_nibbles(const Floats& q, uint8_t* to) {
    uint64_t bytes[2];
    Set::store_bytes(q, reinterpret_cast<uint8_t*>(bytes));
    for (uint64_t& b : bytes) {
      b = (b | b >> 4) & 0x00ff00ff00ff00ffu;
      b = (b | b >> 8) & 0x0000ffff0000ffffu;
      b |= b >> 16;
    }
    const uint64_t joined = (bytes[0] & 0xffffffffu) | bytes[1] << 32;
    std::memcpy(to, &joined, sizeof joined);
  }

  // `count` codes of a group, and zeros up to its end.
  ES_INLINE static void code_int4(const float* w, int count, int group, float scale, float minimum, uint8_t* codes, LaneSums& sums) {
    const Floats inverse = scale > 0 ? 1.0f / scale : 0.0f;
    for (int j = 0; j < group; j += kLanes) {
      const Floats weight = Floats::load(w + j), offset = weight - minimum;
      Floats q = round_codes(offset * inverse, 0, 15);
      Floats miss = offset - q * scale;
      if (j + kLanes > count) {
        static constexpr float kLane[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const Floats lane = Floats::load(kLane), inside = float(count - j);
        q = where_less(lane, inside, q, 0.0f);
        miss = where_less(lane, inside, miss, 0.0f);
      }
      sums.add(miss, weight);
      store_nibbles(q, codes + j / 2);
    }
  }

  static void round_int4(const FloatRows& in, uint8_t* codes, f16* scales, f16* minimums, RoundingSums& sums) {
    const int whole = in.k / in.group, groups = in.groups(), rest = in.k % in.group;
    fit_columns(in, 0, whole, in.group, scales, minimums);
    if (rest > 0) fit_columns(in, whole, groups, rest, scales, minimums);
    size_t place = 0;
    for (int row = 0; row < in.rows; ++row) {
      LaneSums lanes;
      for (int g = 0; g < groups; ++g, ++place) {
        const size_t first = place * size_t(in.group);
        code_int4(in.weights + first, g < whole ? in.group : rest, in.group, to_float(scales[place]),
                  to_float(minimums[place]), codes + first / 2, lanes);
      }
      lanes.flush(sums);
    }
  }

  ES_INLINE static f16 int8_scale(const float* w, int group) {
    Floats low = 0.0f, high = 0.0f;
    for (int j = 0; j < group; j += kLanes) {
      low = smaller(Floats::load(w + j), low);
      high = larger(Floats::load(w + j), high);
    }
    return to_finite_f16(Set::largest(larger(high, Floats(0.0f) - low)) / 127.0f);
  }

  static void round_int8(const FloatRows& in, uint8_t* codes, f16* scales, RoundingSums& sums) {
    const float* w = in.weights;
    for (int row = 0; row < in.rows; ++row) {
      LaneSums lanes;
      for (int g = 0; g < in.groups(); ++g, w += in.group, codes += in.group) {
        *scales = int8_scale(w, in.group);
        const float scale = to_float(*scales++), inverse = scale > 0 ? 1.0f / scale : 0.0f;
        for (int j = 0; j < in.group; j += kLanes) {
          const Floats weight = Floats::load(w + j), q = round_codes(weight * inverse, -127, 127);
          lanes.add(weight - q * scale, weight);
          Set::store_bytes(q, codes + j);
        }
      }
      lanes.flush(sums);
    }
  }

  static void to_halves(const float* from, int64_t count, f16* to) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) Set::store_half(clamp(Floats::load(from + i), -kLargestHalf, kLargestHalf), to + i);
    for (; i < count; ++i) to[i] = to_finite_f16(from[i]);
  }

  static void decode_q4(const uint8_t* block, int64_t count, bool minimums, float* out) {
    const int head = minimums ? 4 : 2;
    for (int64_t i = 0; i < count; ++i, block += head + 16, out += 32) {
      f16 scale, minimum{};
      std::memcpy(&scale, block, 2);
      if (minimums) std::memcpy(&minimum, block + 2, 2);
      const float s = to_float(scale), m = to_float(minimum), offset = minimums ? 0.0f : 8.0f;
      for (int j = 0; j < 2; ++j) {
        uint64_t nibbles[2];
        std::memcpy(nibbles, block + head, sizeof nibbles);
        for (uint64_t& n : nibbles) n = n >> (4 * j) & 0x0f0f0f0f0f0f0f0fu;
        ((Set::from_bytes(nibbles) - offset) * s + m).store(out + j * kLanes);
      }
    }
  }

  static constexpr RowKernels kernels() { return {largest_bits, round_int8, round_int4, to_halves, decode_q4}; }
};

#undef ES_INLINE

}  // namespace

}  // namespace edgeshift
