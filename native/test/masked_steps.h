// Steps whose masks follow them, the same checks for every backend.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "test/random.h"
#include "test/random_sampling.h"
#include "test/tiny_model.h"

namespace edgeshift::test {

using Mask = std::vector<uint32_t>;  // empty = none

// The mask of a row of run_masked's step.
using MaskOf = std::function<Mask(int step, int row)>;

inline constexpr int kMaskedSteps = 12, kMaskedRows = 3;

inline Mask only(int vocab, int token) {
  Mask mask(size_t(mask_words(vocab)));
  mask[size_t(token / 32)] = 1u << token % 32;
  return mask;
}
inline Mask everything(int vocab) { return Mask(size_t(mask_words(vocab)), ~0u); }

// Any of some masks for every other row.
inline Mask any_mask(int vocab, int step, int row) {
  Random random(uint64_t(step * kMaskedRows + row));
  return random.below(2) ? random_mask(random, vocab) : Mask();
}

inline void expect_refused(const Status& status, const char* part, int line) {
  if (status.code() == Code::invalid_argument && status.message().find(part) != std::string::npos) return;
  report(__FILE__, line, "got: " + status.message() + "\n  wanted: " + part);
}

inline void start_three(Model& model, float temperature) {
  for (int i = 0; i < kMaskedRows; ++i) {
    SamplingState state;
    state.temperature = temperature;
    state.repetition_penalty = i == 1 ? 1.2f : 1.0f;
    state.seed = uint64_t(i) + 5;
    state.tokens = {i + 1, i + 2, i + 3};
    state.prompt_length = 3;
    ES_CHECK(model.set_slot(i, state).ok());
  }
}

// Step 0: three prompts of three tokens. From then on a token of each, which the step before sampled.
inline StepBatch three_sequences(const Model& model, int step) {
  const uint32_t unit = uint32_t(model.block_bytes() / kKvUnitBytes);
  StepBatch b;
  b.seq_starts = b.block_starts = {0};
  for (int i = 0; i < kMaskedRows; ++i) {
    if (step == 0) b.tokens.insert(b.tokens.end(), {i + 1, i + 2, i + 3});
    else b.tokens.push_back(-1);
    b.seq_starts.push_back(int32_t(b.tokens.size()));
    b.first_positions.push_back(step == 0 ? 0 : 2 + step);
    b.slots.push_back(i);
    b.blocks.push_back(uint32_t(i) * unit);
    b.block_starts.push_back(int32_t(b.blocks.size()));
    b.row_tokens.push_back(int32_t(b.tokens.size()) - 1);
    b.row_seqs.push_back(i);
    b.row_targets.push_back(-1);
    b.row_top.push_back(0);
  }
  return b;
}

// Names the masks in the batch and puts them one behind the other.
inline Mask name_masks(StepBatch& b, const std::vector<Mask>& of_rows) {
  Mask all;
  int32_t count = 0;
  for (const Mask& mask : of_rows) {
    b.row_masks.push_back(mask.empty() ? -1 : count++);
    all.insert(all.end(), mask.begin(), mask.end());
  }
  return all;
}

inline std::unique_ptr<PendingStep> begun(Model& model, const StepBatch& batch) {
  auto pending = model.begin(batch);
  if (pending.ok()) return std::move(pending.value());
  report(__FILE__, __LINE__, pending.status().message());
  return nullptr;
}

inline StepResult finished(PendingStep& pending) {
  StepResult result;
  const Status status = pending.wait(result);
  if (!status.ok()) report(__FILE__, __LINE__, status.message());
  return result;
}

// Three sequences with two steps under way at a time: their tokens, step by step.
inline std::vector<int32_t> run_masked(Backend& backend, const Net& net, float temperature, const MaskOf& mask_of) {
  std::vector<int32_t> tokens;
  auto model = load(backend, net, net.sources(), Precision::fp16);
  if (!model) return tokens;
  start_three(*model, temperature);
  std::unique_ptr<PendingStep> before;
  auto settle = [&] {
    for (const SampleRow& row : finished(*before).rows) tokens.push_back(row.token);
  };
  for (int step = 0; step < kMaskedSteps; ++step) {
    StepBatch b = three_sequences(*model, step);
    std::vector<Mask> of_rows;
    for (int row = 0; row < kMaskedRows; ++row) of_rows.push_back(mask_of(step, row));
    const Mask masks = name_masks(b, of_rows);
    auto pending = begun(*model, b);
    if (!pending) return tokens;
    if (!masks.empty()) {
      ES_CHECK(!pending->ready());
      const Status status = pending->give_masks(masks);
      if (!status.ok()) report(__FILE__, __LINE__, status.message());
    }
    if (before) settle();
    before = std::move(pending);
  }
  settle();
  return tokens;
}

// Masks that allow everything change nothing, whether every row has one, or every other step, or one row of each; a row whose
// mask has one token gives that, and the others what they would give without.
inline void masks_decide_what_is_sampled(Backend& backend, const Net& net) {
  const int vocab = net.spec.vocab;
  for (float temperature : {0.0f, 0.8f}) {
    const std::vector<int32_t> plain = run_masked(backend, net, temperature, [](int, int) { return Mask(); });
    ES_CHECK(plain.size() == size_t(kMaskedSteps * kMaskedRows));
    const MaskOf neutral[] = {
        [&](int, int) { return everything(vocab); },
        [&](int step, int) { return step % 2 ? everything(vocab) : Mask(); },
        [&](int step, int row) { return step % kMaskedRows == row ? everything(vocab) : Mask(); },
    };
    for (const MaskOf& mask_of : neutral) ES_CHECK(run_masked(backend, net, temperature, mask_of) == plain);
    const std::vector<int32_t> led = run_masked(backend, net, temperature, [&](int step, int row) {
      return row == 1 ? only(vocab, step * 7 % vocab) : Mask();
    });
    ES_CHECK(led.size() == plain.size());
    for (size_t i = 0; i < led.size() && i < plain.size(); ++i) {
      const int step = int(i) / kMaskedRows;
      ES_CHECK(led[i] == (i % kMaskedRows == 1 ? step * 7 % vocab : plain[i]));
    }
  }
}

// What a masked step sampled is what the next one continues from.
inline void masked_tokens_are_continued(Backend& backend, const Net& net) {
  auto model = load(backend, net, net.sources(), Precision::fp16);
  if (!model) return;
  start_three(*model, 0);
  StepBatch b = three_sequences(*model, 0);
  const Mask masks = name_masks(b, {only(net.spec.vocab, 40), only(net.spec.vocab, 41), only(net.spec.vocab, 42)});
  auto pending = begun(*model, b);
  if (!pending) return;
  ES_CHECK(pending->give_masks(masks).ok());
  StepResult implicit, given;
  StepBatch next = three_sequences(*model, 1);
  ES_CHECK(model->step(next, implicit).ok());
  finished(*pending);
  next.tokens = {40, 41, 42};
  ES_CHECK(model->step(next, given).ok());
  for (size_t i = 0; i < given.rows.size() && i < implicit.rows.size(); ++i) {
    if (i == 1) continue;  // its penalty knows one token more
    ES_CHECK(given.rows[i].token == implicit.rows[i].token && given.rows[i].logprob == implicit.rows[i].logprob);
  }
}

// More rows than go through the head at a time, the masked one last.
inline void masks_find_their_rows(Backend& backend, const Net& net) {
  auto model = load(backend, net, net.sources(), Precision::fp16);
  if (!model) return;
  start_three(*model, 0);
  StepBatch b = scoring_batch(*model, net.spec.vocab, {1, 2, 3}, 0);
  StepResult scored;
  ES_CHECK(model->step(b, scored).ok());
  b.row_tokens.push_back(2), b.row_seqs.push_back(0), b.row_targets.push_back(-1), b.row_top.push_back(0);
  b.row_masks.assign(b.row_tokens.size(), -1);
  b.row_masks.back() = 1;
  Mask masks = only(net.spec.vocab, 3);
  const Mask last = only(net.spec.vocab, 77);
  masks.insert(masks.end(), last.begin(), last.end());
  auto pending = begun(*model, b);
  if (!pending) return;
  ES_CHECK(pending->give_masks(masks).ok());
  const StepResult result = finished(*pending);
  ES_CHECK(result.rows.size() == scored.rows.size() + 1 && result.rows.back().token == 77);
  // Another number of rows may take other kernels.
  const auto near = [](const SampleRow& a, const SampleRow& b) { return std::abs(a.logprob - b.logprob) < 0.02f; };
  ES_CHECK(near(result.rows.back(), scored.rows[77]));
  for (size_t i = 0; i < scored.rows.size() && i < result.rows.size(); ++i) ES_CHECK(near(result.rows[i], scored.rows[i]));
}

// A step whose masks are wrong, or never come, has failed; what was there before it still is. Often enough that whatever such
// a step holds would run out.
inline void failed_masks_leave_no_trace(Backend& backend, const Net& net) {
  auto model = load(backend, net, net.sources(), Precision::fp16);
  if (!model) return;
  const std::vector<int32_t> expected = run_masked(backend, net, 0.8f, [](int, int) { return Mask(); });
  start_three(*model, 0.8f);
  std::vector<int32_t> tokens;
  for (int step = 0; step < kMaskedSteps; ++step) {
    StepBatch b = three_sequences(*model, step);
    const Mask masks = name_masks(b, {everything(net.spec.vocab), {}, everything(net.spec.vocab)});
    StepResult result;
    expect_refused(model->step(b, result), "begin()", __LINE__);
    begun(*model, b);
    auto unmasked = begun(*model, b);
    expect_refused(unmasked->wait(result), "never came", __LINE__);
    auto refused = begun(*model, b);
    expect_refused(refused->give_masks(std::span(masks).subspan(1)), "words", __LINE__);
    expect_refused(refused->wait(result), "words", __LINE__);
    auto late = begun(*model, b), right = begun(*model, b);
    expect_refused(late->give_masks(masks), "another step", __LINE__);
    ES_CHECK(right->give_masks(masks).ok());
    expect_refused(right->give_masks(masks), "no masks", __LINE__);
    for (const SampleRow& row : finished(*right).rows) tokens.push_back(row.token);
  }
  ES_CHECK(tokens == expected);
  start_three(*model, 0);
  auto plain = begun(*model, three_sequences(*model, 0));
  expect_refused(plain->give_masks({}), "no masks", __LINE__);
  finished(*plain);
}

// All of them.
inline void takes_masks(Backend& backend) {
  const Net net = make_net({.tied = false, .head_dim = 64, .rotary = 64});
  masks_decide_what_is_sampled(backend, net);
  masked_tokens_are_continued(backend, net);
  masks_find_their_rows(backend, net);
  failed_masks_leave_no_trace(backend, net);
}

}  // namespace edgeshift::test
