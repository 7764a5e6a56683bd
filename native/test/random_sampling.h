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

}  // namespace edgeshift::test
