#include "cpu/sample_simd.h"

namespace edgeshift::cpu {

const SampleKernels sample_scalar = Sample<Scalar>::kernels();

}  // namespace edgeshift::cpu

