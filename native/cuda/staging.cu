#include "cuda/staging.h"

#include <algorithm>
#include <cstring>

namespace edgeshift::cuda {
namespace {

// What a thread copies at a time.
constexpr int64_t kPiece = 256 << 10;

}  // namespace

Staging::~Staging() {
  for (Stage& stage : stages_) {
    if (stage.copied) cudaEventDestroy(stage.copied);
  }
}

Status Staging::open() {
  if (open_) return {};
  for (Stage& stage : stages_) {
    ES_RETURN_IF_ERROR(stage.memory.reserve(kBytes));
    if (!stage.copied) ES_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&stage.copied, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  open_ = true;
  return {};
}

Status Staging::upload(cpu::ThreadPool& pool, void* to, const void* from, size_t bytes, cudaStream_t stream) {
  for (size_t at = 0; at < bytes; at += kBytes) {
    Stage& stage = stages_[next_++ % stages_.size()];
    const size_t count = std::min(kBytes, bytes - at);
    const char* source = static_cast<const char*>(from) + at;
    char* memory = stage.memory.as<char>();
    ES_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(stage.copied));
    pool.for_ranges(int64_t(count), kPiece, [&](int64_t begin, int64_t end, int) { std::memcpy(memory + begin, source + begin, size_t(end - begin)); });
    ES_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(static_cast<char*>(to) + at, memory, count, cudaMemcpyHostToDevice, stream));
    ES_CUDA_RETURN_IF_ERROR(cudaEventRecord(stage.copied, stream));
  }
  return {};
}

}  // namespace edgeshift::cuda
