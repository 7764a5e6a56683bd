// The decoder-only transformer on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "cpu/ops.h"
#include "cpu/thread_pool.h"
#include "model/backend.h"
#include "model/cpu_weights.h"
#include "model/cpu_workspace.h"
#include "model/slots.h"
#include "ops/kv_layout.h"

namespace edgeshift {

// The memory that all models' KV blocks are in.
struct KvArena {
  void* data = nullptr;
  size_t bytes = 0;
};

class CpuModel final : public Model {
 public:
  // `pool` and `arena` are the device's and outlive the model.
  CpuModel(cpu::ThreadPool& pool, KvArena arena, ModelSpec spec, const LoadOptions& options, CpuWeights weights,
           CpuWorkspace workspace);

  size_t weight_bytes() const override { return weights_.bytes(); }
  RoundingSums rounding() const override { return weights_.rounding; }
  size_t workspace_bytes() const override { return workspace_.memory.bytes(); }
  size_t block_bytes() const override { return kv_.block_bytes(); }
  Origin origin() const override { return weights_.origin; }
  size_t packed_bytes() const override { return weights_.packed_bytes; }
  Result<std::span<const uint8_t>> packed_piece(size_t offset, size_t bytes) override;
  Status set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes) override;
  Status step(const StepBatch& batch, StepResult& result) override;
  Result<std::unique_ptr<PendingStep>> begin(const StepBatch& batch) override;

 private:
  class MaskedStep;

  // What a step does before it samples, and that; both add to the result's time.
  Status compute(const StepBatch& batch, StepResult& result);
  Status choose(const StepBatch& batch, std::span<const uint32_t> masks, StepResult& result);
  Status forward(const StepBatch& batch);
  Status rope_tables(const StepBatch& batch, const SequenceBatch& sequences);
  Status attend(const SequenceBatch& batch, int layer, const float* delta);
  Status feed_forward(const SequenceBatch& batch, const ModelLayer& layer);
  Status rms_norm(const float* delta, const float* weight, int t);
  Status post_norm(const float* weight, int t);
  Status matmul(const float* x, const Stack& weight, const float* bias, float* y, int t);
  void cap_logits(int rows);
  Status logits_of(const int32_t* rows, int count);
  Status sample_rows(const StepBatch& batch, std::span<const uint32_t> masks, std::vector<SampleRow>& out);

  cpu::ThreadPool& pool_;
  const KvArena arena_;
  const ModelSpec spec_;
  const LoadOptions options_;
  const CpuWeights weights_;
  const CpuWorkspace workspace_;
  const KvLayout kv_;
  SlotTable slots_;
  std::vector<int32_t> tokens_;  // the batch's, -1 replaced
  uint64_t computed_ = 0;        // batches so far: the workspace holds the last one's
  std::vector<cpu::SequenceRope> sequence_ropes_;
};

}  // namespace edgeshift
