// CUDA errors as Status.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "core/status.h"

namespace edgeshift::cuda {

// Status of a CUDA call; `place` names the caller. Out of memory keeps its own code and clears the runtime's last error.
inline Status to_status(cudaError_t error, const char* place) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  Code code = error == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::device_failed;
  return {code, std::string(place) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error)};
}

}  // namespace edgeshift::cuda

// Returns the Status of the CUDA call `expr` from the enclosing function unless it succeeded.
#define ES_CUDA_RETURN_IF_ERROR(expr) ES_RETURN_IF_ERROR(::edgeshift::cuda::to_status((expr), #expr))
