// Prints the machine's read bandwidth in GB/s: bandwidth_bench [threads].
#include <cstdio>
#include <cstdlib>

#include "bench/bandwidth.h"

int main(int argc, char** argv) {
  edgeshift::cpu::ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 2);
  std::printf("%.2f\n", edgeshift::bench::read_bandwidth(pool));
}
