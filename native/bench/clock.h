// Wall clock of the benchmarks.
#pragma once

#include <chrono>

namespace edgeshift::bench {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace edgeshift::bench
