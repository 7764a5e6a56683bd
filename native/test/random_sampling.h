// Random sampling states, the same for every backend's test.
#pragma once

#include "ops/sample.h"
#include "test/random.h"

namespace edgeshift::test {

// Parameters of one row, drawn over their whole ranges.
inline SamplingState random_state(Random& random, int vocab) {
  SamplingState s;
  s.temperature = random.below(4) ? 0.05f + 2 * random.uniform() : 0;
  // So small that logits become infinite.
  if (random.below(40) == 0) s.temperature = 1e-38f;
  if (random.below(3) == 0) s.top_k = 1 + random.below(vocab + 10);
  if (random.below(3) == 0) s.top_p = random.below(4) ? random.uniform() : 0.0f;
  if (random.below(3) == 0) s.min_p = random.uniform() * 0.3f;
  if (random.below(3) == 0) s.repetition_penalty = 0.8f + random.uniform();
  if (random.below(3) == 0) s.presence_penalty = random.normal();
  if (random.below(3) == 0) s.frequency_penalty = random.normal();
  s.seed = uint64_t(random.bits()) << 20;
  for (int i = random.below(40); i > 0; --i) s.tokens.push_back(random.below(vocab));
  s.prompt_length = random.below(int(s.tokens.size()) + 1);
  for (int i = random.below(3); i > 0; --i) {
    s.bias_tokens.push_back(random.below(vocab));
    s.bias_values.push_back(random.normal() * 20);
  }
  for (int i = random.below(3); i > 0; --i) s.stop_tokens.push_back(random.below(vocab));
  s.min_tokens = random.below(30);
  return s;
}

// A mask over the vocabulary: with all tokens, most, few, one or none; what lies beyond the vocabulary is random.
inline std::vector<uint32_t> random_mask(Random& random, int vocab) {
  std::vector<uint32_t> mask(size_t(mask_words(vocab)));
  const int kind = random.below(5);
  for (uint32_t& word : mask) {
    const uint32_t few = random.bits() & random.bits() & random.bits() & random.bits() & random.bits();
    word = kind == 0 ? ~0u : kind == 1 ? ~few : kind == 2 ? few : 0;
  }
  if (kind == 3) {
    const int token = random.below(vocab);
    mask[size_t(token / 32)] = 1u << token % 32;
  }
  if (vocab % 32 != 0) mask.back() = (mask.back() & ((1u << vocab % 32) - 1)) | random.bits() << vocab % 32;
  return mask;
}

inline bool allows(const std::vector<uint32_t>& mask, int token) { return mask[size_t(token / 32)] >> token % 32 & 1; }

}  // namespace edgeshift::test
