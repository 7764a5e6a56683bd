#if defined(__x86_64__)

#include "cpu/sample_simd.h"

namespace edgeshift::cpu {

extern const SampleKernels sample_avx2;
const SampleKernels sample_avx2 = Sample<Avx2>::kernels();

}  // namespace edgeshift::cpu

#endif
