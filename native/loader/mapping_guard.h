// Survives the loss of pages of a mapped file: it was truncated, or its disk failed, while it was mapped.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace edgeshift {

// Watches one mapping. A read of a page that is gone raises SIGBUS, which would end the process; the guard's handler
// puts zeros in place of the rest of the mapping and remembers it, and the read goes on. Every other SIGBUS goes to
// the handler that was there before. Move-only; ends with stop(), before the memory is unmapped.
class MappingGuard {
 public:
  MappingGuard() = default;
  MappingGuard(MappingGuard&& other) noexcept { swap(other); }
  MappingGuard& operator=(MappingGuard&& other) noexcept {
    swap(other);
    return *this;
  }
  MappingGuard(const MappingGuard&) = delete;
  MappingGuard& operator=(const MappingGuard&) = delete;
  ~MappingGuard() { stop(); }

  // Watches `bytes` from `start` on, which is the start of a page. False when kMappings are being watched.
  bool watch(const void* start, size_t bytes);
  void stop();
  // Whether a page was found gone since watch().
  bool torn() const;

  static constexpr int kMappings = 4096;

 private:
  void swap(MappingGuard& other) noexcept;

  int slot_ = -1;
};

}  // namespace edgeshift
