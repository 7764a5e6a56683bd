// Sampling and scoring of logit rows.
#pragma once

#include <cstdint>
#include <vector>

#include "core/host_device.h"

namespace edgeshift {

// Keys of the random draws of one row.
struct DrawKey {
  uint32_t input = 0;   // xored into the token
  uint32_t middle = 0;  // added after the first round
};

// The keys of one (seed, position): the two halves of a splitmix64 output (Steele et al. 2014).
inline DrawKey draw_key(uint64_t seed, uint64_t position) {
  uint64_t x = seed + (position + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return {uint32_t(x), uint32_t(x >> 32)};
}

// A 32-bit mix of three multiplications (the constants of Wellons' triple32) with a key in the middle, so that two
// rows never share a permuted set of draws.
ES_HOST_DEVICE inline uint32_t draw_bits(DrawKey key, uint32_t token) {
  uint32_t x = token ^ key.input;
  x = (x ^ x >> 17) * 0xed5ad4bbu + key.middle;
  x = (x ^ x >> 11) * 0xac4c1b51u;
  x = (x ^ x >> 15) * 0x31848babu;
  return x ^ x >> 14;
}

// In (0, 1), exact in fp64.
ES_HOST_DEVICE inline double draw_uniform(uint32_t bits) { return (bits + 0.5) * 0x1p-32; }

// Order of the steps, each neutral at the value named:
//   1 repetition penalty over prompt and output tokens (1), presence and frequency penalties over output tokens (0)
//   2 logit bias; stop tokens masked while output < min_tokens; tokens that the row's mask lacks masked (none where there is no
//     mask). Masked: the logit is -infinity, the token is never sampled. Where that leaves nothing finite the answer is the
//     smallest id, which the mask may lack: a caller that can run out of tokens has to look
//   3 greedy when temperature = 0, or so small that the largest logit / temperature is infinite: the largest logit, ties to the
//     smaller id
//   4 logits / temperature, then min_p (0), top_k (0) and top_p (1) each as a mask over what the step before left
//   5 Gumbel-max over what is left: argmax(logit - ln(-ln(u))), u = uniform(seed, position, token), ties to the smaller id
// Step 4 in detail, z = logit / temperature in fp32 (IEEE division):
//   min_p keeps z >= max z + ln(min_p); top_k keeps the k first in the order (z descending, id ascending);
//   top_p keeps the shortest prefix of that order whose probability, of what was left, reaches top_p (never none).
// Step 5: the sum is fp64; position is the number of tokens before the sampled one (tokens.size()).
// u is a 32-bit hash of its three arguments mapped to (0, 1), so a draw does not depend on batch, order or device.
struct SamplingState {
  float temperature = 0;
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
  std::vector<int32_t> bias_tokens;
  std::vector<float> bias_values;
  std::vector<int32_t> stop_tokens;
  int min_tokens = 0;
  std::vector<int32_t> tokens;  // prompt, then output
  int prompt_length = 0;
};

// Words of one row's mask over `vocab` tokens: bit t % 32 of word t / 32 = token t may be sampled. What the last word has beyond
// the vocabulary does not matter.
ES_HOST_DEVICE inline int mask_words(int vocab) { return (vocab + 31) / 32; }

struct SampleRow;

// Rows of logits to sample or to score. Rows may share a state only when none of them samples.
struct SampleArgs {
  float* logits = nullptr;  // [rows, vocab]; steps 1, 2 and 4 change them in place
  int rows = 0;
  int vocab = 0;
  const SamplingState* const* states = nullptr;  // [rows]; not changed: the caller appends the token
  const int32_t* targets = nullptr;              // [rows] token to score, or -1 = sample
  const int32_t* top = nullptr;                  // [rows] alternatives to report; -1 = no log probabilities
  SampleRow* out = nullptr;                      // [rows]
  // [rows] the mask that a row obeys (step 2), [mask_words(vocab)], or null = none; null where no row has any. Scored rows have none.
  const uint32_t* const* masks = nullptr;
};

// Results of one row; log probabilities are of the raw logits (before step 1).
struct SampleRow {
  int32_t token = -1;
  float logprob = 0;
  int32_t rank = 0;  // 1 = most likely
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
};

}  // namespace edgeshift
