#include "cuda/sample.h"

#include "cuda/device.cuh"

namespace edgeshift::cuda {
namespace {

constexpr int kThreads = 1024;

struct Candidate {
  float value;
  int token;
};

__device__ Candidate better(Candidate a, Candidate b) {
  return b.value > a.value || (b.value == a.value && b.token < a.token) ? b : a;
}

__device__ Candidate block_best(Candidate best, Candidate* shared) {
  for (int mask = 16; mask > 0; mask /= 2) {
    Candidate other{__shfl_xor_sync(~0u, best.value, mask), __shfl_xor_sync(~0u, best.token, mask)};
    best = better(best, other);
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w) best = better(best, shared[w]);
  return best;
}

// murmur3's finaliser.
__device__ uint32_t mix(uint32_t h) {
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return h ^ h >> 16;
}

__device__ float uniform(uint64_t seed, uint32_t position, uint32_t token) {
  uint32_t h = mix(mix(mix(uint32_t(seed) ^ mix(uint32_t(seed >> 32))) ^ position) ^ token);
  return (float(h >> 8) + 0.5f) * (1.0f / 16777216.0f);
}

__device__ float penalised(float logit, const SampleSlot& slot, uint16_t count) {
  if (count) logit = logit > 0 ? logit / slot.repetition_penalty : logit * slot.repetition_penalty;
  int output = count & 0x7fff;
  if (output) logit -= slot.presence_penalty + slot.frequency_penalty * output;
  return logit;
}

// One block per row: at 32,000 tokens a thread reads 32 values, so latency decides, not bandwidth.
__global__ void __launch_bounds__(kThreads) sample_kernel(SampleArgs args) {
  __shared__ Candidate shared[kThreads / 32];
  wait_for_previous_kernel();
  let_next_kernel_start();
  int row = blockIdx.x;
  SampleSlot slot = args.slots[row];
  const float* logits = args.logits + size_t(row) * args.vocab;
  const uint16_t* counts = args.counts ? args.counts + size_t(row) * args.vocab : nullptr;
  auto logit = [&](int i) { return counts ? penalised(__ldcg(logits + i), slot, counts[i]) : __ldcg(logits + i); };
  Candidate best{-INFINITY, args.vocab};
#pragma unroll 8
  for (int i = threadIdx.x; i < args.vocab; i += kThreads) best = better(best, {logit(i), i});
  best = block_best(best, shared);
  int position = __ldcg(args.positions + row) + 1;
  if (slot.temperature > 0 && best.token < args.vocab) {
    float inverse = 1 / slot.temperature;
    float least = slot.min_p > 0 ? best.value * inverse + logf(slot.min_p) : -INFINITY;
    Candidate drawn{-INFINITY, args.vocab};
    for (int i = threadIdx.x; i < args.vocab; i += kThreads) {
      float v = logit(i) * inverse;
      if (v < least) continue;
      drawn = better(drawn, {v - logf(-logf(uniform(slot.seed, position, i))), i});
    }
    best = block_best(drawn, shared);
  }
  if (threadIdx.x != 0) return;
  // A row of NaN has no largest logit: token 0 keeps the step going, the host sees it in the log probabilities.
  int token = best.token < args.vocab ? best.token : 0;
  args.tokens[row] = token;
  args.positions[row] = position;
  if (counts) args.counts[size_t(row) * args.vocab + token] += 1;
}

}  // namespace

Status sample(const SampleArgs& args, const Launch& on) {
  if (args.s < 1) return {Code::invalid_argument, "cuda sample: no rows"};
  return launch(on, sample_kernel, dim3(args.s), kThreads, 0, args);
}

}  // namespace edgeshift::cuda
