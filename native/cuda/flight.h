// The host's side of steps under way: page-locked memory that the device reads from and writes to, and events.
#pragma once

#include <condition_variable>
#include <mutex>
#include <utility>

#include "cuda/check.h"
#include "model/backend.h"

namespace edgeshift::cuda {

// Page-locked host memory. Move-only.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { cudaFreeHost(data_); }

  // Makes room for `bytes`, contents undefined; out_of_memory leaves it empty.
  Status reserve(size_t bytes) {
    if (bytes <= bytes_) return {};
    cudaFreeHost(std::exchange(data_, nullptr));
    bytes_ = 0;
    ES_CUDA_RETURN_IF_ERROR(cudaMallocHost(&data_, bytes));
    bytes_ = bytes;
    return {};
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

struct Flight {
  PinnedBuffer upload;   // int32, the step's arrays
  PinnedBuffer results;  // SampleResult
  PinnedBuffer masks;    // uint32, once a step has had some
  cudaEvent_t begin = nullptr, end = nullptr;
  bool busy = false;
};

// Flights are handed out by the thread that starts steps and given back by the one that waits for them.
class Flights {
 public:
  Flights() = default;
  Flights(const Flights&) = delete;
  Flights& operator=(const Flights&) = delete;
  ~Flights() {
    for (Flight& flight : flights_) {
      if (flight.begin) cudaEventDestroy(flight.begin);
      if (flight.end) cudaEventDestroy(flight.end);
    }
  }

  Status open() {
    for (Flight& flight : flights_) {
      ES_CUDA_RETURN_IF_ERROR(cudaEventCreate(&flight.begin));
      // Waiting must not keep a core busy: the next step is under way already.
      ES_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&flight.end, cudaEventBlockingSync));
    }
    return {};
  }

  // Blocks while all are under way.
  Flight& take() {
    std::unique_lock lock(mutex_);
    Flight* found = nullptr;
    freed_.wait(lock, [&] {
      for (Flight& flight : flights_) {
        if (!flight.busy) found = &flight;
      }
      return found != nullptr;
    });
    found->busy = true;
    return *found;
  }

  void give_back(Flight& flight) {
    {
      std::lock_guard lock(mutex_);
      flight.busy = false;
    }
    freed_.notify_one();
  }

 private:
  Flight flights_[kMaxPendingSteps];
  std::mutex mutex_;
  std::condition_variable freed_;
};

}  // namespace edgeshift::cuda
