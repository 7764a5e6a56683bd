#include "cuda/small_copy.h"

#include <algorithm>
#include <cstdint>

namespace edgeshift::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMaxBlocks = 64;

// 16 bytes a thread: over PCIe the round trip decides, so that all of them are to be under way at once. Nothing is read
// through L1: the host has written since the last copy.
__global__ void copy_kernel(uint4* to, const uint4* from, size_t quads, size_t words) {
  const size_t first = blockIdx.x * size_t(blockDim.x) + threadIdx.x, stride = size_t(gridDim.x) * blockDim.x;
  for (size_t i = first; i < quads; i += stride) to[i] = __ldcv(from + i);
  const auto* rest = reinterpret_cast<const uint32_t*>(from);
  for (size_t i = quads * 4 + first; i < words; i += stride) reinterpret_cast<uint32_t*>(to)[i] = __ldcv(rest + i);
}

}  // namespace

Status small_copy(void* to, const void* from, size_t bytes, const Launch& on) {
  if (bytes == 0) return {};
  const size_t blocks = std::clamp<size_t>((bytes / 16 + kThreads - 1) / kThreads, 1, kMaxBlocks);
  return launch(on, copy_kernel, dim3(unsigned(blocks)), kThreads, 0, static_cast<uint4*>(to), static_cast<const uint4*>(from), bytes / 16,
                bytes / 4);
}

}  // namespace edgeshift::cuda
