// CUDA's part of model/backend.h in builds without it.
#ifndef EDGESHIFT_CUDA

#include "model/backend.h"

namespace edgeshift {

std::vector<CudaDevice> cuda_devices() { return {}; }

Result<std::unique_ptr<Backend>> open_cuda(int, size_t, size_t, size_t) {
  return Status(Code::unsupported, "this build has no CUDA backend: npm run build:cuda makes one");
}

}  // namespace edgeshift

#endif
