#include <dlfcn.h>

#include <thread>

#include "test/cuda/device_test.h"
#include "test/tiers.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

constexpr size_t kArena = size_t(4) << 20;

// Whether this process has a context on a device; asking makes none.
bool has_context(int device) {
  using GetState = int (*)(int device, unsigned* flags, int* active);
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  auto get_state = driver ? reinterpret_cast<GetState>(dlsym(driver, "cuDevicePrimaryCtxGetState")) : nullptr;
  unsigned flags = 0;
  int active = 0;
  ES_CHECK(get_state && get_state(device, &flags, &active) == 0);
  return active != 0;
}

// Work on the second device takes nothing of the first, whichever thread waits for it. To be called before all else.
void leaves_the_first_device_alone() {
  auto backend = open_cuda(1, kArena);
  ES_CHECK(backend.ok());
  if (!backend.ok()) return;
  const Net net = make_net({});
  auto model = load(*backend.value(), net, net.sources(), Precision::fp16);
  if (!model) return;
  SamplingState state;
  state.tokens = {3, 4, 5};
  ES_CHECK(model->set_slot(0, state).ok());
  auto pending = model->begin(scoring_batch(*model, net.spec.vocab, state.tokens, 0));
  ES_CHECK(pending.ok());
  if (!pending.ok()) return;
  std::thread([&] {
    StepResult result;
    ES_CHECK(pending.value()->wait(result).ok());
  }).join();
  ES_CHECK(has_context(1) && !has_context(0));
}

// What was read of a torn file is not what comes back from the host cache.
void keeps_only_what_is_intact() {
  auto backend = open_cuda(0, kArena, size_t(64) << 20);
  ES_CHECK(backend.ok());
  if (!backend.ok()) return;
  const Net net = make_net({});
  bool torn = true;
  LoadOptions options{Precision::fp16, 4, 64, kBlock, {}};
  options.cache_key = "key";
  options.intact = [&] { return torn ? Status(Code::invalid_file, "torn") : Status(); };
  auto origin = [&]() -> std::optional<Origin> {
    auto model = backend.value()->load(net.spec, net.sources(), options);
    if (!model.ok()) return {};
    return model.value()->origin();
  };
  ES_CHECK(!origin());
  torn = false;
  ES_CHECK(origin() == Origin::files);
  ES_CHECK(origin() == Origin::host_copy);
}

}  // namespace

int main() {
  const size_t devices = cuda_devices().size();
  if (devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  if (devices > 1) leaves_the_first_device_alone();
  constexpr size_t kSwap = size_t(1) << 20;
  auto backend = open_cuda(0, kArena, 0, kSwap);
  ES_CHECK(backend.ok());
  if (!backend.ok()) return 1;
  comes_back_from_a_packed_file(*backend.value());
  copies_blocks(*backend.value(), kSwap);
  keeps_only_what_is_intact();
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
