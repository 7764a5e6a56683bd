// A variant's matrices in a backend's own layout, as one file: the repacked file of engine/residency/packed-store.ts.
//
// The image comes first, in chunks of 16 MiB that each start at a multiple of their size, the last one shorter. Then, from the
// next multiple of 4096 on, a trailer: "ESPACK01", the image's bytes, what rounding took (two doubles), the key's length,
// the key padded with zeros to 8 bytes, a checksum of each chunk, a checksum of the trailer so far, and where the
// trailer begins. Numbers are 64-bit little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"
#include "quant/row_kernels.h"

namespace edgeshift {

inline constexpr size_t kPackedChunk = size_t(16) << 20;

// What an image is of, and what it does not hold itself.
struct PackedInfo {
  std::string key;
  uint64_t bytes = 0;
  RoundingSums rounding;
};

// An open file whose trailer was checked. Movable, not copyable; the file may be unlinked meanwhile.
class PackedFile {
 public:
  PackedFile() = default;
  PackedFile(PackedFile&& other) noexcept { swap(other); }
  PackedFile& operator=(PackedFile&& other) noexcept {
    swap(other);
    return *this;
  }
  PackedFile(const PackedFile&) = delete;
  PackedFile& operator=(const PackedFile&) = delete;
  ~PackedFile();

  // io_error when it cannot be read; invalid_file when it is torn, of another version, or not of `key`.
  static Result<PackedFile> open(const std::string& path, const std::string& key);

  const PackedInfo& info() const { return info_; }
  size_t chunks() const { return checksums_.size(); }
  size_t chunk_bytes(size_t chunk) const;
  // Reads a chunk into chunk_bytes(chunk) bytes and checks it; from any thread. invalid_file when it is damaged.
  Status read(size_t chunk, void* to) const;

 private:
  void swap(PackedFile& other) noexcept;
  Status damaged(const char* what) const;

  std::string path_;
  int file_ = -1;
  PackedInfo info_;
  std::vector<uint64_t> checksums_;
};

// Gives the image's bytes from `offset` on; valid until the next call.
using ImagePiece = std::function<Result<std::span<const uint8_t>>(size_t offset, size_t bytes)>;

// Writes a new file, piece by piece, and waits until it is on the disk. disk_full when there is no room, io_error, invalid_argument
// when `stop` says so: then there is no file.
Status write_packed_file(const std::string& path, const PackedInfo& info, const ImagePiece& image,
                         const std::function<bool()>& stop);

}  // namespace edgeshift
