// The CUDA backend on tiny random models: against a slow double-precision forward pass, and against the CPU backend.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "model/backend.h"
#include "test/check.h"
#include "test/masked_steps.h"
#include "test/tiny_model.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

void matches_the_reference(Backend& backend) {
  const std::pair<const char*, Options> cases[] = {
      {"tied", {}},
      {"untied, bias", {.tied = false, .bias = true}},
      {"head of 64, q and k norm", {.qk_norm = true, .head_dim = 64, .rotary = 64}},
      {"interleaved rotary", {.interleaved = true}},
      {"sliding window", {.window = 7}},
      {"Gemma 2", {.window = 7, .gelu = true, .post_norms = true, .norm_offset = 1, .embedding_scale = 8,
                   .attention_softcap = 5, .final_softcap = 3}},
      {"Gemma 3", {.qk_norm = true, .window = 9, .head_dim = 64, .gelu = true, .post_norms = true, .local_rope = true,
                   .norm_offset = 1, .embedding_scale = 8}},
      {"SmolLM3", {.nope = true}},
      {"partial rotary", {.head_dim = 128, .rotary = 64}},
      {"padded heads", {.bias = true, .head_dim = 24, .rotary = 24}},
      {"padded heads, q and k norm", {.qk_norm = true, .head_dim = 40, .rotary = 40}},
      {"all biases", {.all_biases = true}},
      {"all biases, GELU", {.all_biases = true, .gelu = true}},
      // Values that f16 does not hold: in the residual stream and before a norm of an output.
      {"large residual", {.embedding_scale = 1e5f, .down_gain = 4000}},
      {"large outputs, Gemma 2", {.gelu = true, .post_norms = true, .norm_offset = 1, .embedding_scale = 8, .down_gain = 40000}},
      {"fp8 cache", {.kv_dtype = KvDtype::fp8}},
      {"fp8 cache, Gemma 2", {.window = 7, .gelu = true, .post_norms = true, .norm_offset = 1, .embedding_scale = 8,
                              .attention_softcap = 5, .final_softcap = 3, .kv_dtype = KvDtype::fp8}},
      {"fp8 cache, padded heads", {.bias = true, .head_dim = 40, .rotary = 40, .kv_dtype = KvDtype::fp8}},
      {"int8 cache", {.kv_dtype = KvDtype::int8}},
      {"int8 cache, heads of 128", {.qk_norm = true, .head_dim = 128, .rotary = 64, .kv_dtype = KvDtype::int8}},
  };
  for (const auto& [name, options] : cases) {
    const Net net = make_net(options);
    // Shares of the logits' standard deviation: fp16 activations, then rounding of random weights to 8 and to 4 bits.
    const std::pair<Precision, double> rungs[] = {{Precision::fp16, 0.05}, {Precision::int8, 0.3}, {Precision::int4, 2.5}};
    for (const auto& [precision, tolerance] : rungs) {
      double spread = 1;
      const double worst = worst_difference(backend, net, net.sources(), precision, spread);
      std::printf("%-26s rung %d: worst difference %.5f of the logits' spread\n", name, int(precision), worst / spread);
      if (!(worst < (tolerance + cache_tolerance(net.kv_dtype)) * spread)) report(__FILE__, __LINE__, std::string(name) + " is off");
    }
  }
}

// Inputs of the down projection are f16: past its range they saturate, which is another model, but no NaN.
void saturates(Backend& backend) {
  const Net net = make_net({.gate_up_gain = 400});
  double spread = 1;
  const double worst = worst_difference(backend, net, net.sources(), Precision::fp16, spread);
  std::printf("feed-forward past f16: worst difference %.5f of the logits' spread\n", worst / spread);
  ES_CHECK(std::isfinite(worst));
}

struct Run {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

// Three sequences of different lengths: a prompt each in one batch, then tokens fed back by -1, one sequence starting anew
// in the middle of the others' decoding.
Run generate(Backend& backend, const Net& net, float temperature) {
  Run run;
  auto model = load(backend, net, net.sources(), Precision::fp16);
  if (!model) return run;
  const uint32_t unit = uint32_t(model->block_bytes() / kKvUnitBytes);
  int position[3] = {0, 0, 0};
  const std::vector<int32_t> prompts[3] = {{1, 2, 3}, {4, 5, 6, 7, 8, 9, 10}, {11}};
  for (int i = 0; i < 3; ++i) {
    SamplingState state;
    state.temperature = temperature;
    state.top_k = 20;
    state.repetition_penalty = 1.1f;
    state.seed = uint64_t(i) + 5;
    state.tokens = prompts[i];
    state.prompt_length = int(prompts[i].size());
    ES_CHECK(model->set_slot(i, state).ok());
  }
  for (int step = 0; step < 12; ++step) {
    StepBatch b;
    b.seq_starts = b.block_starts = {0};
    for (int i = 0; i < 3; ++i) {
      if (i == 2 && step < 4) continue;
      const std::vector<int32_t> tokens = position[i] == 0 ? prompts[i] : std::vector<int32_t>{-1};
      b.tokens.insert(b.tokens.end(), tokens.begin(), tokens.end());
      b.seq_starts.push_back(int32_t(b.tokens.size()));
      b.first_positions.push_back(position[i]);
      b.slots.push_back(i);
      b.blocks.insert(b.blocks.end(), {uint32_t(2 * i + 1) * unit, uint32_t(2 * i) * unit});
      b.block_starts.push_back(int32_t(b.blocks.size()));
      b.row_tokens.push_back(int32_t(b.tokens.size()) - 1);
      b.row_seqs.push_back(int32_t(b.slots.size()) - 1);
      b.row_targets.push_back(-1);
      b.row_top.push_back(1);
      position[i] += int(tokens.size());
    }
    StepResult result;
    const Status status = model->step(b, result);
    if (!status.ok()) report(__FILE__, __LINE__, status.message());
    for (const SampleRow& row : result.rows) {
      run.tokens.push_back(row.token);
      run.logprobs.push_back(row.logprob);
    }
  }
  return run;
}

// Masks of all kinds on some of the rows.
void obeys_masks_as_the_cpu_does(Backend& backend, float temperature) {
  const Net net = make_net({.tied = false, .head_dim = 64, .rotary = 64});
  auto cpu = open_cpu(2, 4 << 20);
  ES_CHECK(cpu.ok());
  const MaskOf some = [&](int step, int row) { return any_mask(net.spec.vocab, step, row); };
  ES_CHECK(run_masked(*cpu.value(), net, temperature, some) == run_masked(backend, net, temperature, some));
}

// Rotary tables of one sequence's own, beside one that keeps the model's: each as the CPU backend has it.
std::vector<float> scored_with_own_ropes(Backend& backend, const Net& net) {
  std::vector<float> out;
  auto model = load(backend, net, net.sources(), Precision::fp16);
  if (!model) return out;
  std::vector<RopeTable> ropes = net.spec.ropes;
  for (RopeTable& rope : ropes) {
    for (float& frequency : rope.inv_freq) frequency *= 0.5f;
    rope.scale = 1.25f;
  }
  ES_CHECK(model->set_slot(0, SamplingState(), ropes).ok());
  for (const std::vector<int32_t>& tokens : {std::vector<int32_t>{3, 9, 27, 5}, std::vector<int32_t>{8}}) {
    StepResult result;
    ES_CHECK(model->step(scoring_batch(*model, net.spec.vocab, tokens, out.empty() ? 0 : 4), result).ok());
    for (const SampleRow& row : result.rows) out.push_back(row.logprob);
  }
  return out;
}

void takes_a_sequences_own_ropes(Backend& backend) {
  for (const Options& options : {Options{.head_dim = 64, .rotary = 64}, Options{.head_dim = 64, .rotary = 64, .local_rope = true}}) {
    const Net net = make_net(options);
    auto cpu = open_cpu(2, 4 << 20);
    const std::vector<float> left = scored_with_own_ropes(*cpu.value(), net), right = scored_with_own_ropes(backend, net);
    ES_CHECK(left.size() == size_t(2 * net.spec.vocab) && left.size() == right.size());
    double worst = 0;
    for (size_t i = 0; i < left.size() && i < right.size(); ++i) worst = std::max(worst, double(std::abs(left[i] - right[i])));
    std::printf("own rotary tables: log probabilities differ by up to %.5f\n", worst);
    ES_CHECK(worst < 0.05);
  }
}

void samples_as_the_cpu_does(Backend& backend, float temperature) {
  const Net net = make_net({.tied = false, .head_dim = 64, .rotary = 64});
  auto cpu = open_cpu(2, 4 << 20);
  ES_CHECK(cpu.ok());
  const Run left = generate(*cpu.value(), net, temperature), right = generate(backend, net, temperature);
  ES_CHECK(left.tokens.size() == 32 && left.tokens == right.tokens);
  double worst = 0;
  for (size_t i = 0; i < left.logprobs.size() && i < right.logprobs.size(); ++i) {
    worst = std::max(worst, double(std::abs(left.logprobs[i] - right.logprobs[i])));
  }
  std::printf("temperature %.1f: %zu tokens, log probabilities differ by up to %.5f\n", double(temperature),
              left.tokens.size(), worst);
  ES_CHECK(worst < 0.05);
}

// A variant that comes back from the host cache computes the same, and a cache too small for two keeps the last; where the
// system refuses the memory there is none, and that is told.
void comes_back_from_the_host_cache() {
  constexpr size_t kRefused = size_t(1) << 46;
  const Net nets[] = {make_net({.bias = true}), make_net({.qk_norm = true, .head_dim = 64, .rotary = 64})};
  for (size_t cache : {size_t(0), size_t(1) << 16, size_t(1) << 18, size_t(16) << 20, kRefused}) {
    auto backend = open_cuda(0, 4 << 20, cache);
    ES_CHECK(backend.ok());
    ES_CHECK(backend.value()->host_cache_bytes() == (cache == kRefused ? 0 : cache));
    std::vector<std::vector<int32_t>> first;
    for (int round = 0; round < 3; ++round) {
      for (size_t i = 0; i < 2; ++i) {
        LoadOptions options{Precision::int8, 4, 64, kBlock, {}, i == 0 ? "one" : "other"};
        // From the second round on a cache with room for both does not read the files: it may be given others.
        const Net& net = nets[i];
        Net blank = net;
        for (auto& [slot, tensor] : blank.tensors) std::ranges::fill(tensor.values, 0.0f);
        const bool kept = round > 0 && cache == size_t(16) << 20;
        auto model = backend.value()->load(net.spec, (kept ? blank : net).sources(), options);
        ES_CHECK(model.ok());
        if (!model.ok()) return;
        SamplingState state;
        state.tokens = {3, 4, 5};
        ES_CHECK(model.value()->set_slot(0, state).ok());
        StepBatch b = scoring_batch(*model.value(), net.spec.vocab, {3, 4, 5}, 0);
        StepResult result;
        ES_CHECK(model.value()->step(b, result).ok());
        std::vector<int32_t> bits;
        for (const SampleRow& row : result.rows) bits.push_back(std::bit_cast<int32_t>(row.logprob));
        if (round == 0) first.push_back(bits);
        ES_CHECK(bits == first[i]);
      }
    }
  }
}

void refuses(Backend& backend) {
  const Net net = make_net({});
  StepResult result;
  auto model = load(backend, net, net.sources(), Precision::int8);
  StepBatch b = scoring_batch(*model, 1, {3, 4}, 0);
  ES_CHECK(model->step(b, result).code() == Code::invalid_argument);  // the slot was never set
  // Too large a workspace: the load fails, the model that is resident goes on.
  const Status status = backend.load(net.spec, net.sources(), {Precision::int8, 4, 1 << 30, kBlock, {}}).status();
  ES_CHECK(status.code() == Code::out_of_memory);
  ES_CHECK(model->set_slot(0, {}).ok());
  b.row_targets = {5};
  ES_CHECK(model->step(b, result).ok());
  ES_CHECK(open_cuda(99, 1 << 20).status().code() == Code::unsupported);
  ES_CHECK(cuda_used_bytes(99).status().code() == Code::unsupported);
}

// What is in use before anything is opened is the context, and an arena comes on top of it.
void counts_the_context() {
  constexpr size_t kArena = size_t(256) << 20;
  Result<size_t> before = cuda_used_bytes(0);
  ES_CHECK(before.ok() && before.value() > 0);
  auto backend = open_cuda(0, kArena);
  ES_CHECK(backend.ok());
  if (!before.ok() || !backend.ok()) return;
  auto after = backend.value()->used_bytes();
  ES_CHECK(after.ok() && after.value());
  if (!after.ok() || !after.value()) return;
  const double mib = 1 << 20;
  std::printf("in use: %.1f MiB before anything is opened, %.1f MiB more with an arena of 256 MiB\n", double(before.value()) / mib,
              (double(*after.value()) - double(before.value())) / mib);
  ES_CHECK(*after.value() >= before.value() + kArena && *after.value() < before.value() + kArena + (size_t(64) << 20));
}

}  // namespace

int main() {
  const std::vector<CudaDevice> devices = cuda_devices();
  if (devices.empty()) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  std::printf("%s, compute capability %d.%d\n", devices[0].name.c_str(), devices[0].major, devices[0].minor);
  counts_the_context();
  auto backend = open_cuda(0, size_t(64) << 20);
  if (!backend.ok()) report(__FILE__, __LINE__, backend.status().message());
  if (!backend.ok()) return 1;
  matches_the_reference(*backend.value());
  saturates(*backend.value());
  samples_as_the_cpu_does(*backend.value(), 0);
  samples_as_the_cpu_does(*backend.value(), 0.7f);
  takes_masks(*backend.value());
  obeys_masks_as_the_cpu_does(*backend.value(), 0);
  obeys_masks_as_the_cpu_does(*backend.value(), 0.7f);
  takes_a_sequences_own_ropes(*backend.value());
  comes_back_from_the_host_cache();
  refuses(*backend.value());
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
