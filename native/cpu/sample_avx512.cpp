#if defined(__x86_64__)

#include "cpu/sample_simd.h"

namespace edgeshift::cpu {

extern const SampleKernels sample_avx512;
const SampleKernels sample_avx512 = Sample<Avx512>::kernels();

}  // namespace edgeshift::cpu

#endif
