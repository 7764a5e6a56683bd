// The machine's read bandwidth: the limit of decoding.
#pragma once

#include "core/status.h"
#include "cpu/thread_pool.h"

namespace edgeshift::cpu {

// Bytes per second: the best of several sums over 512 MB, every thread streaming through its own share. out_of_memory.
Result<double> read_bandwidth(ThreadPool& pool);

}  // namespace edgeshift::cpu
