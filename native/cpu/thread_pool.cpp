#include "cpu/thread_pool.h"

#include <chrono>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edgeshift::cpu {

namespace {

constexpr uint64_t kOpen = uint64_t(1) << 31;
constexpr uint64_t kInside = kOpen - 1;
// Longer than what lies between two ops of a step, shorter than what anyone would notice as CPU use.
constexpr auto kSpinTime = std::chrono::microseconds(60);
// Longer than what lies between two steps of a stream: a pool counts as used between them.
constexpr auto kStillUsed = std::chrono::milliseconds(20);

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Waits in user space until `ready` holds; after a while lets other threads of the core run.
template <class Ready>
void spin_until(const Ready& ready) {
  for (int i = 0; !ready(); ++i) {
    if (i < 4096) pause();
    else std::this_thread::yield();
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads, Isa isa, const ThreadPool* ahead)
    : threads_(threads < 1 ? 1 : threads), isa_(isa < detect_isa() ? isa : detect_isa()), ahead_(ahead), shares_(new Share[size_t(threads_)]) {
  workers_.reserve(size_t(threads_ - 1));
  try {
    for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { worker_main(i); });
  } catch (...) {
    // No memory or no more threads: those that run have to end before they are forgotten.
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

Result<void*> ThreadPool::scratch(size_t bytes) {
  if (bytes <= lent_.size()) return static_cast<void*>(lent_.data());
  if (bytes <= scratch_.bytes()) return scratch_.data();
  Result<Buffer> larger = Buffer::allocate(bytes);
  if (!larger.ok()) return larger.status();
  scratch_ = std::move(larger.value());
  return scratch_.data();
}

void ThreadPool::run(int64_t count, int64_t chunk, Function function, const void* context) {
  last_job_.store(std::chrono::steady_clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  chunk_ = chunk;
  function_ = function;
  context_ = context;
  for (int i = 0; i < threads_; ++i) {
    shares_[size_t(i)].next.store(count * i / threads_, std::memory_order_relaxed);
    shares_[size_t(i)].end = count * (i + 1) / threads_;
  }
  uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  job_.store(uint64_t(generation) << 32 | kOpen, std::memory_order_release);
  generation_.store(generation);
  if (parked_.load() > 0) generation_.notify_all();
  work(0);
  job_.fetch_and(~kOpen, std::memory_order_acq_rel);
  spin_until([this] { return (job_.load(std::memory_order_acquire) & kInside) == 0; });
  if (failed_.exchange(false, std::memory_order_relaxed)) std::rethrow_exception(std::exchange(failure_, nullptr));
}

// Nothing may be thrown past a worker's own thread, nor past the caller while others are still in the job.
void ThreadPool::work(int worker) noexcept try {
  for (int i = 0; i < threads_; ++i) {
    Share& share = shares_[size_t((worker + i) % threads_)];
    // The plain load first: an exhausted share's line stays shared.
    while (share.next.load(std::memory_order_relaxed) < share.end) {
      if (gives_way(worker)) return;
      int64_t begin = share.next.fetch_add(chunk_, std::memory_order_relaxed);
      if (begin >= share.end) break;
      int64_t end = begin + chunk_ < share.end ? begin + chunk_ : share.end;
      function_(context_, begin, end, worker);
    }
  }
} catch (...) {
  if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
}

bool ThreadPool::gives_way(int worker) const {
  return ahead_ && worker >= (threads_ + 1) / 2 && ahead_->used(std::chrono::steady_clock::now() - kStillUsed);
}

bool ThreadPool::used(std::chrono::steady_clock::time_point since) const {
  if (job_.load(std::memory_order_relaxed) & (kOpen | kInside)) return true;
  return last_job_.load(std::memory_order_relaxed) >= since.time_since_epoch().count();
}

// Enters the job of this generation unless it is over.
bool ThreadPool::join(uint32_t generation) {
  uint64_t job = job_.load(std::memory_order_acquire);
  while (uint32_t(job >> 32) == generation && (job & kOpen)) {
    if (job_.compare_exchange_weak(job, job + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

// The generation after `seen`: spins, then parks.
uint32_t ThreadPool::next_generation(uint32_t seen) {
  auto give_up = std::chrono::steady_clock::now() + kSpinTime;
  for (int i = 0;; ++i) {
    uint32_t now = generation_.load(std::memory_order_acquire);
    if (now != seen) return now;
    if (i % 64 == 63 && std::chrono::steady_clock::now() > give_up) break;
    pause();
  }
  parked_.fetch_add(1);
  generation_.wait(seen);
  parked_.fetch_sub(1);
  return generation_.load(std::memory_order_acquire);
}

void ThreadPool::worker_main(int worker) {
  uint32_t seen = 0;
  while (true) {
    seen = next_generation(seen);
    if (stop_) return;
    if (!join(seen)) continue;
    work(worker);
    job_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace edgeshift::cpu
