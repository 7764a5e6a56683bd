// A step's arrays, behind one another: they reach the device in one copy.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "cuda/buffer.h"
#include "cuda/flight.h"
#include "cuda/sample.h"
#include "model/slots.h"

namespace edgeshift::cuda {

class StepArrays {
 public:
  // Takes memory for usual steps; larger ones take more when they come.
  Status open(const LoadOptions& options);

  // Writes a checked batch and starts its copy. `fresh`: slots whose counts start anew, their tokens go along.
  Status upload(const StepBatch& batch, const SlotTable& slots, std::span<const int> fresh, Flight& flight, const Launch& on);

  // Where the arrays lie on the device.
  SequenceBatch sequences(const StepBatch& batch) const;
  const int32_t* tokens() const { return at<int32_t>(kTokens); }  // below 0: of last_tokens (cuda/embed.h)
  const int32_t* rows() const { return at<int32_t>(kRows); }
  const SampleTask* tasks() const { return at<SampleTask>(kTasks); }
  const int32_t* bias_tokens() const { return at<int32_t>(kBiasTokens); }
  const float* bias_values() const { return at<float>(kBiasValues); }
  const int32_t* rope_slots() const { return at<int32_t>(kRopeSlots); }  // [s], -1 where the model's tables serve
  // Tokens of the fresh slots, one after another.
  const int32_t* history() const { return at<int32_t>(kHistory); }

  // Changes whenever the addresses do.
  int version() const { return version_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  enum Region {
    kTokens, kStarts, kFirstPositions, kBlockStarts, kRopeSlots, kTasks, kRows, kBiasTokens, kBiasValues, kBlocks, kHistory, kRegions
  };
  using Words = std::array<size_t, kRegions>;

  template <class T>
  const T* at(Region region) const {
    return reinterpret_cast<const T*>(memory_.as<int32_t>() + place_[region]);
  }
  Status fit(const Words& wanted);
  void collect(const StepBatch& batch, const SlotTable& slots, std::span<const int> fresh);

  Buffer memory_;
  Words room_ = {}, place_ = {};
  int version_ = 0;
  std::vector<int32_t> tokens_, rope_slots_, bias_tokens_, history_;
  std::vector<float> bias_values_;
  std::vector<SampleTask> tasks_;
};

}  // namespace edgeshift::cuda
