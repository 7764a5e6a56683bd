// The card's read bandwidth: the limit of decoding.
#pragma once

#include "cuda/launch.h"

namespace edgeshift::cuda {

// Bytes per second: the median of several reads of 4 GB, or of half of what is free where that is less. out_of_memory.
Result<double> read_bandwidth(const Launch& on);

}  // namespace edgeshift::cuda
