// The decoder-only transformer on a CUDA device.
#pragma once

#include <vector>

#include "cuda/flight.h"
#include "cuda/graphs.h"
#include "cuda/load.h"
#include "cuda/sample.h"
#include "cuda/step_arrays.h"
#include "cuda/step_masks.h"
#include "cuda/transformer.h"
#include "model/backend.h"
#include "model/slots.h"

namespace edgeshift::cuda {

// What all models of a device share; outlives them.
struct DeviceState {
  Launch on;
  Buffer arena;
};

// A step is one copy to the device, its kernels (as a graph when its shape comes again), and one copy back. Sampled tokens
// stay on the device as the next step's input, so that steps can be started ahead of their results. A step whose masks follow
// is enqueued in two parts: its forward pass, and its sampling when they come.
class CudaModel final : public Model {
 public:
  CudaModel(const DeviceState& device, ModelSpec spec, const LoadOptions& options, DeviceWeights weights);
  ~CudaModel() override;

  // Takes the workspace; out_of_memory.
  Status prepare();

  size_t weight_bytes() const override { return weights_.bytes(); }
  RoundingSums rounding() const override { return weights_.rounding; }
  size_t workspace_bytes() const override;
  size_t block_bytes() const override { return kv_.block_bytes(); }
  Origin origin() const override { return weights_.origin; }
  size_t packed_bytes() const override { return weights_.packed_bytes; }
  Result<std::span<const uint8_t>> packed_piece(size_t offset, size_t bytes) override;
  Status set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes) override;
  Status step(const StepBatch& batch, StepResult& result) override;
  Result<std::unique_ptr<PendingStep>> begin(const StepBatch& batch) override;

 private:
  class Pending;

  Status enqueue(const StepBatch& batch, Flight& flight);
  Status run(const StepBatch& batch);
  // All that a step does behind its masks.
  Status enqueue_masked(const StepBatch& batch, std::span<const uint32_t> masks, Flight& flight);
  // Brings the results to the host, and marks the step's end.
  Status finish(size_t rows, Flight& flight);
  // One token and one sampled row per sequence.
  Status decode(const Forward& pass);
  Status decode_head(const Forward& pass);
  Status forward(const Forward& pass);
  Status sample_rows(const Forward& pass, int total);
  Status count_fresh();
  Status set_ropes(int slot);
  Forward forward_of(const StepBatch& batch);
  SampleArgs sample_args(int first, int rows) const;
  int splits_for(const SequenceBatch& batch) const;

  const DeviceState& device_;
  const ModelSpec spec_;
  const LoadOptions options_;
  const KvLayout kv_;
  const int logit_rows_;
  DeviceWeights weights_;
  Workspace workspace_;
  StepArrays arrays_;
  StepMasks masks_;     // [max_slots]
  Buffer adjusted_;     // float [logit_rows, vocab]
  Buffer counts_;       // uint16 [max_slots, vocab]
  Buffer last_tokens_;  // int32 [max_slots]
  Buffer results_;      // SampleResult [rows], at least logit_rows
  Buffer ropes_;        // float [max_slots, rope_width]: tables of sequences' own
  const int rope_width_;
  bool own_ropes_ = false;  // whether a slot ever had any
  SlotTable slots_;
  std::vector<int> fresh_;  // slots whose counts start anew with the next step
  StepGraphs graphs_;
  int graphs_version_ = 0;
  Flights flights_;
  uint64_t begun_ = 0;  // steps so far: the arrays and the workspace are the last one's
  std::vector<uint8_t> piece_;  // of the image, for packed_piece
};

}  // namespace edgeshift::cuda
