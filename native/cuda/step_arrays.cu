#include "cuda/step_arrays.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/small_copy.h"

namespace edgeshift::cuda {
namespace {

constexpr size_t kTaskWords = sizeof(SampleTask) / sizeof(int32_t);
constexpr size_t kUsualBlocks = 64;  // of a sequence
constexpr size_t kUsualBiases = 256;

bool has_penalties(const SamplingState& s) {
  return s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0;
}

SampleTask task_of(const SamplingState& s, int slot, int target, int top) {
  SampleTask task;
  task.slot = slot;
  task.target = target;
  task.top = top;
  if (target >= 0) return task;
  task.top_k = s.top_k;
  task.temperature = s.temperature;
  task.top_p = s.top_p;
  task.log_min_p = s.min_p > 0 ? std::log(s.min_p) : -INFINITY;
  task.repetition_penalty = s.repetition_penalty;
  task.presence_penalty = s.presence_penalty;
  task.frequency_penalty = s.frequency_penalty;
  task.key = draw_key(s.seed, s.tokens.size());
  task.penalties = has_penalties(s);
  return task;
}

}  // namespace

Status StepArrays::open(const LoadOptions& options) {
  const size_t slots = size_t(options.max_slots);
  Words usual = {};
  usual[kTokens] = usual[kHistory] = size_t(options.max_batch_tokens);
  usual[kStarts] = usual[kBlockStarts] = slots + 1;
  usual[kFirstPositions] = usual[kRopeSlots] = usual[kRows] = slots;
  usual[kTasks] = slots * kTaskWords;
  usual[kBiasTokens] = usual[kBiasValues] = kUsualBiases;
  usual[kBlocks] = slots * kUsualBlocks;
  return fit(usual);
}

Status StepArrays::fit(const Words& wanted) {
  bool fits = true;
  for (int r = 0; r < kRegions; ++r) fits = fits && wanted[r] <= room_[r];
  if (fits) return {};
  size_t words = 0;
  for (int r = 0; r < kRegions; ++r) {
    if (wanted[r] > room_[r]) room_[r] = room_[r] == 0 ? wanted[r] : wanted[r] + wanted[r] / 2;
    place_[r] = words;
    words += (room_[r] + 3) / 4 * 4;
  }
  ++version_;
  Status status = memory_.allocate(words * sizeof(int32_t));
  if (!status.ok()) room_ = {};
  return status;
}

void StepArrays::collect(const StepBatch& batch, const SlotTable& slots, std::span<const int> fresh) {
  tokens_ = batch.tokens;
  rope_slots_.clear();
  for (size_t i = 0; i < batch.slots.size(); ++i) {
    const int slot = batch.slots[i];
    rope_slots_.push_back(slots[slot].ropes.empty() ? -1 : slot);
    for (int32_t t = batch.seq_starts[i]; t < batch.seq_starts[i + 1]; ++t) {
      if (tokens_[size_t(t)] >= 0) continue;
      // Sampled tokens are known to the device only.
      const int32_t last = slots[slot].state.tokens.back();
      tokens_[size_t(t)] = last >= 0 ? last : -1 - slot;
    }
  }
  tasks_.clear(), bias_tokens_.clear(), bias_values_.clear(), history_.clear();
  for (size_t r = 0; r < batch.row_tokens.size(); ++r) {
    const int slot = batch.slots[size_t(batch.row_seqs[r])];
    const SamplingState& s = slots[slot].state;
    SampleTask task = task_of(s, slot, batch.row_targets[r], batch.row_top[r]);
    if (!batch.row_masks.empty()) task.mask = batch.row_masks[r];
    task.bias_begin = int(bias_tokens_.size());
    if (task.target < 0) {
      bias_tokens_.insert(bias_tokens_.end(), s.bias_tokens.begin(), s.bias_tokens.end());
      bias_values_.insert(bias_values_.end(), s.bias_values.begin(), s.bias_values.end());
      const bool masked = int64_t(s.tokens.size()) - s.prompt_length < s.min_tokens;
      if (masked) bias_tokens_.insert(bias_tokens_.end(), s.stop_tokens.begin(), s.stop_tokens.end());
      bias_values_.resize(bias_tokens_.size(), -INFINITY);
    }
    task.bias_end = int(bias_tokens_.size());
    tasks_.push_back(task);
  }
  for (int slot : fresh) history_.insert(history_.end(), slots[slot].state.tokens.begin(), slots[slot].state.tokens.end());
}

Status StepArrays::upload(const StepBatch& batch, const SlotTable& slots, std::span<const int> fresh, Flight& flight,
                          const Launch& on) {
  collect(batch, slots, fresh);
  const std::pair<const void*, size_t> sources[kRegions] = {
      {tokens_.data(), tokens_.size()},
      {batch.seq_starts.data(), batch.seq_starts.size()},
      {batch.first_positions.data(), batch.first_positions.size()},
      {batch.block_starts.data(), batch.block_starts.size()},
      {rope_slots_.data(), rope_slots_.size()},
      {tasks_.data(), tasks_.size() * kTaskWords},
      {batch.row_tokens.data(), batch.row_tokens.size()},
      {bias_tokens_.data(), bias_tokens_.size()},
      {bias_values_.data(), bias_values_.size()},
      {batch.blocks.data(), batch.blocks.size()},
      {history_.data(), history_.size()},
  };
  Words wanted;
  for (int r = 0; r < kRegions; ++r) wanted[r] = sources[r].second;
  ES_RETURN_IF_ERROR(fit(wanted));
  ES_RETURN_IF_ERROR(flight.upload.reserve(memory_.bytes()));
  int32_t* host = flight.upload.as<int32_t>();
  size_t end = 0;
  for (int r = 0; r < kRegions; ++r) {
    if (wanted[r] == 0) continue;
    std::memcpy(host + place_[r], sources[r].first, wanted[r] * sizeof(int32_t));
    end = place_[r] + wanted[r];
  }
  return small_copy(memory_.as<void>(), host, end * sizeof(int32_t), on);
}

SequenceBatch StepArrays::sequences(const StepBatch& batch) const {
  SequenceBatch out = sequence_batch(batch);
  out.starts = at<int32_t>(kStarts);
  out.first_positions = at<int32_t>(kFirstPositions);
  out.block_starts = at<int32_t>(kBlockStarts);
  out.blocks = at<uint32_t>(kBlocks);
  return out;
}

}  // namespace edgeshift::cuda
