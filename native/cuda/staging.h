// From mapped files to the device through page-locked memory.
#pragma once

#include <array>

#include "cpu/thread_pool.h"
#include "cuda/flight.h"

namespace edgeshift::cuda {

// A few page-locked buffers that are filled by many threads while the copies from others are under way: a copy from
// pageable memory passes through one buffer of the driver's on one thread. One load uses it at a time.
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // Takes the buffers, once; out_of_memory.
  Status open();

  // Enqueues the copy of host bytes (any memory) to the device; they have been read when it returns. `pool` reads them.
  Status upload(cpu::ThreadPool& pool, void* to, const void* from, size_t bytes, cudaStream_t stream);

 private:
  static constexpr size_t kBytes = size_t(8) << 20;

  struct Stage {
    PinnedBuffer memory;
    cudaEvent_t copied = nullptr;
  };
  std::array<Stage, 4> stages_;
  size_t next_ = 0;
  bool open_ = false;
};

}  // namespace edgeshift::cuda
