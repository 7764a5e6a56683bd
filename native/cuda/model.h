// The decoder-only transformer on a CUDA device.
#pragma once

#include <vector>

#include "cpu/thread_pool.h"
#include "cuda/load.h"
#include "cuda/transformer.h"
#include "model/backend.h"
#include "model/slots.h"

namespace edgeshift::cuda {

// Page-locked host memory. Move-only.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { cudaFreeHost(data_); }
  Status allocate(size_t bytes);
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// What all models of a device share; outlives them.
struct DeviceState {
  Launch on;
  Buffer arena;
  cpu::ThreadPool* samplers = nullptr;
};

// Logits come back to the host, which samples them as the CPU backend does: one rule for every device.
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
  Status set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes) override;
  Status step(const StepBatch& batch, StepResult& result) override;

 private:
  struct DeviceBatch {
    SequenceBatch sequences;
    const int32_t* tokens = nullptr;
    const int32_t* rows = nullptr;
  };

  Status upload(const StepBatch& batch, DeviceBatch& out);
  Status forward(const Forward& pass);
  Status sample_rows(const StepBatch& batch, const Forward& pass, const int32_t* rows, std::vector<SampleRow>& out);
  void cap_logits(int rows);

  const DeviceState& device_;
  const ModelSpec spec_;
  const LoadOptions options_;
  const KvLayout kv_;
  const int logit_rows_;
  DeviceWeights weights_;
  Workspace workspace_;
  Buffer batch_;
  PinnedBuffer logits_;  // float [logit_rows, vocab]
  SlotTable slots_;
  std::vector<int32_t> tokens_, words_;
};

}  // namespace edgeshift::cuda
