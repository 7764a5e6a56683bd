#include "cuda/graphs.h"

#include <algorithm>

namespace edgeshift::cuda {
namespace {

void destroy(cudaGraphExec_t exec) {
  if (exec) cudaGraphExecDestroy(exec);
}

}  // namespace

void StepGraphs::clear() {
  for (auto& [key, entry] : entries_) destroy(entry.exec);
  entries_.clear();
}

// Shapes that were seen once only take a place too, but a place without a graph.
void StepGraphs::make_room() {
  if (entries_.size() < size_t(kMaxGraphs)) return;
  auto oldest = std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
    return a.second.last_use < b.second.last_use;
  });
  destroy(oldest->second.exec);
  entries_.erase(oldest);
}

Status StepGraphs::capture(Entry& entry, cudaStream_t stream, const std::function<Status()>& step) {
  ES_CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const Status launched = step();
  cudaGraph_t graph = nullptr;
  const Status ended = to_status(cudaStreamEndCapture(stream, &graph), "capturing a step");
  Status status = launched.ok() ? ended : launched;
  if (status.ok()) status = to_status(cudaGraphInstantiate(&entry.exec, graph, 0), "a step's graph");
  if (graph) cudaGraphDestroy(graph);
  return status;
}

Status StepGraphs::run(StepShape shape, cudaStream_t stream, const std::function<Status()>& step) {
  const uint64_t key = uint64_t(shape.sequences) << 32 | uint32_t(shape.splits) << 1 | uint32_t(shape.samples);
  auto found = entries_.find(key);
  if (found == entries_.end()) {
    make_room();
    entries_[key].last_use = ++uses_;
    return step();
  }
  Entry& entry = found->second;
  entry.last_use = ++uses_;
  // Without memory for a graph the step runs without one.
  if (!entry.exec && !capture(entry, stream, step).ok()) return step();
  return to_status(cudaGraphLaunch(entry.exec, stream), "a step's graph");
}

}  // namespace edgeshift::cuda
