// Fork-join workers for the CPU kernels.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "core/status.h"
#include "cpu/buffer.h"
#include "cpu/isa.h"

namespace edgeshift::cpu {

// `threads` workers, the calling thread among them. One thread at a time may call; jobs never nest. Workers spin for some
// microseconds after a job, so that the next op of a step finds them awake, then park: an idle pool uses no CPU.
// The jobs of a step allocate nothing; those of a load may.
class ThreadPool {
 public:
  // `isa` is the instruction set of every op that runs on this pool (tests force lower ones). While `ahead`, which outlives this
  // pool, is in use, only half of the workers go on with a job: two threads of each pool would share every core.
  explicit ThreadPool(int threads, Isa isa = default_isa(), const ThreadPool* ahead = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  Isa isa() const { return isa_; }

  // Calls body(begin, end, worker) over disjoint ranges that cover [0, count), each of at most `chunk` indices.
  // Every worker starts on its own contiguous share, for streaming, and helps the others when it is through.
  // Runs on the caller alone when one chunk is enough. Returns when all is done; what a body threw first, on whichever
  // thread, is then thrown here, and ranges may have been left out.
  template <class Body>
  void for_ranges(int64_t count, int64_t chunk, const Body& body) {
    if (count <= 0) return;
    if (threads_ == 1 || count <= chunk) {
      body(int64_t(0), count, 0);
      return;
    }
    run(count, chunk, [](const void* context, int64_t begin, int64_t end, int worker) {
      (*static_cast<const Body*>(context))(begin, end, worker);
    }, &body);
  }

  // Whether a job for several workers is under way or began at `since` or later. From any thread.
  bool used(std::chrono::steady_clock::time_point since) const;

  // Memory for intermediate results of one op, kept until the next call asks for more. The content does not survive
  // the op. Ops call it. out_of_memory when it cannot grow.
  Result<void*> scratch(size_t bytes);

  // Memory of the caller's that scratch() gives where it is enough, until it is replaced; empty = none.
  void lend(std::span<std::byte> memory) { lent_ = memory; }

 private:
  using Function = void (*)(const void* context, int64_t begin, int64_t end, int worker);
  // A worker's share of the job; others advance `next` too when they help.
  struct alignas(128) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void run(int64_t count, int64_t chunk, Function function, const void* context);
  void work(int worker) noexcept;
  void worker_main(int worker);
  // Ends and joins the workers.
  void stop();
  bool join(uint32_t generation);
  // Whether a worker leaves the rest of a job to the others.
  bool gives_way(int worker) const;
  uint32_t next_generation(uint32_t seen);

  const int threads_;
  const Isa isa_;
  const ThreadPool* const ahead_;
  std::unique_ptr<Share[]> shares_;
  int64_t chunk_ = 0;
  Function function_ = nullptr;
  const void* context_ = nullptr;
  // What the job threw first.
  std::exception_ptr failure_;
  std::atomic<bool> failed_{false};
  // When the last job began, in ticks of steady_clock.
  std::atomic<std::chrono::steady_clock::rep> last_job_{std::numeric_limits<std::chrono::steady_clock::rep>::min()};
  // The job: generation in the high half, then kOpen, then the number of workers inside. Workers enter an open job and
  // are waited for; one that wakes late finds it closed and is not. So a busy core delays nobody.
  alignas(128) std::atomic<uint64_t> job_{0};
  // The same generation in a word of its own, to park on.
  std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
  alignas(128) std::atomic<int> parked_{0};
  Buffer scratch_;
  std::span<std::byte> lent_;
  std::vector<std::thread> workers_;
};

}  // namespace edgeshift::cpu
