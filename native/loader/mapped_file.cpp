#include "loader/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/text.h"

namespace edgeshift {

namespace {

Status io_error(const std::string& path, const char* what) {
  return error(Code::io_error, path, ": ", what, ": ", std::strerror(errno));
}

int64_t changed_at(const struct stat& info) {
#ifdef __APPLE__
  const timespec& at = info.st_mtimespec;
#else
  const timespec& at = info.st_mtim;
#endif
  return int64_t(at.tv_sec) * 1000000000 + at.tv_nsec;
}

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) return error(Code::invalid_argument, "the path has a NUL byte");
  // O_NONBLOCK: opening a FIFO must not wait for a writer before fstat can refuse it.
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) return io_error(path, "cannot open");
  struct stat info;
  if (::fstat(file.fd, &info) != 0) return io_error(path, "cannot stat");
  if (!S_ISREG(info.st_mode)) return error(Code::invalid_file, path, ": not a regular file");
  if (info.st_size == 0) return error(Code::invalid_file, path, ": the file is empty");
  MappedFile mapped;
  mapped.size_ = static_cast<size_t>(info.st_size);
  mapped.changed_ = changed_at(info);
  void* address = ::mmap(nullptr, mapped.size_, PROT_READ, MAP_SHARED, file.fd, 0);
  if (address == MAP_FAILED) return io_error(path, "cannot map");
  mapped.data_ = static_cast<const uint8_t*>(address);
  mapped.path_ = path;
  if (!mapped.guard_.watch(address, mapped.size_)) {
    return error(Code::io_error, path, ": ", MappingGuard::kMappings, " model files are mapped already");
  }
  return mapped;
}

MappedFile::~MappedFile() {
  guard_.stop();
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::swap(MappedFile& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(guard_, other.guard_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(changed_, other.changed_);
}

Status MappedFile::intact() const {
  if (!guard_.torn()) return Status();
  return error(Code::invalid_file, path_, ": the file was truncated, or could not be read, while it was being read");
}

namespace {

uintptr_t page_bytes() {
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  return page;
}

uintptr_t address_of(std::span<const uint8_t> bytes) { return reinterpret_cast<uintptr_t>(bytes.data()); }

}  // namespace

void MappedFile::done_reading(std::span<const uint8_t> bytes) {
  const uintptr_t page = page_bytes(), start = (address_of(bytes) + page - 1) / page * page;
  const uintptr_t end = (address_of(bytes) + bytes.size()) / page * page;
  if (end > start) ::madvise(reinterpret_cast<void*>(start), end - start, MADV_DONTNEED);
}

void MappedFile::will_read(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return;
  const uintptr_t start = address_of(bytes) / page_bytes() * page_bytes();
  ::madvise(reinterpret_cast<void*>(start), address_of(bytes) + bytes.size() - start, MADV_WILLNEED);
}

void MappedFile::read_as_told() const { ::madvise(const_cast<uint8_t*>(data_), size_, MADV_RANDOM); }

}  // namespace edgeshift
