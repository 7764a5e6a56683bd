// Kernel launches with the attributes that decoding needs.
#pragma once

#include <cuda_runtime.h>

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

// Launches `kernel`; allow_shared must have been called with `shared` before.
template <class... Params, class... Args>
Status launch(const Launch& on, void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Args... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = on.stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = on.chain && on.device.dependent ? 1 : 0;
  ES_CUDA_RETURN_IF_ERROR(cudaLaunchKernelEx(&config, kernel, Params(args)...));
  return {};
}

// Raises the kernel's limit of dynamic shared memory when needed. Without that a block gets 48 KB in all, and what the kernel
// declares itself counts, up to some KB: so well before 48 KB of dynamic memory.
template <class... Params>
Status allow_shared(void (*kernel)(Params...), size_t bytes) {
  if (bytes <= 40 * 1024) return {};
  return to_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "shared memory");
}

}  // namespace edgeshift::cuda
