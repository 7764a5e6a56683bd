#if defined(__x86_64__)

#include "cpu/attention_simd.h"

namespace edgeshift::cpu {

extern const AttentionKernels attention_avx512;
const AttentionKernels attention_avx512 = Attention<Avx512>::kernels();

}  // namespace edgeshift::cpu

#endif
