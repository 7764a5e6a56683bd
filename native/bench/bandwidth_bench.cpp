// Prints the machine's read bandwidth in GB/s: bandwidth_bench [threads].
#include <cstdio>
#include <cstdlib>

#include "cpu/read_bandwidth.h"

int main(int argc, char** argv) {
  edgeshift::cpu::ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 2);
  const auto rate = edgeshift::cpu::read_bandwidth(pool);
  if (!rate.ok()) return 1;
  std::printf("%.2f\n", rate.value() / 1e9);
}
