// Runs a test on every instruction set of this machine.
#pragma once

#include <cstdio>

#include "cpu/isa.h"
#include "test/check.h"

namespace edgeshift::test {

// The test program's exit status; says which sets ran and where failures happened.
template <class Check>
int for_each_isa(const Check& check) {
  for (cpu::Isa isa : {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (isa > cpu::detect_isa()) {
      std::printf("%s: not on this machine\n", cpu::isa_name(isa));
      continue;
    }
    int before = failures;
    check(isa);
    std::printf("%s: %s\n", cpu::isa_name(isa), failures == before ? "ok" : "FAILED");
  }
  return failures ? 1 : 0;
}

}  // namespace edgeshift::test
