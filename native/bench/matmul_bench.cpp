// Speed of the matmul paths on the shapes of SmolLM2-135M: GB/s of weights for few rows, GOP/s for many.
// Usage: matmul_bench [threads]; EDGESHIFT_CPU_ISA chooses the instruction set.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "bench/clock.h"
#include "cpu/ops.h"
#include "cpu/read_bandwidth.h"
#include "quant/plain_reader.h"

using namespace edgeshift;

namespace {

struct Shape {
  const char* name;
  int n, k, count;  // count: matrices of one pass, so that the weights come from memory
};

constexpr Shape kShapes[] = {{"qkv", 960, 576, 30}, {"o", 576, 576, 30}, {"gate_up", 3072, 576, 30}, {"down", 576, 1536, 30}, {"head", 49152, 576, 1}};

std::vector<PackedMatrix> make_weights(cpu::ThreadPool& pool, const Shape& shape, Precision precision, std::vector<cpu::Buffer>& owners) {
  std::vector<float> values(size_t(shape.n) * size_t(shape.k));
  uint32_t seed = 1;
  for (float& v : values) v = float(int32_t(seed = seed * 1664525u + 1013904223u)) * 1e-10f;
  std::vector<PackedMatrix> out;
  for (int i = 0; i < shape.count; ++i) {
    BlockReader raw("", BlockType::f32, reinterpret_cast<const uint8_t*>(values.data()), shape.n, shape.k);
    const WeightReader* parts[] = {&raw};
    CanonicalForm form = cpu::packed_form(parts, precision);
    Result<cpu::Buffer> buffer = cpu::Buffer::allocate(cpu::packed_bytes(form, shape.n, shape.k));
    if (!buffer.ok()) std::exit(1);
    PackedMatrix packed;
    if (i == 0) {
      RoundingSums rounding;
      if (!cpu::pack(pool, parts, form, buffer.value().data(), packed, rounding).ok()) std::exit(1);
    } else {
      packed = out[0];
      packed.data = buffer.value().data();
      std::memcpy(packed.data, out[0].data, packed.bytes);
    }
    owners.push_back(std::move(buffer.value()));
    out.push_back(packed);
  }
  return out;
}

// Seconds of one pass over the matrices: the sum of each one's best time, so that other load of the machine, which
// comes in slices of milliseconds, drops out.
double time_pass(cpu::ThreadPool& pool, const std::vector<PackedMatrix>& weights, int t) {
  std::vector<float> x(size_t(t) * size_t(weights[0].k), 0.25f), y(size_t(t) * size_t(weights[0].n));
  std::vector<double> best(weights.size(), 1e9);
  double until = bench::seconds_now() + 0.2;
  for (int run = 0; run < 4 || bench::seconds_now() < until; ++run) {
    for (size_t i = 0; i < weights.size(); ++i) {
      MatmulArgs<float> args{x.data(), &weights[i], nullptr, y.data(), t};
      double start = bench::seconds_now();
      if (!cpu::matmul(pool, args).ok()) std::exit(1);
      best[i] = std::min(best[i], bench::seconds_now() - start);
    }
  }
  return std::accumulate(best.begin(), best.end(), 0.0);
}

}  // namespace

int main(int argc, char** argv) {
  cpu::ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 2);
  const auto bandwidth = cpu::read_bandwidth(pool);
  if (!bandwidth.ok()) return 1;
  std::printf("%d threads, %s, read bandwidth %.1f GB/s\n", pool.threads(), cpu::isa_name(pool.isa()), bandwidth.value() / 1e9);
  const char* names[] = {"fp16", "int8", "int4"};
  const int rows[] = {1, 8, 16, 256};
  std::printf("%-5s %-8s", "", "");
  for (int t : rows) std::printf("   t=%-3d  us    GB/s  GOP/s", t);
  std::printf("\n");
  for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
    double total[4] = {};
    for (const Shape& shape : kShapes) {
      std::vector<cpu::Buffer> owners;
      std::vector<PackedMatrix> weights = make_weights(pool, shape, precision, owners);
      std::printf("%-5s %-8s", names[int(precision)], shape.name);
      for (int i = 0; i < 4; ++i) {
        // A prefill computes the logits of its last token alone.
        if (shape.count == 1 && rows[i] > 16) continue;
        double time = time_pass(pool, weights, rows[i]);
        total[i] += time;
        double bytes = double(weights[0].bytes) * shape.count;
        double ops = 2.0 * shape.n * shape.k * shape.count * rows[i];
        std::printf("   %8.1f %7.1f %7.1f", time / shape.count * 1e6, bytes / time / 1e9, ops / time / 1e9);
      }
      std::printf("\n");
    }
    std::printf("%-5s a pass  ", names[int(precision)]);
    for (int i = 0; i < 4; ++i) std::printf("   %6.2f ms %9.0f rows/s", total[i] * 1e3, rows[i] / total[i]);
    std::printf("\n");
  }
}
