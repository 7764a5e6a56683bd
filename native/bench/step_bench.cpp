// Speed of whole steps of a SmolLM2-135M shaped model with random weights (Q4_1 matrices, Q8_0 tied head): prefill of
// 256 tokens, and decoding with 1, 8 and 16 sequences after it.
// Usage: step_bench [threads] [fp16|int8|int4] [cache: fp16|fp8|int8]; EDGESHIFT_CPU_ISA chooses the instruction set.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "bench/clock.h"
#include "model/backend.h"
#include "quant/block_type.h"
#include "quant/half.h"

using namespace edgeshift;

namespace {

constexpr int kPrompt = 256, kNew = 32, kBlockSize = 16;

ModelSpec smollm2() {
  ModelSpec s;
  s.vocab = 49152;
  s.hidden = 576;
  s.layers = 30;
  s.heads = 9;
  s.kv_heads = 3;
  s.head_dim = 64;
  s.ffn = 1536;
  s.norm_eps = 1e-5f;
  s.ropes.resize(1);
  s.layer_ropes.assign(30, 0);
  for (int i = 0; i < 32; ++i) s.ropes[0].inv_freq.push_back(std::pow(100000.0f, -float(i) / 32));
  s.rope_interleaved = true;
  s.attention_scale = 0.125f;
  s.windows.assign(30, 0);
  return s;
}

// Blocks with random codes, a small scale and a minimum that centres them.
struct Weights {
  std::vector<std::vector<uint8_t>> data;
  std::vector<WeightSource> sources;

  void add(const std::string& slot, BlockType type, const char* name, int n, int k) {
    std::vector<uint8_t> bytes(size_t(n) * row_bytes(type, k));
    uint32_t seed = uint32_t(sources.size()) + 1;
    for (uint8_t& b : bytes) b = uint8_t((seed = seed * 1664525u + 1013904223u) >> 24);
    uint16_t scale = to_f16(type == BlockType::q8_0 ? 0.0005f : 0.005f).bits, minimum = to_f16(-0.0375f).bits;
    for (size_t at = 0; at < bytes.size(); at += size_t(block_bytes(type))) {
      std::memcpy(&bytes[at], &scale, 2);
      if (type == BlockType::q4_1) std::memcpy(&bytes[at + 2], &minimum, 2);
    }
    push(slot, name, {n, k}, std::move(bytes));
  }

  void add_norm(const std::string& slot, int k) {
    std::vector<float> ones(size_t(k), 1.0f);
    std::vector<uint8_t> bytes(ones.size() * 4);
    std::memcpy(bytes.data(), ones.data(), bytes.size());
    push(slot, "f32", {k}, std::move(bytes));
  }

  void push(const std::string& slot, const char* name, std::vector<int64_t> shape, std::vector<uint8_t> bytes) {
    data.push_back(std::move(bytes));
    WeightSource& source = sources.emplace_back();
    source.slot = slot;
    source.shape = shape;
    source.values = {name, std::move(shape), data.back().data(), data.back().size()};
  }
};

Weights make_weights(const ModelSpec& s) {
  Weights w;
  w.add("embed", BlockType::q8_0, "q8_0", s.vocab, s.hidden);
  w.add_norm("final_norm", s.hidden);
  for (int i = 0; i < s.layers; ++i) {
    std::string layer = "layers." + std::to_string(i) + ".";
    w.add_norm(layer + "attn_norm", s.hidden);
    w.add_norm(layer + "ffn_norm", s.hidden);
    w.add(layer + "q", BlockType::q4_1, "q4_1", s.heads * s.head_dim, s.hidden);
    w.add(layer + "k", BlockType::q4_1, "q4_1", s.kv_heads * s.head_dim, s.hidden);
    w.add(layer + "v", BlockType::q4_1, "q4_1", s.kv_heads * s.head_dim, s.hidden);
    w.add(layer + "o", BlockType::q4_1, "q4_1", s.hidden, s.heads * s.head_dim);
    w.add(layer + "gate", BlockType::q4_1, "q4_1", s.ffn, s.hidden);
    w.add(layer + "up", BlockType::q4_1, "q4_1", s.ffn, s.hidden);
    w.add(layer + "down", BlockType::q4_1, "q4_1", s.hidden, s.ffn);
  }
  return w;
}

// A step of `sequences` sequences with `count` tokens each from `first` on, sampling the last token of each.
StepBatch make_batch(const Model& model, int sequences, int first, int count) {
  StepBatch b;
  b.seq_starts = b.block_starts = {0};
  int per_sequence = (kPrompt + kNew + kBlockSize - 1) / kBlockSize;
  uint32_t units = uint32_t(model.block_bytes() / 256);
  for (int s = 0; s < sequences; ++s) {
    for (int i = 0; i < count; ++i) b.tokens.push_back((first + i) * 31 % 49152);
    b.seq_starts.push_back(int32_t(b.tokens.size()));
    b.first_positions.push_back(first);
    b.slots.push_back(s);
    for (int i = 0; i < per_sequence; ++i) b.blocks.push_back(uint32_t(s * per_sequence + i) * units);
    b.block_starts.push_back(int32_t(b.blocks.size()));
    b.row_tokens.push_back(int32_t(b.tokens.size()) - 1);
    b.row_seqs.push_back(s);
    b.row_targets.push_back(-1);
    b.row_top.push_back(-1);
  }
  return b;
}

double run(Model& model, const StepBatch& batch) {
  StepResult result;
  double start = bench::seconds_now();
  Status status = model.step(batch, result);
  if (!status.ok()) {
    std::fprintf(stderr, "step: %s\n", status.message().c_str());
    std::exit(1);
  }
  return bench::seconds_now() - start;
}

}  // namespace

int main(int argc, char** argv) {
  int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  std::string name = argc > 2 ? argv[2] : "int4";
  Precision precision = name == "fp16" ? Precision::fp16 : name == "int8" ? Precision::int8 : Precision::int4;
  ModelSpec spec = smollm2();
  Weights weights = make_weights(spec);
  auto backend = open_cpu(threads, size_t(512) << 20);
  if (!backend.ok()) return 1;
  double start = bench::seconds_now();
  LoadOptions options{precision, 16, 4096, kBlockSize, {}};
  const std::string cache = argc > 3 ? argv[3] : "fp16";
  options.kv_dtype = cache == "fp8" ? KvDtype::fp8 : cache == "int8" ? KvDtype::int8 : KvDtype::fp16;
  auto loaded = backend.value()->load(spec, weights.sources, options);
  if (!loaded.ok()) {
    std::fprintf(stderr, "load: %s\n", loaded.status().message().c_str());
    return 1;
  }
  Model& model = *loaded.value();
  std::printf("%s, %s cache, %d threads: loaded in %.0f ms, %.1f MB\n", name.c_str(), cache.c_str(), threads, (bench::seconds_now() - start) * 1e3, double(model.weight_bytes()) / 1e6);
  for (int s = 0; s < 16; ++s) (void)model.set_slot(s, {});
  double prefill = 1e9;
  for (int s = 0; s < 9; ++s) prefill = std::min(prefill, run(model, make_batch(model, 1, 0, kPrompt)));
  std::printf("prefill %d: %.1f ms, %.0f tokens/s\n", kPrompt, prefill * 1e3, kPrompt / prefill);
  run(model, make_batch(model, 16, 0, kPrompt));
  for (int sequences : {1, 8, 16}) {
    std::vector<double> times;
    for (int i = 0; i < kNew; ++i) times.push_back(run(model, make_batch(model, sequences, kPrompt + i, 1)));
    std::sort(times.begin(), times.end());
    double median = times[times.size() / 2];
    std::printf("decode %2d: %.2f ms a step (best %.2f), %.0f tokens/s\n", sequences, median * 1e3, times[0] * 1e3, sequences / median);
  }
}
