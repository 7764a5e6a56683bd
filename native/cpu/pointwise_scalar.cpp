#include "cpu/pointwise_simd.h"

namespace edgeshift::cpu {

const PointwiseKernels pointwise_scalar = Pointwise<Scalar>::kernels();

}  // namespace edgeshift::cpu

