// Fails every allocation of a load (from the model's files, and from a repacked file), of writing a repacked file and of a
// step, one after the other: each gives out_of_memory (or bad_alloc, which the addon's tasks turn into it), every byte
// comes back, and the next attempt succeeds.
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <random>
#include <system_error>

#include "test/check.h"
#include "test/tiers.h"
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

namespace fs = std::filesystem;

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

// Descriptors that this process has open; 0 where the system does not list them.
long open_files() {
  std::error_code none;
  long count = 0;
  for (fs::directory_iterator at("/proc/self/fd", none), end; at != end; ++at) ++count;
  return count;
}

// Runs `attempt` with its n-th allocation failing, for n = 0, 1, ... until it succeeds; returns how many failed.
// `undo` follows an attempt that succeeded.
template <class Attempt, class Undo>
long fail_each(const char* what, const Attempt& attempt, const Undo& undo) {
  for (long point = 0; point < kMostPoints; ++point) {
    const long files = open_files();
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
    if (open_files() != files) report(__FILE__, __LINE__, std::string(what) + ": a file stays open");
  }
  report(__FILE__, __LINE__, std::string(what) + " never succeeded");
  return kMostPoints;
}

constexpr Precision kRungs[] = {Precision::fp16, Precision::int8, Precision::int4};
constexpr const char* kNames[] = {"fp16", "int8", "int4"};

void loads() {
  const Net net = make_net({.tied = false, .bias = true});
  const std::vector<WeightSource> sources = net.sources();
  // Several workers: a pool that gets only some of its threads has to end those.
  auto opened = open_cpu(4, 1 << 20);
  ES_CHECK(opened.ok());
  auto backend = std::move(opened.value());
  for (size_t rung = 0; rung < std::size(kRungs); ++rung) {
    const Precision precision = kRungs[rung];
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
    std::printf("load %s: %ld allocations failed one by one\n", kNames[rung], fail_each("load", attempt, undo));
    double spread = 1;
    ES_CHECK(worst_difference(*backend, net, sources, precision, spread) < 1.5 * spread);
  }
}

// Writing a variant's repacked file, and loading it from there: as LoadTask and SaveTask of the addon do. No failed allocation
// is taken for damage of the file, leaves one behind that is not finished, or one open.
void packed_loads() {
  const Net net = make_net({.tied = false, .bias = true});
  const fs::path folder = fs::temp_directory_path() / ("es-alloc-" + std::to_string(std::random_device()()));
  fs::create_directory(folder);
  const std::string path = folder / "packed";
  auto opened = open_cpu(4, 1 << 20);
  ES_CHECK(opened.ok());
  auto backend = std::move(opened.value());
  const std::vector<WeightSource> sources = net.sources();
  for (size_t rung = 0; rung < std::size(kRungs); ++rung) {
    auto first = load(*backend, net, sources, kRungs[rung]);
    if (!first) return;
    const std::vector<int32_t> expected = scores(*first, net.spec.vocab, {3, 4, 5});
    auto write = [&] {
      // What an attempt that failed left would be in the way of this one.
      Status status = save(*first, path, "key");
      if (!status.ok() && status.code() != Code::out_of_memory) report(__FILE__, __LINE__, status.message());
      return status;
    };
    ES_CHECK(write().ok());
    fs::remove(path);
    std::printf("save %s: %ld allocations failed one by one\n", kNames[rung], fail_each("save", write, [&] { fs::remove(path); }));
    ES_CHECK(fs::is_empty(folder));
    ES_CHECK(write().ok());
    std::unique_ptr<Model> model;
    auto attempt = [&]() -> Status {
      PackedSource packed;
      LoadOptions options{kRungs[rung], 4, 64, kBlock, {}};
      Result<PackedFile> file = PackedFile::open(path, "key");
      if (!file.ok()) return file.status();
      packed.file = std::move(file.value());
      options.packed = &packed;
      auto loaded = backend->load(net.spec, sources, options);
      if (!loaded.ok()) return loaded.status();
      model = std::move(loaded.value());
      if (model->origin() == Origin::packed_file) return Status();
      return Status(Code::invalid_file, "the repacked file was not used");
    };
    auto undo = [&] { model.reset(); };
    ES_CHECK(attempt().ok());
    undo();
    std::printf("load %s from its repacked file: %ld allocations failed one by one\n", kNames[rung],
                fail_each("load from a repacked file", attempt, undo));
    ES_CHECK(attempt().ok());
    if (model) ES_CHECK(scores(*model, net.spec.vocab, {3, 4, 5}) == expected);
    fs::remove(path);
  }
  fs::remove_all(folder);
}

// With a row whose mask follows the step, or with scored ones alone.
void steps(bool masked) {
  const Net net = make_net({});
  auto backend = open();
  auto model = load(*backend, net, net.sources(), Precision::int8);
  StepBatch batch = scoring_batch(*model, net.spec.vocab, {1, 2, 3, 4, 5}, 0);
  const std::vector<uint32_t> masks(size_t(mask_words(net.spec.vocab)), 0x10000u);
  if (masked) {
    // Without log probabilities: what those take each worker keeps, and which of them has the row differs from step to step.
    batch.row_tokens.push_back(4), batch.row_seqs.push_back(0), batch.row_targets.push_back(-1), batch.row_top.push_back(-1);
    batch.row_masks.assign(batch.row_tokens.size(), -1);
    batch.row_masks.back() = 0;
  }
  auto step = [&](StepResult& result) -> Status {
    ES_RETURN_IF_ERROR(model->set_slot(0, SamplingState()));
    if (!masked) return model->step(batch, result);
    auto pending = model->begin(batch);
    if (!pending.ok()) return pending.status();
    ES_RETURN_IF_ERROR(pending.value()->give_masks(masks));
    return pending.value()->wait(result);
  };
  StepResult expected;
  ES_CHECK(step(expected).ok());
  // The model keeps what its first step took (slots, scratch): from here on every step must give back all that it takes.
  const long settled = live_bytes;
  for (long point = 0; point < kMostPoints; ++point) {
    countdown = point;
    const Code code = guarded([&] {
      StepResult result;
      return step(result);
    }).code();
    const bool reached = countdown < 0;
    countdown = -1;
    if (code != Code::ok && code != Code::out_of_memory) report(__FILE__, __LINE__, code_name(code));
    {
      StepResult again;
      ES_CHECK(step(again).ok());
      for (size_t i = 0; i < expected.rows.size(); ++i) {
        ES_CHECK(again.rows[i].token == expected.rows[i].token && again.rows[i].logprob == expected.rows[i].logprob);
      }
    }
    if (live_bytes != settled) {
      report(__FILE__, __LINE__, "step: allocation " + std::to_string(point) + " left " + std::to_string(live_bytes - settled) + " bytes");
    }
    if (reached) continue;
    std::printf("step%s: %ld allocations failed one by one\n", masked ? " with masks" : "", point);
    return;
  }
  report(__FILE__, __LINE__, "step never succeeded");
}

}  // namespace

int main() {
  loads();
  packed_loads();
  steps(false);
  steps(true);
  return failures ? 1 : 0;
}
