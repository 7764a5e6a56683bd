// Every sequence gets what it gets alone, whatever shares its steps: three rungs of one shape on one device, sequences of the
// same tokens that begin at random, in chunks, behind a shared prefix, and decode in batches of all sizes, two steps under way.
//   cuda_rows_test [rounds] [seed]
#include <algorithm>
#include <cmath>
#include <deque>
#include <random>

#include "../../bench/cuda/random_model.cuh"
#include "cuda/model.h"
#include "device_test.h"
#include "test/check.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

constexpr int kBlock = 16, kTokens = 60, kBlocksEach = (kTokens + kBlock - 1) / kBlock, kSlots = 64, kBatchTokens = 512;
constexpr int kShared = 32;  // tokens that sequences may have in common
constexpr double kTolerance = 0.1;

// One rung at work: its sequences of a round.
struct Runner {
  const char* name;
  cuda::CudaModel* model;
  uint32_t first_block;  // of the arena, in blocks
  std::vector<float> alone;  // log probability of the likeliest token after each position
  struct Sequence {
    int slot, prompt, at, shared;
    std::vector<uint32_t> blocks;
  };
  std::vector<Sequence> sequences = {};
  double worst = 0;
  long long rows = 0, wrong = 0;
};

std::vector<int32_t> text() {
  std::vector<int32_t> tokens;
  for (int i = 0; i < kTokens; ++i) tokens.push_back((i * 7919 + 13) % 49152);
  return tokens;
}

// What a step's rows are: position of each, and in what company.
struct Issued {
  Runner* runner;
  std::unique_ptr<PendingStep> pending;
  std::vector<int> positions;
  std::string what;
};

void add(StepBatch& b, Issued& issued, const Runner& runner, Runner::Sequence& s, int count) {
  static const std::vector<int32_t> tokens = text();
  const uint32_t unit = uint32_t(runner.model->block_bytes() / kKvUnitBytes);
  b.tokens.insert(b.tokens.end(), tokens.begin() + s.at, tokens.begin() + s.at + count);
  b.seq_starts.push_back(int32_t(b.tokens.size()));
  b.first_positions.push_back(s.at);
  b.slots.push_back(s.slot);
  for (int i = 0; i * kBlock < s.at + count; ++i) b.blocks.push_back((runner.first_block + s.blocks[size_t(i)]) * unit);
  b.block_starts.push_back(int32_t(b.blocks.size()));
  s.at += count;
  if (s.at < s.prompt) return;
  b.row_tokens.push_back(int32_t(b.tokens.size()) - 1);
  b.row_seqs.push_back(int32_t(b.slots.size()) - 1);
  b.row_targets.push_back(-1);
  b.row_top.push_back(0);
  issued.positions.push_back(s.at - 1);
}

// The runner's next step: a token for all that decode, then prompts as far as the budget goes.
std::optional<Issued> issue(Runner& runner) {
  Issued issued{&runner, nullptr, {}, {}};
  StepBatch b;
  b.seq_starts = b.block_starts = {0};
  int decoding = 0, prompts = 0;
  for (auto& s : runner.sequences)
    if (s.at >= s.prompt && s.at < kTokens) add(b, issued, runner, s, 1), ++decoding;
  for (auto& s : runner.sequences) {
    const int room = kBatchTokens - int(b.tokens.size());
    if (s.at >= s.prompt || room <= 0) continue;
    // Behind the prefix of the first one, as soon as that is there.
    if (s.shared) {
      if (runner.sequences[0].at < kShared) continue;
      s.at = kShared, s.shared = 0;
    }
    add(b, issued, runner, s, std::min(room, s.prompt - s.at)), ++prompts;
  }
  if (b.tokens.empty()) return std::nullopt;
  issued.what = std::to_string(decoding) + " decoding, " + std::to_string(prompts) + " prompts, " + std::to_string(b.tokens.size()) + " tokens";
  auto pending = runner.model->begin(b);
  require(pending.status(), "begin");
  issued.pending = std::move(pending.value());
  return issued;
}

void settle(Issued& issued) {
  StepResult result;
  require(issued.pending->wait(result), "wait");
  Runner& runner = *issued.runner;
  for (size_t i = 0; i < result.rows.size(); ++i) {
    const double off = std::abs(double(result.rows[i].logprob) - runner.alone[size_t(issued.positions[i])]);
    runner.worst = std::max(runner.worst, off), ++runner.rows;
    if (off < kTolerance) continue;
    if (++runner.wrong <= 20)
      std::printf("%s: row %zu of %zu at position %d is off by %.3f (%s)\n", runner.name, i, result.rows.size(), issued.positions[i], off,
                  issued.what.c_str());
  }
}

void begin_round(Runner& runner, int count, std::mt19937& random) {
  std::vector<uint32_t> blocks(kSlots * kBlocksEach);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = uint32_t(i);
  std::shuffle(blocks.begin(), blocks.end(), random);
  runner.sequences.clear();
  SamplingState state;
  state.tokens = {1};
  for (int i = 0; i < count; ++i) {
    Runner::Sequence s{i, 33 + int(random() % 22), 0, i > 0 && random() % 2, {}};
    for (int j = 0; j < kBlocksEach; ++j) s.blocks.push_back(blocks[size_t(i * kBlocksEach + j)]);
    if (s.shared)
      for (int j = 0; j < kShared / kBlock; ++j) s.blocks[size_t(j)] = runner.sequences[0].blocks[size_t(j)];
    runner.sequences.push_back(s);
    require(runner.model->set_slot(i, state, {}), "set_slot");
  }
}

void run(std::vector<Runner*> runners) {
  std::deque<Issued> under_way;
  for (bool any = true; any;) {
    any = false;
    for (Runner* runner : runners) {
      auto issued = issue(*runner);
      if (!issued) continue;
      any = true;
      under_way.push_back(std::move(*issued));
      if (under_way.size() > 2) settle(under_way.front()), under_way.pop_front();
    }
  }
  for (Issued& issued : under_way) settle(issued);
}

// Token by token in a batch of one.
void measure_alone(Runner& runner) {
  runner.alone.assign(kTokens, 0);
  SamplingState state;
  state.tokens = {1};
  require(runner.model->set_slot(0, state, {}), "set_slot");
  runner.sequences = {{0, 1, 0, 0, {0, 1, 2, 3}}};
  while (auto issued = issue(runner)) {
    StepResult result;
    require(issued->pending->wait(result), "wait");
    runner.alone[size_t(issued->positions[0])] = result.rows[0].logprob;
  }
}

}  // namespace

int main(int argc, char** argv) {
  cuda::DeviceState state;
  state.on = open_device();
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  std::mt19937 random(argc > 2 ? unsigned(std::atoi(argv[2])) : 1u);
  const bench::Shape* shape = std::find_if(std::begin(bench::kShapes), std::end(bench::kShapes), [](auto& s) { return std::string(s.name) == "smollm2-135m"; });
  const std::pair<const char*, Precision> rungs[] = {{"fp16", Precision::fp16}, {"int8", Precision::int8}, {"int4", Precision::int4}};
  std::vector<std::unique_ptr<cuda::CudaModel>> models;
  std::vector<Runner> runners;
  const size_t block = KvLayout{shape->layers, shape->kv_heads, shape->head_dim, kBlock, KvDtype::fp16}.block_bytes();
  require(state.arena.allocate(block * 3 * kSlots * kBlocksEach), "arena");
  require(cuda::to_status(cudaMemset(state.arena.as<void>(), 0xff, state.arena.bytes()), "arena"), "arena");
  for (const auto& [name, precision] : rungs) {
    bench::RandomModel random_model;
    require(bench::random_model(*shape, precision, 64, random_model), "random_model");
    const LoadOptions load{precision, kSlots, kBatchTokens, kBlock, {}};
    models.push_back(std::make_unique<cuda::CudaModel>(state, random_model.spec, load, cuda::DeviceWeights{random_model.weights, std::move(random_model.memory), {}}));
    require(models.back()->prepare(), "prepare");
    runners.push_back({name, models.back().get(), uint32_t(runners.size()) * kSlots * kBlocksEach, {}});
  }
  require(cuda::to_status(cudaDeviceSynchronize(), "models"), "models");
  for (Runner& runner : runners) measure_alone(runner);
  for (int round = 0; round < rounds; ++round) {
    std::vector<Runner*> chosen;
    for (Runner& runner : runners) {
      begin_round(runner, 1 + int(random() % kSlots), random);
      if (round % 2 || round / 2 % 3 == &runner - runners.data()) chosen.push_back(&runner);
    }
    run(chosen);
  }
  for (const Runner& runner : runners) {
    std::printf("%s: %lld rows, worst difference of a log probability %.4f, %lld over %.1f\n", runner.name, runner.rows, runner.worst, runner.wrong, kTolerance);
    ES_CHECK(runner.wrong == 0 && runner.rows > 0);
  }
  return failures == 0 ? 0 : 1;
}
