// Time of sampling one row of 49,152 logits, microseconds: greedy, plain temperature, with restrictions, and with masks.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "bench/clock.h"
#include "cpu/ops.h"

using namespace edgeshift;

namespace {

constexpr int kVocab = 49152;

void time_row(cpu::ThreadPool& pool, const char* name, const SamplingState& state, int top, const uint32_t* mask = nullptr) {
  std::vector<float> logits(kVocab), copy;
  uint32_t seed = 1;
  // A sum of uniform values: bell-shaped with a standard deviation of about 3, as a language model's logits are.
  for (float& l : logits) {
    for (int i = 0; i < 8; ++i) l += float((seed = seed * 1664525u + 1013904223u) >> 8) * 0x1p-24f * 3.67f;
  }
  const SamplingState* states[] = {&state};
  int32_t target = -1;
  SampleRow out;
  double best = 1e9;
  for (int run = 0; run < 200; ++run) {
    copy = logits;
    double start = bench::seconds_now();
    if (!cpu::sample(pool, {copy.data(), 1, kVocab, states, &target, &top, &out, &mask}).ok()) return;
    best = std::min(best, bench::seconds_now() - start);
  }
  std::printf("%-34s %7.1f us\n", name, best * 1e6);
}

}  // namespace

int main() {
  cpu::ThreadPool pool(1);
  std::printf("%s\n", cpu::isa_name(pool.isa()));
  SamplingState s;
  time_row(pool, "greedy", s, -1);
  time_row(pool, "greedy, 20 log probabilities", s, 20);
  s.temperature = 0.8f;
  time_row(pool, "temperature", s, -1);
  SamplingState k = s, p = s, m = s, r = s;
  k.top_k = 40;
  time_row(pool, "temperature, top_k 40", k, -1);
  p.top_p = 0.9f;
  time_row(pool, "temperature, top_p 0.9", p, -1);
  m.min_p = 0.05f;
  time_row(pool, "temperature, min_p 0.05", m, -1);
  r.repetition_penalty = 1.1f;
  for (int i = 0; i < 2000; ++i) r.tokens.push_back(i * 7 % kVocab);
  time_row(pool, "temperature, repetition, 2000 tokens", r, -1);
  std::vector<uint32_t> half(size_t(mask_words(kVocab)), 0x5a5a5a5a), few(half.size());
  few[3] = 0x11;
  time_row(pool, "temperature, half masked", s, -1, half.data());
  time_row(pool, "temperature, all but 2 masked", s, -1, few.data());
}
