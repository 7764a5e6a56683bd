#if defined(__x86_64__)

#include "cpu/attention_simd.h"

namespace edgeshift::cpu {

extern const AttentionKernels attention_avx2;
const AttentionKernels attention_avx2 = attention_kernels<Avx2>();

}  // namespace edgeshift::cpu

#endif
