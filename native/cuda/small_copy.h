// Small copies between device memory and page-locked host memory that do not use the copy engines.
#pragma once

#include <cstddef>

#include "cuda/launch.h"

namespace edgeshift::cuda {

// Copies `bytes`, a multiple of 4, by a kernel in the order of the stream; both pointers are 16-byte aligned and one of
// them may be page-locked host memory. A copy engine serves a model's load chunk by chunk and lets nothing past it: a
// step whose arrays went that way would wait for the whole load.
Status small_copy(void* to, const void* from, size_t bytes, const Launch& on);

}  // namespace edgeshift::cuda
