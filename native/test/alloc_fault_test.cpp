// Fails every allocation of a load and of a step, one after the other: each gives out_of_memory (or bad_alloc, which the
// addon's tasks turn into it), every byte comes back, and the next attempt succeeds.
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <system_error>

#include "test/check.h"
#include "test/tiny_model.h"

// Both sides are replaced below; inlining hides one of them from the compiler.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace {

// Allocations until one fails; negative: none does.
std::atomic<long> countdown{-1};
std::atomic<long> live_bytes{0};

bool refused() {
  if (countdown.load(std::memory_order_relaxed) < 0) return false;
  return countdown.fetch_sub(1) == 0;
}

void* take(size_t bytes) noexcept {
  if (refused()) return nullptr;
  void* memory = std::malloc(bytes ? bytes : 1);
  if (memory) live_bytes += long(malloc_usable_size(memory));
  return memory;
}

void give(void* memory) noexcept {
  if (!memory) return;
  live_bytes -= long(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(size_t bytes) {
  if (void* memory = take(bytes)) return memory;
  throw std::bad_alloc();
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return take(bytes); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return take(bytes); }
void operator delete(void* memory) noexcept { give(memory); }
void operator delete[](void* memory) noexcept { give(memory); }
void operator delete(void* memory, size_t) noexcept { give(memory); }
void operator delete[](void* memory, size_t) noexcept { give(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { give(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { give(memory); }

// What cpu/buffer.cpp calls; the C library's own mappings (thread stacks) do not come here.
extern "C" void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  if ((flags & MAP_ANONYMOUS) && refused()) return MAP_FAILED;
  void* memory = reinterpret_cast<void*>(syscall(SYS_mmap, at, bytes, protection, flags, file, offset));
  if (memory != MAP_FAILED) live_bytes += long(bytes);
  return memory;
}
extern "C" int munmap(void* at, size_t bytes) noexcept {
  live_bytes -= long(bytes);
  return int(syscall(SYS_munmap, at, bytes));
}

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

constexpr long kMostPoints = 20000;

// As Task::run of the addon: an exception becomes a status.
template <class Body>
Status guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Status(Code::out_of_memory, "bad_alloc");
  } catch (const std::system_error&) {
    return Status(Code::out_of_memory, "no thread");
  }
}

// Runs `attempt` with its n-th allocation failing, for n = 0, 1, ... until it succeeds; returns how many failed.
// `undo` follows an attempt that succeeded.
template <class Attempt, class Undo>
long fail_each(const char* what, const Attempt& attempt, const Undo& undo) {
  for (long point = 0; point < kMostPoints; ++point) {
    const long before = live_bytes;
    countdown = point;
    // The message takes memory, too: only the code is kept.
    const Code code = guarded(attempt).code();
    const bool reached = countdown < 0;
    countdown = -1;
    if (!reached) {
      if (code != Code::ok) report(__FILE__, __LINE__, std::string(what) + ": " + code_name(code));
      undo();
      return point;
    }
    // An allocation that is not essential may be done without.
    if (code == Code::ok) undo();
    else if (code != Code::out_of_memory) report(__FILE__, __LINE__, std::string(what) + ": " + code_name(code));
    if (live_bytes != before) {
      report(__FILE__, __LINE__, std::string(what) + ": allocation " + std::to_string(point) + " left " +
                                     std::to_string(live_bytes - before) + " bytes");
      return point;
    }
  }
  report(__FILE__, __LINE__, std::string(what) + " never succeeded");
  return kMostPoints;
}

void loads() {
  const Net net = make_net({.tied = false, .bias = true});
  const std::vector<WeightSource> sources = net.sources();
  // Several workers: a pool that gets only some of its threads has to end those.
  auto opened = open_cpu(4, 1 << 20);
  ES_CHECK(opened.ok());
  auto backend = std::move(opened.value());
  const std::pair<const char*, Precision> rungs[] = {
      {"load fp16", Precision::fp16}, {"load int8", Precision::int8}, {"load int4", Precision::int4}};
  for (const auto& [name, precision] : rungs) {
    std::unique_ptr<Model> model;
    const LoadOptions options{precision, 4, 64, kBlock, {}};
    auto attempt = [&]() -> Status {
      auto loaded = backend->load(net.spec, sources, options);
      if (!loaded.ok()) return loaded.status();
      model = std::move(loaded.value());
      return Status();
    };
    auto undo = [&] { model.reset(); };
    // Tables that are made once.
    ES_CHECK(attempt().ok());
    undo();
    std::printf("%s: %ld allocations failed one by one\n", name, fail_each(name, attempt, undo));
    double spread = 1;
    ES_CHECK(worst_difference(*backend, net, sources, precision, spread) < 1.5 * spread);
  }
}

void steps() {
  const Net net = make_net({});
  auto backend = open();
  auto model = load(*backend, net, net.sources(), Precision::int8);
  const StepBatch batch = scoring_batch(*model, net.spec.vocab, {1, 2, 3, 4, 5}, 0);
  StepResult expected;
  ES_CHECK(model->set_slot(0, SamplingState()).ok());
  ES_CHECK(model->step(batch, expected).ok());
  StepResult result;
  // The model keeps what it grew to (slots, scratch): only the outcome counts here, not the bytes.
  for (long point = 0; point < kMostPoints; ++point) {
    countdown = point;
    const Status status = guarded([&] {
      ES_RETURN_IF_ERROR(model->set_slot(0, SamplingState()));
      StepResult fresh;
      ES_RETURN_IF_ERROR(model->step(batch, fresh));
      result = std::move(fresh);
      return Status();
    });
    const bool reached = countdown < 0;
    countdown = -1;
    if (!status.ok() && status.code() != Code::out_of_memory) report(__FILE__, __LINE__, status.message());
    StepResult again;
    ES_CHECK(model->set_slot(0, SamplingState()).ok());
    ES_CHECK(model->step(batch, again).ok());
    for (size_t i = 0; i < expected.rows.size(); ++i) ES_CHECK(again.rows[i].logprob == expected.rows[i].logprob);
    if (reached) continue;
    std::printf("step: %ld allocations failed one by one\n", point);
    return;
  }
  report(__FILE__, __LINE__, "step never succeeded");
}

}  // namespace

int main() {
  loads();
  steps();
  return failures ? 1 : 0;
}
