// The whole forward pass on tiny random models against a slow double-precision one.
#include <bit>
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "model/backend.h"
#include "model/spec_check.h"
#include "ops/kv_layout.h"
#include "test/check.h"
#include "test/masked_steps.h"
#include "test/tiny_model.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

void matches_the_reference() {
  const std::pair<const char*, Options> cases[] = {
      {"tied", {}},
      {"untied, bias", {.tied = false, .bias = true}},
      {"q and k norm", {.qk_norm = true}},
      {"interleaved rotary", {.interleaved = true}},
      {"sliding window", {.window = 7}},
      {"Gemma 2", {.window = 7, .gelu = true, .post_norms = true, .norm_offset = 1, .embedding_scale = 8,
                   .attention_softcap = 5, .final_softcap = 3}},
      {"Gemma 3", {.qk_norm = true, .window = 9, .gelu = true, .post_norms = true, .local_rope = true,
                   .norm_offset = 1, .embedding_scale = 8}},
      {"SmolLM3", {.nope = true}},
      {"biases everywhere", {.bias = true, .all_biases = true}},
      {"partial rotary", {.head_dim = 32, .rotary = 16}},
      {"padded heads", {.bias = true, .head_dim = 24, .rotary = 24}},
      {"padded interleaved heads", {.interleaved = true, .head_dim = 8, .rotary = 8}},
      // Values that binary16 does not hold: in the residual stream, before a norm of an output, between gate and down.
      {"large residual", {.embedding_scale = 1e5f, .down_gain = 4000}},
      {"large outputs, Gemma 2", {.gelu = true, .post_norms = true, .norm_offset = 1, .embedding_scale = 8, .down_gain = 40000}},
      {"large feed-forward", {.gate_up_gain = 400}},
      {"fp8 cache", {.kv_dtype = KvDtype::fp8}},
      {"fp8 cache, Gemma 2", {.window = 7, .gelu = true, .post_norms = true, .norm_offset = 1, .embedding_scale = 8,
                              .attention_softcap = 5, .final_softcap = 3, .kv_dtype = KvDtype::fp8}},
      {"int8 cache", {.kv_dtype = KvDtype::int8}},
      {"int8 cache, padded heads", {.bias = true, .head_dim = 24, .rotary = 24, .kv_dtype = KvDtype::int8}},
  };
  for (const auto& [name, options] : cases) {
    const Net net = make_net(options);
    // Tolerances as shares of the logits' standard deviation: rounding of the cache to fp16, and of these random (worst
    // case) weights to 8 and to 4 bits.
    const std::pair<Precision, double> rungs[] = {
        {Precision::fp16, 0.005}, {Precision::int8, 0.2}, {Precision::int4, 1.5}};
    for (const auto& [precision, tolerance] : rungs) {
      double spread = 1;
      const double worst = worst_difference(net, net.sources(), precision, spread);
      std::printf("%-26s rung %d: worst difference %.5f of the logits' spread\n", name, int(precision), worst / spread);
      if (!(worst < (tolerance + cache_tolerance(net.kv_dtype)) * spread)) test::report(__FILE__, __LINE__, std::string(name) + " is off");
    }
  }
}

// What rounding took of a model's matrices, against the packed weights' own difference: more the fewer the bits.
void states_what_rounding_took() {
  const Net net = make_net({});
  auto backend = open();
  auto share = [&](Precision precision) {
    auto model = backend->load(net.spec, net.sources(), {precision, 4, 64, kBlock, {}});
    const RoundingSums sums = model.value()->rounding();
    return sums.weights > 0 ? std::sqrt(sums.error / sums.weights) : 0.0;
  };
  double count = 0;
  for (const auto& [slot, tensor] : net.tensors) {
    if (tensor.shape.size() == 2) count += double(tensor.values.size());
  }
  const double all = backend->load(net.spec, net.sources(), {Precision::int8, 4, 64, kBlock, {}}).value()->rounding().weights;
  ES_CHECK(all == count);
  const double fp16 = share(Precision::fp16), int8 = share(Precision::int8), int4 = share(Precision::int4);
  ES_CHECK(fp16 == 0 && int8 > 0.001 && int8 < 0.008 && int4 > 0.03 && int4 < 0.12);
}

void refuses_bad_loads() {
  auto backend = open();
  auto expect = [&](const Net& net, std::vector<WeightSource> sources, Code code, const std::string& part) {
    auto model = backend->load(net.spec, sources, {Precision::int8, 4, 64, kBlock, {}});
    const Status status = model.status();
    if (status.code() != code || status.message().find(part) == std::string::npos) {
      test::report(__FILE__, __LINE__, "got: " + status.message() + "\n  wanted: " + part);
    }
  };
  const Net net = make_net({});
  auto with = [&](const std::string& slot, auto change) {
    auto sources = net.sources();
    for (auto& source : sources) {
      if (source.slot == slot) change(source);
    }
    return sources;
  };
  expect(net, with("layers.1.q", [](auto& w) { w.slot = "layers.7.q"; }), Code::invalid_argument, "layers.7.q");
  expect(net, with("layers.1.q", [](auto& w) { w.slot = "layers.0.q"; }), Code::invalid_argument, "twice");
  expect(net, with("layers.1.up", [](auto& w) { w.shape[0] = 95; }), Code::invalid_file, "layers.1.up has shape");
  expect(net, with("layers.1.up", [](auto& w) { w.values.bytes -= 4; }), Code::invalid_file, "its shape needs");
  expect(net, with("embed", [](auto& w) { w.values.type = "q9_k"; }), Code::unsupported, "q9_k");
  auto sources = net.sources();
  std::erase_if(sources, [](const WeightSource& w) { return w.slot == "final_norm"; });
  expect(net, sources, Code::invalid_file, "final_norm is missing");
  Net bad = make_net({});
  bad.spec.kv_heads = 3;
  expect(bad, bad.sources(), Code::invalid_argument, "not a multiple");
}

// A bf16 weight that binary16 cannot hold: refused at fp16 with its name, taken at int8.
void weighs_what_binary16_cannot() {
  const Net net = make_net({});
  const std::vector<float>& values = net.tensors.at("layers.1.up").values;
  std::vector<uint16_t> bits;
  for (float v : values) bits.push_back(uint16_t(std::bit_cast<uint32_t>(v) >> 16));
  bits[5] = uint16_t(std::bit_cast<uint32_t>(1e5f) >> 16);
  std::vector<WeightSource> sources = net.sources();
  for (WeightSource& source : sources) {
    if (source.slot != "layers.1.up") continue;
    source.values = {"bf16", source.shape, reinterpret_cast<const uint8_t*>(bits.data()), bits.size() * 2};
  }
  auto backend = open();
  const Status status = backend->load(net.spec, sources, {Precision::fp16, 4, 64, kBlock, {}}).status();
  ES_CHECK(status.code() == Code::unsupported);
  ES_CHECK(status.message().find("layers.1.up") != std::string::npos);
  ES_CHECK(status.message().find("the int8 rung can") != std::string::npos);
  ES_CHECK(backend->load(net.spec, sources, {Precision::int8, 4, 64, kBlock, {}}).ok());
}

void refuses_bad_batches() {
  const BatchLimits limits{80, 4, 64, kBlock, 4096, 1 << 20};
  auto valid = [] {
    StepBatch b;
    b.tokens = {1, 2, 3};
    b.seq_starts = {0, 2, 3};
    b.first_positions = {0, 16};
    b.slots = {0, 3};
    b.block_starts = {0, 1, 3};
    b.blocks = {0, 16, 32};
    b.row_tokens = {1, 2}, b.row_seqs = {0, 1}, b.row_targets = {-1, 5}, b.row_top = {-1, 20};
    return b;
  };
  ES_CHECK(check_batch(valid(), limits).ok());
  auto expect = [&](auto change, const std::string& part) {
    StepBatch b = valid();
    change(b);
    const Status status = check_batch(b, limits);
    if (status.ok() || status.message().find(part) == std::string::npos) {
      test::report(__FILE__, __LINE__, "got: " + status.message() + "\n  wanted: " + part);
    }
  };
  expect([](auto& b) { b.tokens = {}; }, "no tokens");
  expect([](auto& b) { b.tokens[0] = 80; }, "tokens[0] = 80");
  expect([](auto& b) { b.tokens[0] = -2; }, "tokens[0] = -2");
  expect([](auto& b) { b.tokens.resize(65); }, "max_batch_tokens");
  expect([](auto& b) { b.seq_starts = {0, 3, 2}; }, "seq_starts[2]");
  expect([](auto& b) { b.seq_starts = {0, 0, 3}; }, "seq_starts[1]");
  expect([](auto& b) { b.seq_starts = {INT32_MIN, 1, 3}; }, "seq_starts[0]");
  expect([](auto& b) { b.slots[1] = 4; }, "slots[1] = 4");
  expect([](auto& b) { b.slots[1] = 0; }, "slot 0 occurs twice");
  expect([](auto& b) { b.first_positions[0] = -1; }, "negative");
  expect([](auto& b) { b.first_positions[1] = 32; }, "cover 32");
  expect([](auto& b) { b.first_positions[1] = INT32_MAX; }, "cover 32");
  expect([](auto& b) { b.block_starts = {0, 3, 1}; }, "block_starts[2]");
  expect([](auto& b) { b.block_starts = {0, 1, 2}; }, "ends at 2");
  expect([](auto& b) { b.blocks[2] = (1 << 20) / 256 - 15; }, "blocks[2]");
  expect([](auto& b) { b.blocks[2] = UINT32_MAX; }, "blocks[2]");
  expect([](auto& b) { b.row_tokens[0] = 3; }, "row_tokens[0]");
  expect([](auto& b) { b.row_seqs[0] = 2; }, "row_seqs[0]");
  expect([](auto& b) { b.row_targets[1] = 80; }, "row_targets[1]");
  expect([](auto& b) { b.row_top[1] = 21; }, "row_top[1]");
  expect([](auto& b) { b.row_top.pop_back(); }, "differ in length");
  expect([](auto& b) { b.row_targets[1] = -1, b.row_seqs[1] = 0; }, "two rows");
  const auto masked = [&](std::vector<int32_t> masks) { return [masks](auto& b) { b.row_masks = masks; }; };
  for (const auto& masks : {std::vector<int32_t>{}, {-1, -1}, {0, -1}, {1, -1}}) {
    StepBatch b = valid();
    b.row_masks = masks;
    ES_CHECK(check_batch(b, limits).ok());
  }
  expect(masked({0}), "row_masks has 1");
  expect(masked({-2, -1}), "row_masks[0] = -2");
  expect(masked({2, -1}), "row_masks[0] = 2");
  expect(masked({-1, 0}), "row_masks[1] = 0 is of a row that is scored");
  // A device has room for a mask of each slot.
  expect([](auto& b) {
    b.row_tokens.assign(6, 2), b.row_seqs.assign(6, 1), b.row_targets.assign(6, 5), b.row_top.assign(6, -1);
    b.row_targets[0] = -1;
    b.row_masks = {4, -1, -1, -1, -1, -1};
  }, "row_masks[0] = 4");
}

void samples_and_continues() {
  const Net net = make_net({});
  auto backend = open();
  auto model = load(*backend, net, net.sources(), Precision::fp16);
  StepBatch b = scoring_batch(*model, 1, {3, 4}, 0);
  b.row_targets = {-1};
  StepResult result;
  ES_CHECK(model->step(b, result).code() == Code::invalid_argument);  // the slot was never set
  ES_CHECK(model->set_slot(4, {}).code() == Code::invalid_argument);
  SamplingState state;
  state.tokens = {3, 4};
  state.prompt_length = 2;
  ES_CHECK(model->set_slot(0, state).ok());
  ES_CHECK(model->step(b, result).ok());
  const int32_t first = result.rows[0].token;
  StepBatch implicit = scoring_batch(*model, 1, {-1}, 2), explicit_ = scoring_batch(*model, 1, {first}, 2);
  StepResult left, right;
  ES_CHECK(model->step(implicit, left).ok() && model->step(explicit_, right).ok());
  ES_CHECK(left.rows[0].logprob == right.rows[0].logprob);
}

}  // namespace

int main() {
  refuses_bad_batches();
  states_what_rounding_took();
  refuses_bad_loads();
  weighs_what_binary16_cannot();
  matches_the_reference();
  samples_and_continues();
  takes_masks(*open());
  return test::failures == 0 ? 0 : 1;
}
