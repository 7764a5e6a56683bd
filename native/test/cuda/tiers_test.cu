#include "test/cuda/device_test.h"
#include "test/tiers.h"

using namespace edgeshift;
using namespace edgeshift::test;

int main() {
  if (cuda_devices().empty()) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  constexpr size_t kSwap = size_t(1) << 20;
  auto backend = open_cuda(0, size_t(4) << 20, 0, kSwap);
  ES_CHECK(backend.ok());
  if (!backend.ok()) return 1;
  comes_back_from_a_packed_file(*backend.value());
  copies_blocks(*backend.value(), kSwap);
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
