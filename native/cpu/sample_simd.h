// The kernels of cpu/sample_kernels.h over a register set S (cpu/simd.h). Integer passes are plain loops over short
// arrays that the compiler turns into the set's instructions.
#pragma once

#include <bit>

#include "cpu/sample_kernels.h"
#include "cpu/simd.h"

namespace edgeshift::cpu {

template <class S>
struct Sample {
  using V = typename S::V;
  static constexpr int W = S::width;
  static constexpr int kBlock = 64;  // tokens looked at together

  static float highest(const float* row, int count) {
    V top[4];
    for (V& v : top) v = S::set(-INFINITY);
    int i = 0;
    for (; i + 4 * W <= count; i += 4 * W) {
      for (int j = 0; j < 4; ++j) top[j] = S::max(S::load(row + i + j * W), top[j]);
    }
    float best = S::largest(S::max(S::max(top[0], top[1]), S::max(top[2], top[3])));
    for (; i < count; ++i) best = row[i] > best ? row[i] : best;
    return best;
  }

  static int argmax(const float* row, int count) {
    float best = highest(row, count);
    for (int i = 0; i < count; i += kBlock) {
      int end = i + kBlock < count ? i + kBlock : count;
      int hits = 0;
      for (int j = i; j < end; ++j) hits += row[j] == best;
      if (!hits) continue;
      for (int j = i; j < end; ++j) {
        if (row[j] == best) return j;
      }
    }
    return 0;
  }

  // Lanes add up 1,024 values at most in fp32; beyond that fp64.
  static double sum_exp(const float* row, int count, float top) {
    double total = 0;
    V shift = S::set(top);
    int i = 0;
    for (; i + kBlock * W <= count; i += kBlock * W) {
      V sum = S::zero();
      for (int j = 0; j < kBlock * W; j += W) sum = S::add(sum, exp_of<S>(S::sub(S::load(row + i + j), shift)));
      total += double(S::sum(sum));
    }
    for (; i < count; i += W) {
      float lanes[W];
      for (int j = 0; j < W; ++j) lanes[j] = i + j < count ? row[i + j] : -INFINITY;
      total += double(S::sum(exp_of<S>(S::sub(S::load(lanes), shift))));
    }
    return total;
  }

  static void divide(float* row, int count, float divisor) {
    V d = S::set(divisor);
    int i = 0;
    for (; i + W <= count; i += W) S::store(row + i, S::div(S::load(row + i), d));
    for (; i < count; ++i) row[i] = row[i] / divisor;
  }

  static int count_above(const float* row, int count, float limit) {
    int total = 0;
    for (int i = 0; i < count; ++i) total += row[i] > limit;
    return total;
  }

  static int collect(const float* row, int count, float limit, Candidate* out, int room) {
    int found = 0;
    for (int i = 0; i < count; i += kBlock) {
      int end = i + kBlock < count ? i + kBlock : count;
      int hits = 0;
      for (int j = i; j < end; ++j) hits += row[j] >= limit;
      if (!hits) continue;
      for (int j = i; j < end; ++j) {
        if (row[j] < limit || row[j] != row[j]) continue;
        if (found < room) out[found] = {row[j], j};
        ++found;
      }
    }
    return found;
  }

  static double score(float value, DrawKey key, int token) {
    return double(value) - std::log(-std::log(draw_uniform(draw_bits(key, uint32_t(token)))));
  }

  // No draw exceeds this: u <= 1 - 2^-33.
  static constexpr float kLargestGumbel = 22.9f;

  // An upper bound of each token's score. -ln u >= 1 - u, so the Gumbel value is at most -ln(1 - u); and with
  // 1 - u = m * 2^e, 1 <= m < 2, log2(1 - u) >= e + m - 1, which the bits of a float hold as they are.
  static void bounds(const float* row, DrawKey key, uint32_t token, float* out) {
    constexpr float kLn2 = 0.693147181f;
    for (int j = 0; j < kBlock; ++j) {
      uint32_t rest = ~draw_bits(key, token + uint32_t(j)) >> 1;  // (1 - u) * 2^31, a quarter less at most
      float x = float(int32_t(rest)) + 0.25f;
      float log2 = float(std::bit_cast<int32_t>(x)) * 0x1p-23f - 127.0f;
      out[j] = row[j] + kLn2 * (31.0f - log2);
    }
  }

  static int gumbel_argmax(const float* row, int count, DrawKey key, int start) {
    double best = score(row[start], key, start);
    int winner = start;
    for (int i = 0; i < count; i += kBlock) {
      float padded[kBlock];
      const float* block = row + i;
      if (i + kBlock > count) {
        for (int j = 0; j < kBlock; ++j) padded[j] = i + j < count ? row[i + j] : -INFINITY;
        block = padded;
      }
      // The bounds' own rounding, generously.
      float limit = float(best) - 1e-3f - 1e-5f * std::fabs(float(best));
      if (!(highest(block, kBlock) + kLargestGumbel >= limit)) continue;
      float bound[kBlock];
      bounds(block, key, uint32_t(i), bound);
      if (!(highest(bound, kBlock) >= limit)) continue;
      for (int j = 0; j < kBlock; ++j) {
        if (!(bound[j] >= limit) || block[j] == -INFINITY) continue;
        double s = score(block[j], key, i + j);
        if (s > best || (s == best && i + j < winner)) {
          best = s;
          winner = i + j;
        }
      }
    }
    return winner;
  }

  static constexpr SampleKernels kernels() { return {argmax, sum_exp, divide, count_above, collect, gumbel_argmax}; }
};

}  // namespace edgeshift::cpu
