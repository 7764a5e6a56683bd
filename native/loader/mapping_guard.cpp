#include "loader/mapping_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <utility>

namespace edgeshift {

namespace {

// What the handler reads: lock-free atomics only. start = 0: not in use.
struct Watched {
  std::atomic<uintptr_t> start{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> torn{false};
};

Watched watched[MappingGuard::kMappings];
// One past the last slot that was ever in use.
std::atomic<int> used{0};
std::mutex registration;
struct sigaction previous;
uintptr_t page_bytes;

// Zeros from the page of `address` to the end of its mapping; async-signal-safe.
bool replace(uintptr_t address) {
  for (int i = 0; i < used.load(std::memory_order_acquire); ++i) {
    const uintptr_t start = watched[i].start.load(std::memory_order_acquire);
    const uintptr_t end = watched[i].end.load(std::memory_order_relaxed);
    if (start == 0 || address < start || address >= end) continue;
    const uintptr_t page = address / page_bytes * page_bytes;
    void* const at = reinterpret_cast<void*>(page);
    watched[i].torn.store(true, std::memory_order_relaxed);
    return ::mmap(at, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at;
  }
  return false;
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  const bool replaced = replace(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = saved;
  if (replaced) return;
  if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  // The read is tried again on return and now ends the process, as it would have without this handler.
  ::sigaction(SIGBUS, &previous, nullptr);
}

void install() {
  page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction action = {};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, &previous);
}

}  // namespace

bool MappingGuard::watch(const void* start, size_t bytes) {
  stop();
  std::lock_guard lock(registration);
  static const bool installed = (install(), true);
  (void)installed;
  for (int i = 0; i < kMappings; ++i) {
    if (watched[i].start.load(std::memory_order_relaxed) != 0) continue;
    watched[i].end.store(reinterpret_cast<uintptr_t>(start) + bytes, std::memory_order_relaxed);
    watched[i].torn.store(false, std::memory_order_relaxed);
    watched[i].start.store(reinterpret_cast<uintptr_t>(start), std::memory_order_release);
    if (i >= used.load(std::memory_order_relaxed)) used.store(i + 1, std::memory_order_release);
    slot_ = i;
    return true;
  }
  return false;
}

void MappingGuard::stop() {
  if (slot_ >= 0) watched[slot_].start.store(0, std::memory_order_release);
  slot_ = -1;
}

bool MappingGuard::torn() const { return slot_ >= 0 && watched[slot_].torn.load(std::memory_order_relaxed); }

void MappingGuard::swap(MappingGuard& other) noexcept { std::swap(slot_, other.slot_); }

}  // namespace edgeshift
