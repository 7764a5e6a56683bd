// The kernels of sampling: passes over one row of logits.
#pragma once

#include <cstdint>

#include "ops/sample.h"

namespace edgeshift::cpu {

// A token with its value (a logit, scaled or not).
struct Candidate {
  float value = 0;
  int32_t token = -1;
};

// The order of top_k, top_p and ranks: larger value first, then smaller id.
inline bool before(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.token < b.token;
}

struct SampleKernels {
  // The largest value's first place; 0 for a row of NaN.
  int (*argmax)(const float* row, int count);
  // Sum of exp(row[i] - top) in fp64.
  double (*sum_exp)(const float* row, int count, float top);
  // row[i] = row[i] / divisor.
  void (*divide)(float* row, int count, float divisor);
  // Values above `limit`.
  int (*count_above)(const float* row, int count, float limit);
  // Tokens with row[i] >= limit into out, in order; returns how many there are, writes at most `room`.
  int (*collect)(const float* row, int count, float limit, Candidate* out, int room);
  // Step 5 of ops/sample.h; `start` is a token to try first, the likely winner.
  int (*gumbel_argmax)(const float* row, int count, DrawKey key, int start);
};

extern const SampleKernels sample_scalar;
extern const SampleKernels sample_avx2;
extern const SampleKernels sample_avx512;

}  // namespace edgeshift::cpu
