#include "cpu/attention_simd.h"

namespace edgeshift::cpu {

const AttentionKernels attention_scalar = Attention<Scalar>::kernels();

}  // namespace edgeshift::cpu

