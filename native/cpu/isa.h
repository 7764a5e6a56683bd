// The instruction set that kernels run with.
#pragma once

namespace edgeshift::cpu {

// avx2: AVX2, FMA, F16C. avx512: F, BW, DQ, VL and VNNI.
enum class Isa { scalar, avx2, avx512 };

// "scalar", "avx2", "avx512-vnni".
const char* isa_name(Isa isa);

// What the processor and the operating system support.
Isa detect_isa();

// detect_isa(), or less when the environment variable EDGESHIFT_CPU_ISA (scalar, avx2, avx512) asks for less.
Isa default_isa();

}  // namespace edgeshift::cpu
