// A variant's weights in device memory.
#pragma once

#include <vector>

#include "cpu/thread_pool.h"
#include "cuda/staging.h"
#include "cuda/transformer.h"
#include "model/backend.h"

namespace edgeshift::cuda {

// Owns what `weights` points to.
struct DeviceWeights {
  TransformerWeights weights;
  std::vector<Buffer> buffers;
  RoundingSums rounding;
  size_t packed_bytes = 0;  // of the first buffer: all matrices
  Origin origin = Origin::files;

  size_t bytes() const;
};

// The head size that the kernels compute with: 64, 96, 128 or 256, at least `head_dim`; 0 when it is larger.
int kernel_head_dim(int head_dim);

// Reads the sources on `pool` and packs them on the device: formats of big models go there as they are, through `staging`,
// others are converted a bounded piece at a time per thread. Or reads the matrices from options.packed where that is usable.
// Everything is freed on error.
Result<DeviceWeights> load_device_weights(cpu::ThreadPool& pool, const ModelSpec& spec,
                                          const std::vector<WeightSource>& sources, const LoadOptions& options,
                                          Staging& staging, int device, cudaStream_t stream);

}  // namespace edgeshift::cuda
