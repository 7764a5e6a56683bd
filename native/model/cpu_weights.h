// A variant's weights in the CPU's layout.
#pragma once

#include <vector>

#include "core/status.h"
#include "cpu/buffer.h"
#include "cpu/thread_pool.h"
#include "model/backend.h"
#include "model/weights.h"

namespace edgeshift {

// Owns all memory that the matrices and vectors point into.
struct CpuWeights : ModelWeights {
  cpu::Buffer matrices;
  size_t packed_bytes = 0;  // of `matrices`, from its start on
  Origin origin = Origin::files;

  size_t bytes() const;
};

// load_weights() into one allocation, or from options.packed where that is usable, in parallel on `pool`. Nothing is kept on
// error.
Result<CpuWeights> load_cpu_weights(cpu::ThreadPool& pool, const ModelSpec& spec,
                                    const std::vector<WeightSource>& sources, const LoadOptions& options);

}  // namespace edgeshift
