// Sampling and scoring on the device; the sampled token stays there as the next step's input.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"
#include "ops/sample.h"

namespace edgeshift::cuda {

// Largest number of alternatives of a row.
inline constexpr int kMaxAlternatives = 20;

// What is done with one row of logits; neutral values as in ops/sample.h.
struct SampleTask {
  int32_t slot = 0;     // whose last token, and with penalties whose counts, are updated
  int32_t target = -1;  // token to score; -1 = sample
  int32_t top = -1;     // alternatives to report; -1 = no log probabilities
  int32_t top_k = 0;    // 0 or below vocab
  float temperature = 0;
  float top_p = 1;
  float log_min_p = 0;  // ln(min_p); -infinity = off
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  DrawKey key;             // of the seed and the position
  int32_t penalties = 0;   // whether the counts are kept and used
  int32_t bias_begin = 0;  // into the bias lists; a masked token has a bias of -infinity
  int32_t bias_end = 0;
  int32_t mask = -1;  // of SampleArgs::masks; -1 = none
};

// What came of a row. Unused alternatives hold -1.
struct SampleResult {
  int32_t token, rank;
  float logprob;
  int32_t alternatives;
  int32_t top_tokens[kMaxAlternatives];
  float top_logprobs[kMaxAlternatives];
};

// Device pointers. Rows may share a slot only when none of them samples.
struct SampleArgs {
  float* logits = nullptr;    // [rows, vocab] raw; capped in place when softcap > 0
  float* adjusted = nullptr;  // [rows, vocab] scratch
  const SampleTask* tasks = nullptr;    // [rows]
  const int32_t* bias_tokens = nullptr;
  const float* bias_values = nullptr;
  const uint32_t* masks = nullptr;  // [masks, mask_words(vocab)]; may be null where no row names one
  // [slots, vocab]: output count in the low 15 bits, bit 15 set for tokens of the prompt.
  uint16_t* counts = nullptr;
  int32_t* last_tokens = nullptr;   // [slots] receive the sampled tokens
  SampleResult* results = nullptr;  // [rows]
  int rows = 0;
  int vocab = 0;
  float softcap = 0;
};

// The steps of ops/sample.h with its results, but for what rounding decides: the masses that top_p adds up are e^x in
// fp32, summed exactly; log probabilities differ in their last places. A row of NaN gives token 0. No row's result depends
// on the other rows.
Status sample(const SampleArgs& args, const Launch& on);

// Starts a slot's counts [vocab] anew from its tokens (device, prompt first).
Status count_tokens(const int32_t* tokens, int count, int prompt, uint16_t* counts, int vocab, const Launch& on);

}  // namespace edgeshift::cuda
