#include "model/slots.h"

#include <algorithm>

#include "core/text.h"

namespace edgeshift {

SequenceBatch sequence_batch(const StepBatch& batch) {
  SequenceBatch out;
  out.s = int(batch.slots.size());
  out.t = int(batch.tokens.size());
  out.starts = batch.seq_starts.data();
  out.first_positions = batch.first_positions.data();
  out.block_starts = batch.block_starts.data();
  out.blocks = batch.blocks.data();
  for (int i = 0; i < out.s; ++i) {
    const int count = out.starts[i + 1] - out.starts[i];
    out.max_count = std::max(out.max_count, count);
    out.max_context = std::max(out.max_context, out.first_positions[i] + count);
  }
  return out;
}

Status SlotTable::set(int slot, SamplingState state, std::vector<RopeTable> ropes) {
  if (slot < 0 || size_t(slot) >= slots_.size()) {
    return error(Code::invalid_argument, "slot ", slot, " is not below ", slots_.size());
  }
  for (const auto* ids : {&state.tokens, &state.bias_tokens, &state.stop_tokens}) {
    for (int32_t id : *ids) {
      if (id < 0 || id >= vocab_) return error(Code::invalid_argument, "token ", id, " is outside the vocabulary");
    }
  }
  if (state.bias_tokens.size() != state.bias_values.size() || state.prompt_length < 0 ||
      size_t(state.prompt_length) > state.tokens.size()) {
    return error(Code::invalid_argument, "the state's lengths do not agree");
  }
  const auto same_size = [](const RopeTable& a, const RopeTable& b) { return a.inv_freq.size() == b.inv_freq.size(); };
  if (!ropes.empty() && !std::ranges::equal(ropes, ropes_, same_size)) {
    return error(Code::invalid_argument, "the sequence's rotary tables are not of the model's sizes");
  }
  slots_[size_t(slot)] = {true, std::move(state), std::move(ropes)};
  return Status();
}

Status SlotTable::check(const StepBatch& batch, const BatchLimits& limits) const {
  ES_RETURN_IF_ERROR(check_batch(batch, limits));
  for (size_t i = 0; i < batch.slots.size(); ++i) {
    const Slot& slot = slots_[size_t(batch.slots[i])];
    if (!slot.set) return error(Code::invalid_argument, "slot ", batch.slots[i], " was never set");
    const auto first = batch.tokens.begin() + batch.seq_starts[i];
    const auto last = batch.tokens.begin() + batch.seq_starts[i + 1];
    if (slot.state.tokens.empty() && std::find(first, last, -1) != last) {
      return error(Code::invalid_argument, "slot ", batch.slots[i], " has no token to continue from");
    }
  }
  return Status();
}

void SlotTable::resolve(const StepBatch& batch, std::vector<int32_t>& tokens) const {
  tokens = batch.tokens;
  for (size_t i = 0; i < batch.slots.size(); ++i) {
    for (int32_t t = batch.seq_starts[i]; t < batch.seq_starts[i + 1]; ++t) {
      if (tokens[size_t(t)] == -1) tokens[size_t(t)] = slots_[size_t(batch.slots[i])].state.tokens.back();
    }
  }
}

std::vector<const SamplingState*> SlotTable::states(const StepBatch& batch, int begin, int count) const {
  std::vector<const SamplingState*> out;
  for (int r = begin; r < begin + count; ++r) {
    const int32_t slot = batch.slots[size_t(batch.row_seqs[size_t(r)])];
    out.push_back(batch.row_targets[size_t(r)] == -1 ? &slots_[size_t(slot)].state : &unsampled_);
  }
  return out;
}

void SlotTable::append(const StepBatch& batch, const std::vector<SampleRow>& rows) {
  for (size_t r = 0; r < rows.size(); ++r) {
    if (batch.row_targets[r] != -1) continue;
    slots_[size_t(batch.slots[size_t(batch.row_seqs[r])])].state.tokens.push_back(rows[r].token);
  }
}

}  // namespace edgeshift
