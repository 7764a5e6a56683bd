// A read-only memory-mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/status.h"

namespace edgeshift {

// Owns the mapping; the descriptor is closed as soon as the file is mapped. Movable, not copyable.
// Another process that truncates the file while it is mapped makes reads past its new end raise SIGBUS, which ends
// the process: replace model files by renaming a new one over the old.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept { swap(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    swap(other);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // io_error when it cannot be opened or mapped; invalid_file when it is not a regular file or is empty.
  static Result<MappedFile> open(const std::string& path);

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

  // Gives back the resident pages that lie wholly inside some bytes of a mapping, from any thread. They are read from
  // the file again where they are touched again.
  static void done_reading(std::span<const uint8_t> bytes);

  // Tells the kernel that the bytes are about to be read from start to end.
  void will_read(size_t offset, size_t bytes) const;

 private:
  void swap(MappedFile& other) noexcept;

  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace edgeshift
