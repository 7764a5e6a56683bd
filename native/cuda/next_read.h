// A hint from a kernel to the memory system about the kernel after it.
#pragma once

#include <cstddef>

namespace edgeshift::cuda {

// Memory that the next kernels will read first (16-byte aligned): a kernel asks for it when its own reads are all under way, so that
// the memory bus does not idle across the dependency.
struct NextRead {
  const void* data = nullptr;
  size_t bytes = 0;
};

}  // namespace edgeshift::cuda
