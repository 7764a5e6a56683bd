#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace edgeshift::cpu {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512-vnni";
  }
  return "unknown";
}

#if defined(__x86_64__)

namespace {

// The register state that the operating system saves (XCR0).
unsigned saved_state() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

constexpr bool has(unsigned word, unsigned bit) { return word >> bit & 1u; }

}  // namespace

Isa detect_isa() {
  unsigned a = 0, b = 0, c1 = 0, d = 0, b7 = 0, c7 = 0;
  if (!__get_cpuid(1, &a, &b, &c1, &d)) return Isa::scalar;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return Isa::scalar;
  bool saves = has(c1, 27);  // OSXSAVE
  bool avx2 = saves && (saved_state() & 0x6u) == 0x6u && has(c1, 28) && has(c1, 12) && has(c1, 29) && has(b7, 5) && has(b7, 8);
  if (!avx2) return Isa::scalar;
  bool avx512 = (saved_state() & 0xe6u) == 0xe6u && has(b7, 16) && has(b7, 17) && has(b7, 30) && has(b7, 31) && has(c7, 11);
  return avx512 ? Isa::avx512 : Isa::avx2;
}

#else

Isa detect_isa() { return Isa::scalar; }

#endif

Isa default_isa() {
  Isa best = detect_isa();
  const char* wish = std::getenv("EDGESHIFT_CPU_ISA");
  if (!wish) return best;
  if (!std::strcmp(wish, "scalar")) return Isa::scalar;
  if (!std::strcmp(wish, "avx2")) return std::min(best, Isa::avx2);
  return best;
}

}  // namespace edgeshift::cpu
