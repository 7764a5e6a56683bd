// Sampling on the device against the CPU's, through the arrays that a step uploads: tokens, ranks and alternatives exactly
// but for near ties (counted), log probabilities within 2e-5 of their size.
//   cuda_sample_test [largest vocabulary] [rows of a round]: less for sanitizers, under which all takes many minutes
#include "cuda/step_arrays.h"
#include "cpu/ops.h"
#include "cuda/sample.h"
#include "cuda/step_masks.h"
#include "device_test.h"
#include "test/random_sampling.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

// Rows of one vocabulary, each in a slot of its own.
struct Rows {
  int vocab;
  std::vector<std::vector<float>> logits;
  std::vector<SamplingState> states;
  std::vector<int32_t> targets, tops;
  std::vector<std::vector<uint32_t>> masks = {};  // [rows] empty = none; or none at all

  bool masked(size_t row) const { return row < masks.size() && !masks[row].empty(); }
  int count() const { return int(states.size()); }
};

StepBatch batch_of(const Rows& rows) {
  StepBatch b;
  b.seq_starts = b.block_starts = {0};
  for (int i = 0; i < rows.count(); ++i) {
    b.tokens.push_back(0);
    b.seq_starts.push_back(i + 1);
    b.first_positions.push_back(0);
    b.slots.push_back(i);
    b.blocks.push_back(0);
    b.block_starts.push_back(i + 1);
    b.row_tokens.push_back(i);
    b.row_seqs.push_back(i);
  }
  for (int32_t i = 0, mask = 0; i < rows.count(); ++i) b.row_masks.push_back(rows.masked(size_t(i)) ? mask++ : -1);
  b.row_targets = rows.targets;
  b.row_top = rows.tops;
  return b;
}

std::vector<cuda::SampleResult> on_device(const Rows& rows, const cuda::Launch& on, std::vector<int32_t>* last_tokens = nullptr) {
  const int n = rows.count();
  LoadOptions options;
  options.max_slots = n;
  options.max_batch_tokens = 16;  // less than the step needs: the arrays grow
  options.block_size = 16;
  ModelSpec spec;
  spec.vocab = rows.vocab;
  SlotTable slots(spec, options);
  std::vector<int> fresh;
  for (int i = 0; i < n; ++i) require(slots.set(i, rows.states[size_t(i)], {}), "slot"), fresh.push_back(i);
  cuda::Flight flight;
  cuda::StepArrays arrays;
  require(arrays.open(options), "arrays");
  require(arrays.upload(batch_of(rows), slots, fresh, flight, on), "upload");
  std::vector<float> all;
  for (const auto& row : rows.logits) all.insert(all.end(), row.begin(), row.end());
  cuda::Buffer logits = upload(all), adjusted, counts, last = upload(std::vector<int32_t>(size_t(n), -7)), results;
  require(adjusted.allocate(all.size() * 4), "adjusted");
  require(counts.allocate(all.size() * 2), "counts");
  require(results.allocate(size_t(n) * sizeof(cuda::SampleResult)), "results");
  const int32_t* history = arrays.history();
  for (int i = 0; i < n; ++i) {
    const SamplingState& s = rows.states[size_t(i)];
    require(cuda::count_tokens(history, int(s.tokens.size()), s.prompt_length, counts.as<uint16_t>() + size_t(i) * rows.vocab, rows.vocab, on),
            "count_tokens");
    history += s.tokens.size();
  }
  std::vector<uint32_t> mask_words;
  for (const auto& mask : rows.masks) mask_words.insert(mask_words.end(), mask.begin(), mask.end());
  cuda::StepMasks masks;
  require(masks.open(n, rows.vocab), "masks");
  require(masks.reserve(flight), "masks");
  require(masks.upload(mask_words, flight, on), "masks");
  cuda::SampleArgs args;
  args.masks = masks.data();
  args.logits = logits.as<float>();
  args.adjusted = adjusted.as<float>();
  args.tasks = arrays.tasks();
  args.bias_tokens = arrays.bias_tokens();
  args.bias_values = arrays.bias_values();
  args.counts = counts.as<uint16_t>();
  args.last_tokens = last.as<int32_t>();
  args.results = results.as<cuda::SampleResult>();
  args.rows = n;
  args.vocab = rows.vocab;
  require(cuda::sample(args, on), "sample");
  require(masks.release(on), "masks");
  if (last_tokens) *last_tokens = download<int32_t>(last, size_t(n));
  return download<cuda::SampleResult>(results, size_t(n));
}

std::vector<SampleRow> on_host(const Rows& rows) {
  static cpu::ThreadPool pool(2);
  std::vector<float> all;
  for (const auto& row : rows.logits) all.insert(all.end(), row.begin(), row.end());
  std::vector<const SamplingState*> states;
  for (const SamplingState& s : rows.states) states.push_back(&s);
  std::vector<const uint32_t*> masks;
  for (size_t i = 0; i < rows.states.size(); ++i) masks.push_back(rows.masked(i) ? rows.masks[i].data() : nullptr);
  std::vector<SampleRow> out(rows.states.size());
  const SampleArgs row{all.data(), rows.count(), rows.vocab, states.data(), rows.targets.data(), rows.tops.data(), out.data(), masks.data()};
  require(cpu::sample(pool, row), "cpu sample");
  return out;
}

Rows random_rows(Random& draws, int vocab, int count, bool ties) {
  Rows rows{vocab, {}, {}, {}, {}};
  for (int i = 0; i < count; ++i) {
    std::vector<float> logits = draws.normals(size_t(vocab), 0.5f + 4 * draws.uniform());
    // Many equal values: which of them are kept is decided by their ids.
    if (ties) for (float& v : logits) v = std::round(v);
    rows.logits.push_back(std::move(logits));
    rows.states.push_back(test::random_state(draws, vocab));
    rows.targets.push_back(draws.below(4) ? -1 : draws.below(vocab));
    rows.tops.push_back(draws.below(22) - 1);
    rows.masks.push_back(rows.targets.back() < 0 && draws.below(2) ? random_mask(draws, vocab) : std::vector<uint32_t>());
  }
  return rows;
}

void compare(const Rows& rows, const cuda::Launch& on, int& tokens, int& other, Checks& checks) {
  std::vector<int32_t> last;
  const std::vector<cuda::SampleResult> got = on_device(rows, on, &last);
  const std::vector<SampleRow> wanted = on_host(rows);
  for (size_t r = 0; r < got.size(); ++r) {
    const std::string where = "row " + std::to_string(r) + " of vocabulary " + std::to_string(rows.vocab);
    ++tokens;
    other += got[r].token != wanted[r].token;
    // Near ties are between tokens that the mask has, or it has none.
    if (rows.masked(r)) checks.below(got[r].token == 0 || allows(rows.masks[r], got[r].token) ? 0 : 1, 0.5, "mask, " + where);
    checks.below(last[r] == (rows.targets[r] < 0 ? got[r].token : -7) ? 0 : 1, 0.5, "last token, " + where);
    if (rows.tops[r] < 0 || got[r].token != wanted[r].token) continue;
    checks.below(got[r].rank == wanted[r].rank ? 0 : 1, 0.5, "rank, " + where);
    checks.below(std::abs(got[r].logprob - wanted[r].logprob) / (1 + std::abs(wanted[r].logprob)), 2e-5, "log probability, " + where);
    bool same = size_t(got[r].alternatives) == wanted[r].top_tokens.size();
    double worst = 0;
    for (size_t i = 0; same && i < wanted[r].top_tokens.size(); ++i) {
      same = got[r].top_tokens[i] == wanted[r].top_tokens[i];
      worst = std::max(worst, std::abs(double(got[r].top_logprobs[i]) - wanted[r].top_logprobs[i]) / (1 + std::abs(double(wanted[r].top_logprobs[i]))));
    }
    checks.below(same ? worst : 1, 2e-5, "alternatives, " + where);
  }
}

// What no distribution shows: rows of NaN, of one value, of masked tokens; a row alone and among others.
void check_edges(const cuda::Launch& on, Checks& checks) {
  const int vocab = 1000;
  Rows rows{vocab, {}, {}, {}, {}};
  auto add = [&](std::vector<float> logits, SamplingState state) {
    rows.logits.push_back(std::move(logits));
    rows.states.push_back(std::move(state));
    rows.targets.push_back(-1);
    rows.tops.push_back(-1);
  };
  SamplingState warm;
  warm.temperature = 1;
  SamplingState nucleus = warm, first = warm;
  nucleus.top_p = 0.5f;
  first.top_k = 1;
  add(std::vector<float>(vocab, NAN), {});
  add(std::vector<float>(vocab, NAN), nucleus);
  add(std::vector<float>(vocab, 2), {});
  add(std::vector<float>(vocab, 2), first);
  std::vector<float> one(vocab, -INFINITY);
  one[333] = 1;
  add(one, warm);
  add(one, nucleus);
  const std::vector<cuda::SampleResult> got = on_device(rows, on);
  const int32_t wanted[] = {0, 0, 0, 0, 333, 333};
  for (size_t i = 0; i < got.size(); ++i) checks.below(got[i].token == wanted[i] ? 0 : 1, 0.5, "edge " + std::to_string(i));
}

}  // namespace

int main(int argc, char** argv) {
  const int largest = argc > 1 ? std::atoi(argv[1]) : 151936, rows = argc > 2 ? std::atoi(argv[2]) : 32;
  const cuda::Launch on = open_device();
  Checks checks;
  Random random(5);
  int tokens = 0, other = 0;
  for (int vocab : {1, 7, 300, 4097, 32000, 151936}) {
    if (vocab > largest) continue;
    for (bool ties : {false, true}) {
      for (int round = 0; round < (vocab > 10000 ? 2 : 6); ++round) compare(random_rows(random, vocab, rows, ties), on, tokens, other, checks);
    }
  }
  check_edges(on, checks);
  std::printf("%d of %d tokens differ from the CPU's\n", other, tokens);
  // A sum of fp32 exponentials may fall on the other side of top_p than another sum.
  checks.below(double(other) / tokens, 2e-3, "tokens that differ");
  return checks.report("sample");
}
