// Large aligned memory.
#pragma once

#include <cstddef>
#include <utility>

#include "core/status.h"

namespace edgeshift::cpu {

// Owns zeroed memory aligned to 64 bytes, on huge pages where the system grants them (streaming weights through 4 KiB
// pages costs a tenth of the bandwidth in TLB misses). Given back to the system on destruction.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer();
  // out_of_memory when the system refuses.
  static Result<Buffer> allocate(size_t bytes);
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Gives the pages inside a stretch back to the system; they read as zero and are had again when written to.
  void discard(size_t offset, size_t bytes);

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace edgeshift::cpu
