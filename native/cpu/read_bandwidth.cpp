#include "cpu/read_bandwidth.h"

#include <algorithm>
#include <chrono>

#include "cpu/buffer.h"

namespace edgeshift::cpu {

Result<double> read_bandwidth(ThreadPool& pool) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kWords = int64_t(64) << 20;
  constexpr int kRuns = 6;
  Result<Buffer> buffer = Buffer::allocate(kWords * 8);
  if (!buffer.ok()) return buffer.status();
  uint64_t* words = static_cast<uint64_t*>(buffer.value().data());
  for (int64_t i = 0; i < kWords; i += 512) words[i] = uint64_t(i);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const Clock::time_point start = Clock::now();
    pool.for_ranges(kWords, int64_t(1) << 19, [&](int64_t begin, int64_t end, int) {
      uint64_t sums[8] = {};
      for (int64_t i = begin; i < end; i += 8) {
        for (int lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
      }
      for (uint64_t sum : sums) sink += sum;
    });
    best = std::max(best, double(kWords * 8) / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

}  // namespace edgeshift::cpu
