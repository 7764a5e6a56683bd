#if defined(__x86_64__)

#include "cpu/pointwise_simd.h"

namespace edgeshift::cpu {

extern const PointwiseKernels pointwise_avx2;
const PointwiseKernels pointwise_avx2 = Pointwise<Avx2>::kernels();

}  // namespace edgeshift::cpu

#endif
