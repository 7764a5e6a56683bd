#if defined(__x86_64__)

#include "cpu/pointwise_simd.h"

namespace edgeshift::cpu {

extern const PointwiseKernels pointwise_avx512;
const PointwiseKernels pointwise_avx512 = Pointwise<Avx512>::kernels();

}  // namespace edgeshift::cpu

#endif
