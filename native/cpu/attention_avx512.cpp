#if defined(__x86_64__)

#include "cpu/attention_simd.h"

namespace edgeshift::cpu {

extern const AttentionKernels attention_avx512;
const AttentionKernels attention_avx512 = attention_kernels<Avx512>();

}  // namespace edgeshift::cpu

#endif
