// Choice of a kernel set by instruction set.
#pragma once

#include "cpu/isa.h"

namespace edgeshift::cpu {

// On other processors than x86-64 the AVX sets do not exist, and detect_isa() never asks for them.
#if defined(__x86_64__)
#define ES_KERNELS(isa, name) \
  ((isa) == ::edgeshift::cpu::Isa::avx512 ? name##_avx512 : (isa) == ::edgeshift::cpu::Isa::avx2 ? name##_avx2 : name##_scalar)
#else
#define ES_KERNELS(isa, name) ((void)(isa), name##_scalar)
#endif

}  // namespace edgeshift::cpu
