// Sampling on every instruction set of this machine against the double reference: tokens exactly, log probabilities
// within 2e-5.
#include <algorithm>
#include <numeric>

#include "cpu/ops.h"
#include "ops/reference/reference.h"
#include "test/check.h"
#include "test/isas.h"
#include "test/random_sampling.h"

using namespace edgeshift;

namespace {

using Mask = std::vector<uint32_t>;  // empty = none

SampleRow run(cpu::ThreadPool& pool, std::vector<float> logits, const SamplingState& state, int target = -1, int top = -1,
              const Mask& mask = {}) {
  SampleRow out;
  const SamplingState* states[] = {&state};
  const uint32_t* masks[] = {mask.empty() ? nullptr : mask.data()};
  int32_t targets[] = {target}, tops[] = {top};
  ES_CHECK(cpu::sample(pool, {logits.data(), 1, int(logits.size()), states, targets, tops, &out, masks}).ok());
  return out;
}

// The fp32 steps may order two nearly equal logits differently from the double ones: such rows are not compared.
bool near_tie(const std::vector<float>& logits, const SamplingState& s, int a, int b, const uint32_t* mask) {
  std::vector<double> l = ref::adjusted_logits(logits.data(), int(logits.size()), s, mask);
  return std::fabs(l[size_t(a)] - l[size_t(b)]) < 1e-5;
}

void check_random(cpu::Isa isa, bool masked) {
  cpu::ThreadPool pool(1, isa);
  test::Random random(11);
  int compared = 0;
  for (int i = 0; i < 400; ++i) {
    int vocab = i % 2 ? 1 + random.below(300) : 64 * (1 + random.below(40));
    std::vector<float> logits = random.normals(size_t(vocab), 0.5f + 4 * random.uniform());
    SamplingState s = test::random_state(random, vocab);
    const Mask mask = masked ? test::random_mask(random, vocab) : Mask();
    const uint32_t* words = masked ? mask.data() : nullptr;
    int token = run(pool, logits, s, -1, -1, mask).token;
    int expected = ref::sample(logits.data(), vocab, s, words);
    if (token != expected && near_tie(logits, s, token, expected, words)) continue;
    // A border of top_p falls between two sums that differ in their last bits.
    ES_CHECK(token == expected);
    ++compared;
  }
  ES_CHECK(compared > 390);
}

void check_masks(cpu::Isa isa) {
  cpu::ThreadPool pool(1, isa);
  test::Random random(23);
  for (int vocab : {1, 31, 32, 33, 100, 49153}) {
    const std::vector<float> logits = random.normals(size_t(vocab), 3);
    SamplingState warm, restricted, stopped;
    warm.temperature = restricted.temperature = 1;
    restricted.top_k = 3;
    restricted.top_p = 0.9f;
    restricted.min_p = 0.1f;
    Mask none(size_t(mask_words(vocab))), all(none.size(), ~0u), one = none;
    const int token = vocab - 1;
    one[size_t(token / 32)] = 1u << token % 32;
    for (const SamplingState& s : {SamplingState(), warm, restricted}) {
      ES_CHECK(run(pool, logits, s, -1, -1, all).token == run(pool, logits, s).token);
      ES_CHECK(run(pool, logits, s, -1, -1, none).token == 0);
      // Log probabilities are of the raw logits, which know of no mask.
      const SampleRow only = run(pool, logits, s, -1, 2, one), scored = run(pool, logits, s, token, 2);
      ES_CHECK(only.token == token && only.logprob == scored.logprob && only.rank == scored.rank);
      ES_CHECK(only.top_tokens == scored.top_tokens && only.top_logprobs == scored.top_logprobs);
    }
    // No bias brings back what is masked, and the only token that is not may be a stop token too early.
    warm.bias_tokens = {0};
    warm.bias_values = {1000};
    ES_CHECK(run(pool, logits, warm, -1, -1, one).token == token);
    stopped.stop_tokens = {token};
    stopped.min_tokens = 1;
    ES_CHECK(run(pool, logits, stopped, -1, -1, one).token == 0);
  }
}

void check_scores(cpu::Isa isa) {
  cpu::ThreadPool pool(1, isa);
  test::Random random(3);
  for (int vocab : {1, 7, 1000, 49152}) {
    std::vector<float> logits = random.normals(size_t(vocab), 5);
    double top = *std::max_element(logits.begin(), logits.end()), sum = 0;
    for (float l : logits) sum += std::exp(double(l) - top);
    double log_sum = top + std::log(sum);
    std::vector<int> order(static_cast<size_t>(vocab));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[size_t(a)] > logits[size_t(b)]; });
    int target = random.below(vocab);
    SampleRow row = run(pool, logits, {}, target, 20);
    ES_CHECK(row.token == target);
    ES_CHECK(std::fabs(double(row.logprob) - (double(logits[size_t(target)]) - log_sum)) < 2e-5);
    ES_CHECK(order[size_t(row.rank - 1)] == target);
    ES_CHECK(row.top_tokens.size() == size_t(std::min(20, vocab)));
    for (size_t i = 0; i < row.top_tokens.size(); ++i) {
      ES_CHECK(row.top_tokens[i] == order[i]);
      ES_CHECK(std::fabs(double(row.top_logprobs[i]) - (double(logits[size_t(order[i])]) - log_sum)) < 2e-5);
    }
    // Log probabilities are of the raw logits, whatever the penalties did.
    SamplingState s;
    s.bias_tokens = {target};
    s.bias_values = {1000};
    SampleRow forced = run(pool, logits, s, -1, 0);
    ES_CHECK(forced.token == target && forced.logprob == row.logprob && forced.rank == row.rank && forced.top_tokens.empty());
  }
}

// Frequencies of many draws against the probabilities (chi-square), over positions and over seeds.
void check_distribution(cpu::Isa isa) {
  cpu::ThreadPool pool(1, isa);
  const std::vector<float> logits = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, 0.5f, -3.0f, 1.5f};
  constexpr int kDraws = 20000;
  for (bool by_seed : {false, true}) {
    SamplingState s;
    s.temperature = 0.8f;
    std::vector<int> counts(logits.size());
    for (int i = 0; i < kDraws; ++i) {
      if (by_seed) s.seed = uint64_t(i);
      else s.tokens.push_back(0);
      ++counts[size_t(run(pool, logits, s).token)];
    }
    double sum = 0, chi = 0;
    for (float l : logits) sum += std::exp(double(l) / 0.8);
    for (size_t i = 0; i < logits.size(); ++i) {
      double expected = kDraws * std::exp(double(logits[i]) / 0.8) / sum;
      chi += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    ES_CHECK(chi < 24.3);  // 7 degrees of freedom, p = 0.001
  }
}

void check_rows(cpu::Isa isa) {
  // Rows of a batch are what they are alone.
  cpu::ThreadPool pool(3, isa);
  test::Random random(8);
  constexpr int kRows = 9, kVocab = 777;
  std::vector<float> logits = random.normals(kRows * kVocab, 3);
  std::vector<SamplingState> states;
  for (int i = 0; i < kRows; ++i) states.push_back(test::random_state(random, kVocab));
  std::vector<const SamplingState*> pointers;
  for (const SamplingState& s : states) pointers.push_back(&s);
  std::vector<int32_t> targets(kRows, -1), top(kRows, 3);
  std::vector<SampleRow> out(kRows);
  std::vector<float> copy = logits;
  std::vector<Mask> masks(kRows);
  std::vector<const uint32_t*> row_masks(kRows);
  for (size_t i = 0; i < kRows; i += 2) {
    masks[i] = test::random_mask(random, kVocab);
    row_masks[i] = masks[i].data();
  }
  ES_CHECK(cpu::sample(pool, {copy.data(), kRows, kVocab, pointers.data(), targets.data(), top.data(), out.data(), row_masks.data()}).ok());
  for (int i = 0; i < kRows; ++i) {
    const std::vector<float> row(logits.begin() + i * kVocab, logits.begin() + (i + 1) * kVocab);
    SampleRow alone = run(pool, row, states[size_t(i)], -1, 3, masks[size_t(i)]);
    ES_CHECK(alone.token == out[size_t(i)].token && alone.logprob == out[size_t(i)].logprob && alone.top_tokens == out[size_t(i)].top_tokens);
  }
}

void check_edges(cpu::Isa isa) {
  cpu::ThreadPool pool(1, isa);
  // Ties go to the smaller id, in every place of a block.
  for (int at : {0, 1, 63, 64, 99}) {
    std::vector<float> logits(100, -1.0f);
    logits[size_t(at)] = logits[99] = 4.0f;
    ES_CHECK(run(pool, logits, {}).token == at);
  }
  // All but one token masked.
  SamplingState s;
  s.temperature = 1;
  for (int i = 0; i < 70; ++i) {
    if (i != 42) s.stop_tokens.push_back(i);
  }
  s.min_tokens = 1;
  ES_CHECK(run(pool, std::vector<float>(70, 1.0f), s).token == 42);
  s.top_p = 0.5f;
  ES_CHECK(run(pool, std::vector<float>(70, 1.0f), s).token == 42);
  // NaN everywhere and tokens outside the vocabulary: some token of it, no crash.
  s.tokens = {-5, 1000000};
  s.repetition_penalty = 2;
  int token = run(pool, std::vector<float>(70, NAN), s, -1, 5).token;
  ES_CHECK(token >= 0 && token < 70);
}

void check_isa(cpu::Isa isa) {
  check_random(isa, false);
  check_random(isa, true);
  check_masks(isa);
  check_scores(isa);
  check_distribution(isa);
  check_rows(isa);
  check_edges(isa);
}

}  // namespace

int main() { return test::for_each_isa(check_isa); }
