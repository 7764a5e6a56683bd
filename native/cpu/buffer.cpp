#include "cpu/buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <string>

namespace edgeshift::cpu {

namespace {

constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kPage = 4096;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Maps `bytes` at a multiple of the huge page size, which the system needs to grant huge pages at all.
void* map_aligned(size_t bytes) {
  void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* start = static_cast<char*>(raw);
  size_t head = round_up(reinterpret_cast<size_t>(raw), kHugePage) - reinterpret_cast<size_t>(raw);
  if (head) munmap(start, head);
  munmap(start + head + bytes, kHugePage - head);
  return start + head;
}

}  // namespace

Result<Buffer> Buffer::allocate(size_t bytes) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  if (bytes > SIZE_MAX / 2) return Status(Code::out_of_memory, "allocation of " + std::to_string(bytes) + " bytes");
  // Small buffers stay on small pages: a huge page would waste most of itself.
  bool huge = bytes >= kHugePage;
  size_t mapped = round_up(bytes, huge ? kHugePage : kPage);
  buffer.data_ = huge ? map_aligned(mapped) : mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!buffer.data_ || buffer.data_ == MAP_FAILED) {
    buffer.data_ = nullptr;
    return Status(Code::out_of_memory, "the system refused " + std::to_string(bytes) + " bytes");
  }
#ifdef MADV_HUGEPAGE
  if (huge) madvise(buffer.data_, mapped, MADV_HUGEPAGE);
#endif
  buffer.bytes_ = mapped;
  return buffer;
}

void Buffer::discard(size_t offset, size_t bytes) {
  if (offset > bytes_ || bytes > bytes_ - offset) return;
  const size_t begin = round_up(offset, kPage), end = (offset + bytes) / kPage * kPage;
  if (begin < end) madvise(static_cast<char*>(data_) + begin, end - begin, MADV_DONTNEED);
}

Buffer::~Buffer() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace edgeshift::cpu
