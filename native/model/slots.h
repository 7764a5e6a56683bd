// The sampling slots of a resident model and what every backend does with a batch before and after its arithmetic.
#pragma once

#include <vector>

#include "model/backend.h"
#include "model/spec_check.h"
#include "ops/kv_layout.h"

namespace edgeshift {

struct Slot {
  bool set = false;
  SamplingState state;
  std::vector<RopeTable> ropes;  // empty = the model's
};

class SlotTable {
 public:
  SlotTable(const ModelSpec& spec, const LoadOptions& options) : vocab_(spec.vocab), ropes_(spec.ropes), slots_(size_t(options.max_slots)) {}

  const Slot& operator[](int slot) const { return slots_[size_t(slot)]; }

  // invalid_argument for ids outside the vocabulary, lengths that do not agree, and tables of other sizes than the model's.
  Status set(int slot, SamplingState state, std::vector<RopeTable> ropes);

  // check_batch(), and that every slot is set and has a token where the batch says -1.
  Status check(const StepBatch& batch, const BatchLimits& limits) const;

  // The batch's tokens, -1 replaced by the slot's last one.
  void resolve(const StepBatch& batch, std::vector<int32_t>& tokens) const;

  // The states of rows [begin, begin + count); rows that are only scored get a neutral one.
  std::vector<const SamplingState*> states(const StepBatch& batch, int begin, int count) const;

  // Appends the sampled tokens. Only when every row has succeeded: a failed step leaves the slots as they were.
  void append(const StepBatch& batch, const std::vector<SampleRow>& rows);

 private:
  const int vocab_;
  const std::vector<RopeTable> ropes_;
  const SamplingState unsampled_;
  std::vector<Slot> slots_;
};

// The batch's sequences, pointing into it.
SequenceBatch sequence_batch(const StepBatch& batch);

}  // namespace edgeshift
