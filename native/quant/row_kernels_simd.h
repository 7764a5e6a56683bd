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
// max, min (the second operand where one is NaN), half (to binary16 and back) of a vector; largest, store_half, store_bytes,
// store_nibbles (two codes a byte) of all lanes; and from_bytes.
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

  // 1.5 * 2^23: a sum with it has no fraction bits left.
  static constexpr float kRounder = 12582912.0f;

  // Nearest integer inside [low, high], ties to even.
  ES_INLINE static Floats round_codes(const Floats& v, float low, float high) {
    return (clamp(v, low, high) + kRounder) - kRounder;
  }

  ES_INLINE static Floats finite_half(const Floats& v) {
    return Floats::map(Set::half, clamp(v, -kLargestHalf, kLargestHalf));
  }

  ES_INLINE static Floats inverse_of(const Floats& scale) {
    return where_less(0.0f, scale, Floats(1.0f) / scale, 0.0f);
  }

  // Least squares of codes 0 to 15 against the weights that they stand for, one group a lane. Weights are in steps of the
  // group's range: range_steps() puts them there.
  struct Fit {
    Floats sum_q = 0.0f, sum_qq = 0.0f, sum_qt = 0.0f;

    ES_INLINE void add(const Floats& q, const Floats& t) {
      sum_q += q;
      sum_qq += q * q;
      sum_qt += q * t;
    }
  };

  // t = q * scale + minimum. `gain`: how much smaller its squared error is than that of a constant, times the number of
  // weights. Codes that are all the same have no line: scale 0.
  struct FitLine {
    Floats scale, minimum, gain;
  };

  ES_INLINE static FitLine line_of(const Fit& fit, const Floats& sum_t, int count) {
    const Floats n = float(count);
    const Floats spread = n * fit.sum_qq - fit.sum_q * fit.sum_q, common = n * fit.sum_qt - fit.sum_q * sum_t;
    const Floats scale = where_less(0.0f, spread, common / spread, 0.0f);
    return {scale, (sum_t - scale * fit.sum_q) / n, scale * common};
  }

  // Sixteen groups of `count` weights, one a lane, from their smallest weight on in steps of a fifteenth of their range,
  // in place; groups of equal weights become zeros.
  struct Steps {
    Floats low, step, sum;
  };

  ES_INLINE static Steps range_steps(float* w, int count) {
    Floats low = Floats::load(w), high = low;
    for (int j = 1; j < count; ++j) {
      low = smaller(Floats::load(w + j * kLanes), low);
      high = larger(Floats::load(w + j * kLanes), high);
    }
    const Floats range = high - low;
    // Below, a step is no binary16, and its inverse no float.
    const Floats inverse = where_less(1e-30f, range, Floats(15.0f) / range, 0.0f);
    Floats sum = 0.0f;
    for (int j = 0; j < count; ++j) {
      const Floats t = (Floats::load(w + j * kLanes) - low) * inverse;
      t.store(w + j * kLanes);
      sum += t;
    }
    return {low, range * Floats(1.0f / 15.0f), sum};
  }

  // The best line of two: for codes of the whole range, and of one without a twentieth at each end. Then once more for
  // the codes that it gives. A sum of squares from the sums of a fit, not from the weights, is enough to choose by.
  ES_INLINE static Lines best_lines(float* w, int count) {
    constexpr float kCut = 0.05f, kStretch = 1 / (1 - 2 * kCut);
    const Steps steps = range_steps(w, count);
    Fit whole, cut, again;
    for (int j = 0; j < count; ++j) {
      const Floats t = Floats::load(w + j * kLanes);
      whole.add((t + kRounder) - kRounder, t);
      cut.add(round_codes((t - 15 * kCut) * kStretch, 0, 15), t);
    }
    FitLine best = line_of(whole, steps.sum, count);
    const FitLine other = line_of(cut, steps.sum, count);
    best.scale = where_less(best.gain, other.gain, other.scale, best.scale);
    best.minimum = where_less(best.gain, other.gain, other.minimum, best.minimum);
    const Floats inverse = inverse_of(best.scale);
    for (int j = 0; j < count; ++j) {
      const Floats t = Floats::load(w + j * kLanes);
      again.add(round_codes((t - best.minimum) * inverse, 0, 15), t);
    }
    best = line_of(again, steps.sum, count);
    return {finite_half(best.scale * steps.step), finite_half(best.minimum * steps.step + steps.low)};
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
      Set::store_nibbles(q, codes + j / 2);
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

  // Scales of up to sixteen groups of one row, and their inverses; together, so that no group waits for another's division.
  ES_INLINE static void int8_scales(const float* w, int group, int groups, f16* to, float* scales, float* inverses) {
    float magnitudes[kLanes] = {};
    for (int g = 0; g < groups; ++g) {
      Floats low = 0.0f, high = 0.0f;
      for (int j = 0; j < group; j += kLanes, w += kLanes) {
        const Floats v = Floats::load(w);
        low = smaller(v, low);
        high = larger(v, high);
      }
      magnitudes[g] = Set::largest(larger(high, Floats(0.0f) - low));
    }
    const Floats scale = finite_half(Floats::load(magnitudes) / 127.0f);
    scale.store(scales);
    inverse_of(scale).store(inverses);
    for (int g = 0; g < groups; ++g) to[g] = to_f16(scales[g]);
  }

  static void round_int8(const FloatRows& in, uint8_t* codes, f16* scales, RoundingSums& sums) {
    const float* w = in.weights;
    for (int row = 0; row < in.rows; ++row) {
      LaneSums lanes;
      for (int left = in.groups(); left > 0; left -= kLanes) {
        const int groups = std::min(left, kLanes);
        float scale[kLanes], inverse[kLanes];
        int8_scales(w, in.group, groups, scales, scale, inverse);
        scales += groups;
        for (int g = 0; g < groups; ++g) {
          for (int j = 0; j < in.group; j += kLanes, w += kLanes, codes += kLanes) {
            const Floats weight = Floats::load(w), q = round_codes(weight * inverse[g], -127, 127);
            lanes.add(weight - q * scale[g], weight);
            Set::store_bytes(q, codes);
          }
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
