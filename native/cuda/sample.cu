#include "cuda/sample.h"

#include "cuda/device.cuh"

namespace edgeshift::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
// Probability masses are sums of integers, so that no order of addition changes them: 2^40 is e^0.
constexpr float kMassUnit = 1099511627776.0f;
constexpr uint16_t kInPrompt = 0x8000;
constexpr uint16_t kMostCounted = 0x7fff;

struct Candidate {
  float value;
  int token;
};
struct Draw {
  double value;
  int token;
};

struct Better {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b.value > a.value || (b.value == a.value && b.token < a.token) ? b : a;
  }
};
struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Shared {
  Candidate candidates[kWarps];
  Draw draws[kWarps];
  double sums[kWarps];
  uint64_t counts[kWarps];
  uint64_t bins[kBins];
  uint64_t before;
  int bin;
};

__device__ Candidate shuffle(Candidate c, int mask) {
  return {__shfl_xor_sync(~0u, c.value, mask), __shfl_xor_sync(~0u, c.token, mask)};
}
__device__ Draw shuffle(Draw c, int mask) {
  return {__shfl_xor_sync(~0u, c.value, mask), __shfl_xor_sync(~0u, c.token, mask)};
}
__device__ double shuffle(double v, int mask) { return __shfl_xor_sync(~0u, v, mask); }
__device__ uint64_t shuffle(uint64_t v, int mask) { return __shfl_xor_sync(~0u, static_cast<unsigned long long>(v), mask); }

// The block's values combined, known to every thread.
template <class T, class Combine>
__device__ T across(T v, T* shared, Combine combine) {
  for (int mask = 16; mask > 0; mask /= 2) v = combine(v, shuffle(v, mask));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = shared[0];
  for (int w = 1; w < kWarps; ++w) v = combine(v, shared[w]);
  return v;
}

// Order-preserving bits of a value; both zeros are one value.
__device__ uint32_t key_of(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return bits ^ (bits >> 31 ? ~0u : 0x80000000u);
}

// What the masks of step 4 leave: values from `floor` on, and of these the first in the order (value descending, id
// ascending) down to (key, token).
struct Kept {
  float floor = -INFINITY;
  uint32_t key = 0;
  int token = INT32_MAX;

  __device__ bool has(float v, int i) const {
    if (!(v >= floor)) return false;
    const uint32_t k = key_of(v);
    return k > key || (k == key && i <= token);
  }
};

// One row at work in one block.
class Row {
 public:
  __device__ Row(const SampleArgs& args, const SampleTask& task, Shared& shared)
      : a_(args), task_(task), s_(shared), logits_(args.logits + size_t(blockIdx.x) * args.vocab), values_(logits_) {}

  __device__ void cap() {
    if (!(a_.softcap > 0)) return;
    float* row = a_.logits + size_t(blockIdx.x) * a_.vocab;
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) __stcg(row + i, a_.softcap * tanhf(__ldcg(row + i) / a_.softcap));
    __threadfence();
    __syncthreads();
  }

  // ln of the sum of e^logit.
  __device__ double log_sum_exp() {
    const float top = best_of([](float v, int) { return v; }).value;
    double sum = 0;
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) sum += double(expf(__ldcg(logits_ + i) - top));
    sum = across(sum, s_.sums, Add());
    return double(top) + log(sum);
  }

  // The first alternatives of the raw row, one pass each.
  __device__ void alternatives(double log_sum, SampleResult& out) {
    const int wanted = min(task_.top, a_.vocab);
    Candidate last{INFINITY, -1};
    int found = 0;
    for (; found < wanted; ++found) {
      last = best_of([last](float v, int i) { return v < last.value || (v == last.value && i > last.token) ? v : NAN; });
      if (last.token == a_.vocab) break;
      if (threadIdx.x != 0) continue;
      out.top_tokens[found] = last.token;
      out.top_logprobs[found] = float(double(last.value) - log_sum);
    }
    if (threadIdx.x == 0) out.alternatives = found;
  }

  __device__ int rank(float raw) {
    uint64_t above = 0;
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) above += __ldcg(logits_ + i) > raw;
    return 1 + int(across(above, s_.counts, Add()));
  }

  __device__ float raw(int token) const { return __ldcg(logits_ + token); }

  __device__ int pick() {
    adjust();
    if (!(task_.temperature > 0)) return likeliest();
    const Candidate top = best_of([this](float v, int) { return scaled(v); });
    if (top.token == a_.vocab) return 0;
    // Where the quotient is infinite, many are, and only the logits tell them apart.
    if (isinf(top.value)) return likeliest();
    return known(draw(restrict_to(top.value)));
  }

 private:
  // A row of NaN has no largest value: token 0 keeps the step going.
  __device__ int known(int token) const { return token < a_.vocab ? token : 0; }
  __device__ int likeliest() { return known(best_of([](float v, int) { return v; }).token); }
  __device__ float scaled(float v) const { return __fdiv_rn(v, task_.temperature); }
  __device__ float value(int i) const { return scaled(__ldcg(values_ + i)); }

  // The largest of map(value, token); NaN never wins, and where all are NaN the token is `vocab`.
  template <class Map>
  __device__ Candidate best_of(Map map) {
    Candidate best{-INFINITY, a_.vocab};
#pragma unroll 4
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) {
      Candidate c{map(__ldcg(values_ + i), i), i};
      best = Better()(best, c);
    }
    return across(best, s_.candidates, Better());
  }

  // Steps 1 and 2, into the scratch row.
  __device__ void adjust() {
    if (!task_.penalties && task_.mask < 0 && task_.bias_begin == task_.bias_end) return;
    float* out = a_.adjusted + size_t(blockIdx.x) * a_.vocab;
    const uint16_t* counts = a_.counts + size_t(task_.slot) * a_.vocab;
    const uint32_t* mask = task_.mask < 0 ? nullptr : a_.masks + size_t(task_.mask) * mask_words(a_.vocab);
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) {
      const float v = __ldcg(logits_ + i);
      const float adjusted = task_.penalties ? penalised(v, counts[i]) : v;
      // Before the bias: no finite one brings back what is masked.
      __stcg(out + i, mask && !(mask[i >> 5] >> (i & 31) & 1) ? -INFINITY : adjusted);
    }
    __threadfence();
    __syncthreads();
    for (int i = task_.bias_begin + threadIdx.x; i < task_.bias_end; i += kThreads) atomicAdd(out + a_.bias_tokens[i], a_.bias_values[i]);
    __threadfence();
    __syncthreads();
    values_ = out;
  }

  __device__ float penalised(float logit, uint16_t count) const {
    if (!count) return logit;
    logit = logit > 0 ? __fdiv_rn(logit, task_.repetition_penalty) : __fmul_rn(logit, task_.repetition_penalty);
    const int output = count & kMostCounted;
    if (!output) return logit;
    return __fsub_rn(logit, __fadd_rn(task_.presence_penalty, __fmul_rn(task_.frequency_penalty, float(output))));
  }

  __device__ static uint64_t mass(float v, float top) { return __float2ull_rn(expf(v - top) * kMassUnit); }

  // Number, or mass, of what is kept and not below `limit`.
  template <bool kMass>
  __device__ uint64_t amount(const Kept& kept, float limit, float top) {
    uint64_t sum = 0;
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) {
      const float v = value(i);
      if (v >= limit && kept.has(v, i)) sum += kMass ? mass(v, top) : 1;
    }
    return across(sum, s_.counts, Add());
  }

  // Narrows `kept` to the shortest prefix of the order that holds `wanted` (1 .. amount): digit by digit of the values' bits,
  // from the highest. Looks at the likeliest tokens first, which keeps the bins from being contended.
  template <bool kMass>
  __device__ void narrow(Kept& kept, float top, uint64_t wanted) {
    float limit = kept.floor;
    for (float width = 8; width < 1000; width *= 4) {
      if (top - width <= kept.floor || amount<kMass>(kept, top - width, top) < wanted) continue;
      limit = top - width;
      break;
    }
    uint32_t prefix = 0;
    int shift = 32;
    for (int digit = 0; digit < 3; ++digit) {
      const int bits = digit < 2 ? 11 : 10, above = shift;
      shift -= bits;
      for (int b = threadIdx.x; b < kBins; b += kThreads) s_.bins[b] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < a_.vocab; i += kThreads) {
        const float v = value(i);
        if (!(v >= limit) || !kept.has(v, i)) continue;
        const uint32_t key = key_of(v);
        if (above < 32 && key >> above != prefix) continue;
        atomicAdd(reinterpret_cast<unsigned long long*>(s_.bins + (key >> shift & ((1u << bits) - 1))), kMass ? mass(v, top) : 1ull);
      }
      __syncthreads();
      find_bin(wanted);
      prefix = prefix << bits | uint32_t(s_.bin);
      wanted -= s_.before;
    }
    cut_ties<kMass>(kept, prefix, limit, top, wanted);
  }

  // The bin, from the highest, in which the running sum reaches `wanted`, and the sum of those above it.
  __device__ void find_bin(uint64_t wanted) {
    const int high = kBins - 1 - 2 * threadIdx.x;
    const uint64_t first = s_.bins[high], own = first + s_.bins[high - 1];
    uint64_t sum = own;
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, static_cast<unsigned long long>(sum), step);
      if (int(threadIdx.x % 32) >= step) sum += other;
    }
    if (threadIdx.x % 32 == 31) s_.counts[threadIdx.x / 32] = sum;
    __syncthreads();
    for (int w = 0; w < int(threadIdx.x / 32); ++w) sum += s_.counts[w];
    const uint64_t before = sum - own;
    if (before < wanted && wanted <= sum) {
      const bool upper = before + first >= wanted;
      s_.bin = upper ? high : high - 1;
      s_.before = upper ? before : before + first;
    }
    __syncthreads();
  }

  // Of the tokens whose bits are `key`, the first that together hold `wanted`.
  template <bool kMass>
  __device__ void cut_ties(Kept& kept, uint32_t key, float limit, float top, uint64_t wanted) {
    auto ties = [&](int last, uint64_t& weight) {
      uint64_t count = 0, each = 0;
      for (int i = threadIdx.x; i < a_.vocab; i += kThreads) {
        const float v = value(i);
        if (i > last || !(v >= limit) || !kept.has(v, i) || key_of(v) != key) continue;
        ++count;
        each = mass(v, top);
      }
      weight = across(each, s_.counts, [](uint64_t x, uint64_t y) { return x > y ? x : y; });
      return across(count, s_.counts, Add());
    };
    uint64_t weight = 0;
    const uint64_t all = ties(a_.vocab, weight);
    const uint64_t need = kMass ? (weight ? (wanted + weight - 1) / weight : all) : wanted;
    int last = key == kept.key ? kept.token : INT32_MAX;
    if (need < all) {
      int low = 0;
      for (last = a_.vocab - 1; low < last;) {
        const int middle = (low + last) / 2;
        if (ties(middle, weight) >= need) last = middle; else low = middle + 1;
      }
    }
    kept.key = key;
    kept.token = last;
  }

  // Step 4.
  __device__ Kept restrict_to(float top) {
    Kept kept;
    // Masked tokens are no candidates.
    kept.floor = fmaxf(__fadd_rn(top, task_.log_min_p), -3.4e38f);
    const bool by_count = task_.top_k > 0 && task_.top_k < a_.vocab;
    if (by_count && amount<false>(kept, kept.floor, top) > uint64_t(task_.top_k)) narrow<false>(kept, top, task_.top_k);
    if (!(task_.top_p < 1)) return kept;
    const uint64_t total = amount<true>(kept, kept.floor, top);
    const uint64_t wanted = __double2ull_ru(double(task_.top_p) * double(total));
    narrow<true>(kept, top, min(max(wanted, uint64_t(1)), total));
    return kept;
  }

  // -ln(u) in fp32, without cancellation where u is close to 1.
  __device__ static float exponential(uint32_t bits) {
    constexpr float kUnit = 1.0f / 4294967296.0f;
    return bits < 0x80000000u ? -logf((float(bits) + 0.5f) * kUnit) : -log1pf(-(float(~bits) + 0.5f) * kUnit);
  }

  // Step 5: in fp32 first, then in fp64 for the few that may win.
  __device__ int draw(const Kept& kept) {
    auto estimate = [&](int i) {
      const float v = value(i);
      return kept.has(v, i) ? v - logf(exponential(draw_bits(task_.key, uint32_t(i)))) : -INFINITY;
    };
    Candidate first{-INFINITY, a_.vocab};
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) first = Better()(first, Candidate{estimate(i), i});
    first = across(first, s_.candidates, Better());
    const float enough = first.value - 1e-3f - 1e-5f * fabsf(first.value);
    Draw best{-INFINITY, a_.vocab};
    for (int i = threadIdx.x; i < a_.vocab; i += kThreads) {
      if (!(estimate(i) >= enough)) continue;
      const double u = draw_uniform(draw_bits(task_.key, uint32_t(i)));
      best = Better()(best, Draw{double(value(i)) - log(-log(u)), i});
    }
    return across(best, s_.draws, Better()).token;
  }

  const SampleArgs& a_;
  const SampleTask& task_;
  Shared& s_;
  const float* logits_;
  const float* values_;
};

// One more occurrence in the output, as far as the count goes.
__device__ unsigned short one_more(unsigned short count) { return (count & kMostCounted) < kMostCounted ? count + 1 : count; }

// One block per row: at 32,000 tokens a thread reads 32 values, so latency decides, not bandwidth.
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs args) {
  __shared__ Shared shared;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const SampleTask task = args.tasks[blockIdx.x];
  SampleResult& out = args.results[blockIdx.x];
  Row row(args, task, shared);
  row.cap();
  double log_sum = 0;
  if (threadIdx.x == 0) out.alternatives = 0;
  if (task.top >= 0) {
    log_sum = row.log_sum_exp();
    row.alternatives(log_sum, out);
  }
  const int token = task.target >= 0 ? task.target : row.pick();
  float logprob = 0;
  int rank = 0;
  if (task.top >= 0) {
    logprob = float(double(row.raw(token)) - log_sum);
    rank = row.rank(row.raw(token));
  }
  if (threadIdx.x != 0) return;
  out.token = token;
  out.logprob = logprob;
  out.rank = rank;
  if (task.target >= 0) return;
  args.last_tokens[task.slot] = token;
  uint16_t& count = args.counts[size_t(task.slot) * args.vocab + token];
  if (task.penalties) count = one_more(count);
}

// Changes a count that other threads may be changing too.
template <class Change>
__device__ void change_count(uint16_t* place, Change change) {
  auto* count = reinterpret_cast<unsigned short*>(place);
  unsigned short seen = *count, expected;
  do {
    expected = seen;
    seen = atomicCAS(count, expected, change(expected));
  } while (seen != expected);
}

// One block.
__global__ void __launch_bounds__(kThreads) count_kernel(const int32_t* tokens, int count, int prompt, uint16_t* counts, int vocab) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int i = threadIdx.x; i < vocab; i += kThreads) counts[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kThreads) {
    if (i < prompt) change_count(counts + tokens[i], [](unsigned short c) { return static_cast<unsigned short>(c | kInPrompt); });
    else change_count(counts + tokens[i], one_more);
  }
}

}  // namespace

Status sample(const SampleArgs& args, const Launch& on) {
  if (args.rows < 1) return {Code::invalid_argument, "cuda sample: no rows"};
  return launch(on, sample_kernel, dim3(args.rows), kThreads, 0, args);
}

Status count_tokens(const int32_t* tokens, int count, int prompt, uint16_t* counts, int vocab, const Launch& on) {
  return launch(on, count_kernel, dim3(1), kThreads, 0, tokens, count, prompt, counts, vocab);
}

}  // namespace edgeshift::cuda
