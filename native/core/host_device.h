// Functions that a CUDA kernel may call too.
#pragma once

#ifdef __CUDACC__
#define ES_HOST_DEVICE __host__ __device__
#else
#define ES_HOST_DEVICE
#endif
