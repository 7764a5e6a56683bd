// Owned device memory.
#pragma once

#include <cstddef>
#include <utility>

#include "cuda/check.h"

namespace edgeshift::cuda {

// The driver maps memory in pieces of this size; what is smaller than half of one shares a piece with others.
inline constexpr size_t kMappedPiece = size_t(2) << 20;

// One cudaMalloc allocation, freed with its owner. Move-only.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }

  // Replaces the allocation by one of at least `bytes` and 16, contents undefined; out_of_memory leaves it empty. bytes() then
  // is what the driver takes for it, so that ledgers and the driver agree.
  Status allocate(size_t bytes) {
    *this = Buffer();
    void* data = nullptr;
    if (bytes >= kMappedPiece / 2) bytes = (bytes + kMappedPiece - 1) / kMappedPiece * kMappedPiece;
    ES_CUDA_RETURN_IF_ERROR(cudaMalloc(&data, bytes < 16 ? 16 : bytes));
    data_ = data;
    bytes_ = bytes;
    return {};
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace edgeshift::cuda
