#include "test/tiers.h"

using namespace edgeshift;
using namespace edgeshift::test;

int main() {
  constexpr size_t kSwap = size_t(1) << 20;
  auto backend = open_cpu(2, size_t(4) << 20, kSwap);
  ES_CHECK(backend.ok());
  if (!backend.ok()) return 1;
  comes_back_from_a_packed_file(*backend.value());
  copies_blocks(*backend.value(), kSwap);
  return failures == 0 ? 0 : 1;
}
