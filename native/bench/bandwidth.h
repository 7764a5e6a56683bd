// The machine's read bandwidth: the limit of decoding.
#pragma once

#include <chrono>
#include <cstdint>

#include "cpu/thread_pool.h"

namespace edgeshift::bench {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Best of several sums over 512 MB, in GB/s: every thread streams through its own share.
inline double read_bandwidth(cpu::ThreadPool& pool) {
  constexpr int64_t kWords = int64_t(64) << 20;
  Result<cpu::Buffer> buffer = cpu::Buffer::allocate(kWords * 8);
  if (!buffer.ok()) return 0;
  uint64_t* words = static_cast<uint64_t*>(buffer.value().data());
  for (int64_t i = 0; i < kWords; i += 512) words[i] = uint64_t(i);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int run = 0; run < 6; ++run) {
    double start = seconds_now();
    pool.for_ranges(kWords, int64_t(1) << 19, [&](int64_t begin, int64_t end, int) {
      uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
      for (int64_t i = begin; i < end; i += 8) {
        a += words[i];
        b += words[i + 1];
        c += words[i + 2];
        d += words[i + 3];
        e += words[i + 4];
        f += words[i + 5];
        g += words[i + 6];
        h += words[i + 7];
      }
      sink += a + b + c + d + e + f + g + h;
    });
    double rate = double(kWords) * 8 / (seconds_now() - start) / 1e9;
    best = rate > best ? rate : best;
  }
  return best;
}

}  // namespace edgeshift::bench
