// Sampling and scoring of logit rows.
#pragma once

#include <cstdint>
#include <vector>

namespace edgeshift {

// Order of the steps, each neutral at the value named:
//   1 repetition penalty over prompt and output tokens (1), presence and frequency penalties over output tokens (0)
//   2 logit bias; stop tokens masked while output < min_tokens
//   3 greedy when temperature = 0: the largest logit, ties to the smaller id
//   4 logits / temperature, then min_p (0), top_k (0) and top_p (1) each as a mask over what the step before left
//   5 Gumbel-max over what is left: argmax(logit - ln(-ln(u))), u = uniform(seed, position, token), ties to the smaller id
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

// Results of one row; log probabilities are of the raw logits (before step 1).
struct SampleRow {
  int32_t token = -1;
  float logprob = 0;
  int32_t rank = 0;  // 1 = most likely
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
};

}  // namespace edgeshift
