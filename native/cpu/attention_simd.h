// The kernels of cpu/attention_kernels.h over a register set S (cpu/simd.h).
//
// Scores: lanes are positions (keys lie transposed in the cache), so each score is one chain of fused additions over
// head_dim. Values: lanes are head dimensions, one chain over positions. Rows are taken up to four at a time: every key
// and value that is loaded and converted serves four query rows, which for grouped queries holds in decode too.
#pragma once

#include <bit>

#include "cpu/attention_kernels.h"
#include "cpu/simd.h"
#include "ops/kv_codes.h"
#include "ops/kv_layout.h"

namespace edgeshift::cpu {

// Elements of the cache as floats; codes without their scale, times 1 / unit.
template <class S>
struct HalfCache {
  using Element = f16;
  static constexpr bool scaled = false;
  static constexpr float unit = 1;
  static typename S::V load(const f16* p) { return S::load_half(p); }
};
template <class S>
struct Fp8Cache {
  using Element = uint8_t;
  static constexpr bool scaled = true;
  static constexpr float unit = kFp8AsHalf;
  static typename S::V load(const uint8_t* p) { return S::load_fp8(p); }
};
template <class S>
struct Int8Cache {
  using Element = int8_t;
  static constexpr bool scaled = true;
  static constexpr float unit = 1;
  static typename S::V load(const int8_t* p) { return S::load_int8(p); }
};

template <class S, template <class> class CacheOf>
struct Attention {
  using V = typename S::V;
  using Cache = CacheOf<S>;
  using Element = typename Cache::Element;
  static constexpr int W = S::width;
  static constexpr int kLanes = 16;                        // positions of one group, contiguous in a block
  static constexpr int kGroups = kChunk / kLanes;          // groups of a chunk
  static constexpr int kPass = W == 16 ? 4 : 1;            // groups whose scores are computed in one pass
  static constexpr int kVectors = kPass * kLanes / W;      // registers of a pass
  static constexpr int kSlab = W == 16 ? 64 : 16;          // head dimensions accumulated in one pass over positions

  // Where the 16 positions of each group of a chunk lie, and the scales of coded ones.
  struct ChunkPointers {
    const Element* keys[kGroups];
    const Element* values[kGroups];
    alignas(64) float key_scales[Cache::scaled ? kChunk : 1];
    alignas(64) float value_scales[Cache::scaled ? kChunk : 1];
  };

  // Positions of a chunk that row r may see: [low, high) relative to the chunk, empty when low >= high.
  struct Range {
    int low;
    int high;
  };

  static Range visible(const AttentionSpan& s, int row, int chunk) {
    int position = s.first_position + row / s.group;
    int low = s.window > 0 && position - s.window + 1 > chunk ? position - s.window + 1 - chunk : 0;
    int last = position + 1 < s.end ? position + 1 : s.end;
    int high = last - chunk < kChunk ? last - chunk : kChunk;
    return {low, high};
  }

  static void spread(const char* scales, int inside, float* to) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(scales) + inside;
    for (int i = 0; i < kLanes; ++i) to[i] = std::bit_cast<float>(uint32_t(from[i]) << 16) * Cache::unit;
  }

  // Groups past the last needed one repeat it: their scores are computed in the same pass and ignored.
  static ChunkPointers locate(const AttentionSpan& s, int chunk, int groups) {
    ChunkPointers p;
    for (int g = 0; g < kGroups; ++g) {
      int position = chunk + (g < groups ? g : groups - 1) * kLanes;
      size_t base = size_t(s.blocks[position / s.block_size]) * kKvUnitBytes;
      int inside = position % s.block_size;
      p.keys[g] = reinterpret_cast<const Element*>(s.keys + base) + inside;
      p.values[g] = reinterpret_cast<const Element*>(s.values + base) + int64_t(inside) * s.head_dim;
      if constexpr (Cache::scaled) {
        spread(s.key_scales + base, inside, p.key_scales + g * kLanes);
        spread(s.value_scales + base, inside, p.value_scales + g * kLanes);
      }
    }
    return p;
  }

  // scores[r][kChunk] of R rows for groups [0, groups), raw dot products.
  template <int R>
  static void dot_keys(const AttentionSpan& s, const float* const* q, const ChunkPointers& p, int groups, float (*scores)[kChunk]) {
    for (int g = 0; g < groups; g += kPass) {
      V acc[R][kVectors];
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kVectors; ++v) acc[r][v] = S::zero();
      }
      for (int d = 0; d < s.head_dim; ++d) {
        V key[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          key[v] = Cache::load(p.keys[g + v * W / kLanes] + int64_t(d) * s.block_size + v * W % kLanes);
        }
        for (int r = 0; r < R; ++r) {
          V value = S::set(q[r][d]);
          for (int v = 0; v < kVectors; ++v) acc[r][v] = S::fma(key[v], value, acc[r][v]);
        }
      }
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < kVectors; ++v) S::store(scores[r] + g * kLanes + v * W, acc[r][v]);
      }
    }
  }

  // tanh(x) by way of the exponential; exact at both ends.
  static V tanh_of(V x) {
    V e = exp_of<S>(S::mul(S::set(2.0f), S::min(S::max(x, S::set(-20.0f)), S::set(20.0f))));
    return S::sub(S::set(1.0f), S::div(S::set(2.0f), S::add(e, S::set(1.0f))));
  }

  // Raw dot products to exp(score - new top), zero outside the range, times the values' scales; returns the factor for the
  // state so far.
  static float soften(const AttentionSpan& s, const ChunkPointers& chunk, Range range, float* scores, float& top, float& sum) {
    for (int i = 0; i < kChunk; i += W) {
      V x = S::mul(S::load(scores + i), S::set(s.scale));
      if constexpr (Cache::scaled) x = S::mul(x, S::load(chunk.key_scales + i));
      if (s.softcap > 0) x = S::mul(S::set(s.softcap), tanh_of(S::div(x, S::set(s.softcap))));
      S::store(scores + i, x);
    }
    for (int i = 0; i < range.low; ++i) scores[i] = -INFINITY;
    for (int i = range.high; i < kChunk; ++i) scores[i] = -INFINITY;
    V highest = S::load(scores);
    for (int i = W; i < kChunk; i += W) highest = S::max(highest, S::load(scores + i));
    float chunk_top = S::largest(highest);
    float new_top = chunk_top > top ? chunk_top : top;
    float factor = exponential(top - new_top);
    V total = S::zero();
    for (int i = 0; i < kChunk; i += W) {
      V p = exp_of<S>(S::sub(S::load(scores + i), S::set(new_top)));
      total = S::add(total, p);
      if constexpr (Cache::scaled) p = S::mul(p, S::load(chunk.value_scales + i));
      S::store(scores + i, p);
    }
    top = new_top;
    sum = sum * factor + S::sum(total);
    return factor;
  }

  static float exponential(float x) {
    float lanes[W];
    S::store(lanes, exp_of<S>(S::set(x)));
    return lanes[0];
  }

  // out[r] = out[r] * factor[r] + sum over positions [low, high) of weights[r] * values.
  template <int R, int Vectors>
  static void add_values(const AttentionSpan& s, const ChunkPointers& p, Range range, const float (*weights)[kChunk],
                         const float* factor, float* const* out, int d) {
    V acc[R][Vectors];
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < Vectors; ++v) acc[r][v] = S::mul(S::load(out[r] + d + v * W), S::set(factor[r]));
    }
    for (int i = range.low; i < range.high; ++i) {
      const Element* from = p.values[i / kLanes] + int64_t(i % kLanes) * s.head_dim + d;
      V value[Vectors];
      for (int v = 0; v < Vectors; ++v) value[v] = Cache::load(from + v * W);
      for (int r = 0; r < R; ++r) {
        V weight = S::set(weights[r][i]);
        for (int v = 0; v < Vectors; ++v) acc[r][v] = S::fma(weight, value[v], acc[r][v]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < Vectors; ++v) S::store(out[r] + d + v * W, acc[r][v]);
    }
  }

  // One chunk folded into the states of R rows from `row` on.
  template <int R>
  static void fold(const AttentionSpan& s, const ChunkPointers& p, int chunk, int row, AttentionState state) {
    Range range[R], all = {kChunk, 0};
    const float* q[R];
    float* out[R];
    for (int r = 0; r < R; ++r) {
      range[r] = visible(s, row + r, chunk);
      if (range[r].low < range[r].high) {
        all.low = range[r].low < all.low ? range[r].low : all.low;
        all.high = range[r].high > all.high ? range[r].high : all.high;
      }
      q[r] = s.q + int64_t((row + r) / s.group) * s.token_stride + int64_t((row + r) % s.group) * s.head_dim;
      out[r] = state.out + int64_t(row + r) * s.head_dim;
    }
    if (all.low >= all.high) return;
    alignas(64) float scores[R][kChunk];
    float factor[R];
    dot_keys<R>(s, q, p, (all.high + kLanes - 1) / kLanes, scores);
    for (int r = 0; r < R; ++r) {
      factor[r] = 1;
      if (range[r].low < range[r].high) {
        factor[r] = soften(s, p, range[r], scores[r], state.top[row + r], state.sum[row + r]);
      } else {
        for (float& weight : scores[r]) weight = 0;
      }
    }
    int d = 0;
    for (; d + kSlab <= s.head_dim; d += kSlab) add_values<R, kSlab / W>(s, p, all, scores, factor, out, d);
    for (; d < s.head_dim; d += kLanes) add_values<R, kLanes / W>(s, p, all, scores, factor, out, d);
  }

  static void span(const AttentionSpan& s, AttentionState state) {
    for (int r = 0; r < s.rows; ++r) {
      state.top[r] = -INFINITY;
      state.sum[r] = 0;
    }
    for (int64_t i = 0; i < int64_t(s.rows) * s.head_dim; ++i) state.out[i] = 0;
    int first = s.window > 0 && s.first_position - s.window + 1 > s.begin ? s.first_position - s.window + 1 : s.begin;
    for (int chunk = first / kChunk * kChunk; chunk < s.end; chunk += kChunk) {
      int count = s.end - chunk < kChunk ? s.end - chunk : kChunk;
      ChunkPointers p = locate(s, chunk, (count + kLanes - 1) / kLanes);
      int row = 0;
      for (; row + 4 <= s.rows; row += 4) fold<4>(s, p, chunk, row, state);
      if (s.rows - row == 3) fold<3>(s, p, chunk, row, state);
      if (s.rows - row == 2) fold<2>(s, p, chunk, row, state);
      if (s.rows - row == 1) fold<1>(s, p, chunk, row, state);
    }
  }

  static void merge(AttentionState into, AttentionState next, int rows, int head_dim) {
    for (int r = 0; r < rows; ++r) {
      if (next.top[r] == -INFINITY) continue;
      float top = into.top[r] > next.top[r] ? into.top[r] : next.top[r];
      float old_factor = exponential(into.top[r] - top), new_factor = exponential(next.top[r] - top);
      into.top[r] = top;
      into.sum[r] = into.sum[r] * old_factor + next.sum[r] * new_factor;
      float* a = into.out + int64_t(r) * head_dim;
      const float* b = next.out + int64_t(r) * head_dim;
      for (int d = 0; d < head_dim; d += W) {
        S::store(a + d, S::fma(S::load(a + d), S::set(old_factor), S::mul(S::load(b + d), S::set(new_factor))));
      }
    }
  }

  static void finish(const float* out, float sum, float* to, int head_dim) {
    float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    for (int d = 0; d < head_dim; d += W) S::store(to + d, S::mul(S::load(out + d), S::set(inverse)));
  }

};

template <class S>
constexpr AttentionKernels attention_kernels() {
  using Half = Attention<S, HalfCache>;
  return {{Half::span, Attention<S, Fp8Cache>::span, Attention<S, Int8Cache>::span}, Half::merge, Half::finish};
}

}  // namespace edgeshift::cpu
