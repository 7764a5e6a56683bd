// CUDA graphs of steps that come again and again.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "cuda/launch.h"

namespace edgeshift::cuda {

// What a decode step's kernels and their grids depend on.
struct StepShape {
  int sequences = 0;
  int splits = 0;
  bool samples = true;  // false: it ends behind the head
};

// At most kMaxGraphs graphs, the one longest unused goes first. A shape is captured when it comes the second time: a
// capture costs more than a step whose kernels are launched one by one.
class StepGraphs {
 public:
  static constexpr int kMaxGraphs = 32;

  StepGraphs() = default;
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;
  ~StepGraphs() { clear(); }

  // Enqueues `step`, which only launches kernels on `stream`, by its graph or directly.
  Status run(StepShape shape, cudaStream_t stream, const std::function<Status()>& step);

  // Forgets every graph: an address that they hold has changed.
  void clear();

 private:
  struct Entry {
    cudaGraphExec_t exec = nullptr;
    uint64_t last_use = 0;
  };

  Status capture(Entry& entry, cudaStream_t stream, const std::function<Status()>& step);
  void make_room();

  std::unordered_map<uint64_t, Entry> entries_;
  uint64_t uses_ = 0;
};

}  // namespace edgeshift::cuda
