// Processor time of packing a matrix for each stored type and rung, on one thread: nanoseconds a weight, the best of some
// runs, into memory that is there and into new memory. Usage: pack_bench [rows] [inputs].
#include <time.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/pack.h"
#include "quant/half.h"
#include "quant/plain_reader.h"
#include "test/random.h"

using namespace edgeshift;

namespace {

double processor_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// Rows of random blocks: floats around zero, or codes with small scales.
std::vector<uint8_t> random_rows(BlockType type, int n, int k) {
  test::Random random(1);
  std::vector<uint8_t> bytes(size_t(n) * row_bytes(type, k));
  const size_t block = size_t(block_bytes(type));
  for (size_t at = 0; at < bytes.size(); at += block) {
    uint8_t* to = bytes.data() + at;
    const float value = (random.uniform() + random.uniform() + random.uniform() - 1.5f) * 0.1f;
    if (type == BlockType::f32) std::memcpy(to, &value, 4);
    else if (block == 2) {
      const f16 half = type == BlockType::f16 ? to_f16(value) : f16{uint16_t(std::bit_cast<uint32_t>(value) >> 16)};
      std::memcpy(to, &half.bits, 2);
    } else {
      const f16 scale = to_f16(0.01f);
      for (size_t i = 0; i < block; ++i) to[i] = uint8_t(random.bits());
      // Scales lie in front, or behind in q6_k.
      std::memcpy(type == BlockType::q6_k ? to + block - 2 : to, &scale.bits, 2);
      if (type == BlockType::q4_1 || type == BlockType::q4_k) std::memcpy(to + 2, &scale.bits, 2);
    }
  }
  return bytes;
}

double time_pack(cpu::ThreadPool& pool, const WeightReader& reader, Precision precision, bool fresh) {
  const WeightReader* parts[] = {&reader};
  const CanonicalForm form = cpu::packed_form(parts, precision);
  cpu::Buffer memory;
  double best = 1e9;
  for (int run = 0; run < 7; ++run) {
    if (fresh || run == 0) {
      auto allocated = cpu::Buffer::allocate(cpu::packed_bytes(form, reader.n(), reader.k()));
      if (!allocated.ok()) std::exit(1);
      memory = std::move(allocated.value());
    }
    PackedMatrix out;
    RoundingSums rounding;
    const double start = processor_seconds();
    if (!cpu::pack(pool, parts, form, memory.data(), out, rounding).ok()) std::exit(1);
    best = std::min(best, processor_seconds() - start);
  }
  return best * 1e9 / (double(reader.n()) * reader.k());
}

}  // namespace

int main(int argc, char** argv) {
  const int n = argc > 1 ? std::atoi(argv[1]) : 4096, k = argc > 2 ? std::atoi(argv[2]) : 2048;
  constexpr const char* kTypes[] = {"f16", "bf16", "f32", "q4_0", "q4_1", "q8_0", "q4_k", "q6_k"};
  cpu::ThreadPool pool(1);
  std::printf("%-5s %10s %10s %10s   ns a weight, memory there (new)\n", "", "fp16", "int8", "int4");
  for (const char* name : kTypes) {
    const BlockType type = parse_block_type(name).value();
    const std::vector<uint8_t> bytes = random_rows(type, n, k);
    const BlockReader reader("", type, bytes.data(), n, k);
    std::printf("%-5s", name);
    for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
      std::printf(" %4.2f (%.2f)", time_pack(pool, reader, precision, false), time_pack(pool, reader, precision, true));
    }
    std::printf("\n");
  }
}
