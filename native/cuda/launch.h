// Kernel launches with the attributes that decoding needs.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>

#include "cuda/check.h"

namespace edgeshift::cuda {

// What a launch needs to know of the device.
struct DeviceTraits {
  int index = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;    // most dynamic shared memory of a block
  bool dependent = false;  // programmatic dependent launch exists (sm_90 on)
  bool fast_products = false;  // tensor cores that outrun the other units (8.0, 9.0): arithmetic between products costs time
  bool hopper = false;     // compute capability 9.0, and this build has the kernels written for it alone
};

// Reads the traits of device `index`.
Result<DeviceTraits> device_traits(int index);

// Stream and traits that every op is given. `chain` launches programmatically dependent on the kernel before: every kernel of
// this library waits for it before it reads what that kernel wrote.
struct Launch {
  cudaStream_t stream = nullptr;
  DeviceTraits device;
  bool chain = false;
};

inline cudaLaunchAttribute cluster_dimension(dim3 cluster) {
  cudaLaunchAttribute dimension = {};
  dimension.id = cudaLaunchAttributeClusterDimension;
  dimension.val.clusterDim = {cluster.x, cluster.y, cluster.z};
  return dimension;
}

// Launches `kernel` in clusters of `cluster` blocks, of which `grid` has whole ones; allow_shared must have been called with
// `shared` before. Clusters need compute capability 9.0.
template <class... Params, class... Args>
Status launch_in_clusters(const Launch& on, dim3 cluster, void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = on.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (on.chain && on.device.dependent) {
    cudaLaunchAttribute& dependent = attributes[config.numAttrs++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster.x * cluster.y * cluster.z > 1) attributes[config.numAttrs++] = cluster_dimension(cluster);
  ES_CUDA_RETURN_IF_ERROR(cudaLaunchKernelEx(&config, kernel, Params(args)...));
  return {};
}

// Launches `kernel`; allow_shared must have been called with `shared` before.
template <class... Params, class... Args>
Status launch(const Launch& on, void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Args... args) {
  return launch_in_clusters(on, 1, kernel, grid, threads, shared, args...);
}

// How many clusters of a kernel each device runs at a time, asked of the driver once; one of these for each kernel and cluster size.
class ClustersAtOnce {
 public:
  template <class... Params>
  Status find(const DeviceTraits& device, void (*kernel)(Params...), int cluster, int threads, size_t shared, int& clusters) {
    const bool known = size_t(device.index) < known_.size();
    clusters = known ? known_[size_t(device.index)].load(std::memory_order_relaxed) : 0;
    if (clusters > 0) return {};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(cluster * device.multiprocessors));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    cudaLaunchAttribute dimension = cluster_dimension(cluster);
    config.attrs = &dimension;
    config.numAttrs = 1;
    ES_CUDA_RETURN_IF_ERROR(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    if (known) known_[size_t(device.index)].store(clusters, std::memory_order_relaxed);
    return {};
  }

 private:
  std::array<std::atomic<int>, 64> known_ = {};
};

// Raises the kernel's limit of dynamic shared memory when needed. Without that a block gets 48 KB in all, and what the kernel
// declares itself counts, up to some KB: so well before 48 KB of dynamic memory.
template <class... Params>
Status allow_shared(void (*kernel)(Params...), size_t bytes) {
  if (bytes <= 40 * 1024) return {};
  return to_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "shared memory");
}

}  // namespace edgeshift::cuda
