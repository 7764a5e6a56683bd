// CUDA's part of model/backend.h in builds without it.
#ifndef EDGESHIFT_CUDA

#include "model/backend.h"

namespace edgeshift {

std::vector<CudaDevice> cuda_devices() { return {}; }

namespace {

Status absent() { return Status(Code::unsupported, "this build has no CUDA backend: npm run build:cuda makes one"); }

}  // namespace

Result<size_t> cuda_used_bytes(int) { return absent(); }

Result<std::unique_ptr<Backend>> open_cuda(int, size_t, size_t, size_t) { return absent(); }

}  // namespace edgeshift

#endif
