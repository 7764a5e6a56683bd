// Sampling on the device, and the token fed back to the next step.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace edgeshift::cuda {

// A sampling slot's settings as the kernel reads them (device memory). Neutral values as in ops/sample.h.
struct SampleSlot {
  float temperature = 0;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
};

struct SampleArgs {
  const float* logits = nullptr;      // [s, vocab]
  const SampleSlot* slots = nullptr;  // [s]
  // [s, vocab]: output count in the low 15 bits, bit 15 set for prompt tokens; null = no penalties. Updated.
  uint16_t* counts = nullptr;
  int32_t* tokens = nullptr;     // [s] receives the tokens: the next step's input
  int32_t* positions = nullptr;  // [s] of the tokens read; incremented
  int s = 0;
  int vocab = 0;
};

// Steps 1, 3, 4 (temperature and min_p) and 5 of ops/sample.h.
Status sample(const SampleArgs& args, const Launch& on);

}  // namespace edgeshift::cuda
