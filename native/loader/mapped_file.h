// A read-only memory-mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/status.h"
#include "loader/mapping_guard.h"

namespace edgeshift {

// Owns the mapping; the descriptor is closed as soon as the file is mapped. Movable, not copyable.
// Where another process truncates the file, or its disk fails, while it is mapped, zeros are read in place of what is
// gone, and intact() says so from then on.
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

  // io_error when it cannot be opened, mapped or watched; invalid_file when it is not a regular file or is empty.
  static Result<MappedFile> open(const std::string& path);

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // When the content last changed, nanoseconds since 1970, at the time of open().
  int64_t changed() const { return changed_; }

  // invalid_file when some of what was read was gone. To be asked after the last read, before its result is used.
  Status intact() const;

  // Gives back the resident pages that lie wholly inside some bytes of a mapping, from any thread. They are read from
  // the file again where they are touched again.
  static void done_reading(std::span<const uint8_t> bytes);

  // Lets the system begin to read bytes of a mapping from the disk, from any thread. Returns before they are there, but
  // may wait for the disk to take the order.
  static void will_read(std::span<const uint8_t> bytes);

  // From now on nothing is read from the disk around what is touched: will_read() says what comes next.
  void read_as_told() const;

 private:
  void swap(MappedFile& other) noexcept;

  std::string path_;
  MappingGuard guard_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  int64_t changed_ = 0;
};

}  // namespace edgeshift
