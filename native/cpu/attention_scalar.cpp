#include "cpu/attention_simd.h"

namespace edgeshift::cpu {

const AttentionKernels attention_scalar = attention_kernels<Scalar>();

}  // namespace edgeshift::cpu

