// A library to load before a program (LD_PRELOAD): its first write to the file HELD_FILE waits, as on a disk that is slow. It
// opens the fifo HELD, which tells that it waits, and goes on when somebody writes to the fifo GO.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<bool> held{false};

bool is_held_file(int file) {
  const char* wanted = std::getenv("HELD_FILE");
  char link[64], path[4096];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, path, sizeof(path) - 1);
  if (wanted == nullptr || length < 0) return false;
  path[length] = 0;
  return std::strcmp(path, wanted) == 0;
}

ssize_t write_at(const char* name, int file, const void* bytes, size_t count, off_t offset) {
  if (is_held_file(file) && !held.exchange(true)) {
    close(open(std::getenv("HELD"), O_WRONLY));
    close(open(std::getenv("GO"), O_RDONLY));
  }
  using Write = ssize_t (*)(int, const void*, size_t, off_t);
  return reinterpret_cast<Write>(dlsym(RTLD_NEXT, name))(file, bytes, count, offset);
}

}  // namespace

extern "C" ssize_t pwrite(int file, const void* bytes, size_t count, off_t offset) {
  return write_at("pwrite", file, bytes, count, offset);
}

extern "C" ssize_t pwrite64(int file, const void* bytes, size_t count, off_t offset) {
  return write_at("pwrite64", file, bytes, count, offset);
}
