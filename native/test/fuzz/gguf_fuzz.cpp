// Fuzz target of the GGUF reader. With a libFuzzer driver: link with -fsanitize=fuzzer and -DEDGESHIFT_LIBFUZZER.
// Alone: gguf_fuzz [CASES] [SEED] [FILE or DIRECTORY...] mutates a sample file and the given files.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "loader/gguf.h"
#include "test/gguf_builder.h"

namespace {

using Bytes = std::vector<uint8_t>;
using edgeshift::GgufValue;

volatile uint64_t sink;

// Reads everything that a caller may read of a value, so that the sanitizers see a bad pointer.
void touch(const GgufValue& value) {
  sink = sink + static_cast<uint64_t>(value.number == 1);
  for (char c : value.text) sink = sink + uint8_t(c);
  for (const auto& s : value.strings) {
    for (char c : s) sink = sink + uint8_t(c);
  }
  const size_t width = value.elements == nullptr ? 0 : edgeshift::gguf_element_bytes(value.element);
  for (uint64_t i = 0; width != 0 && i < value.count; ++i) {
    sink = sink + static_cast<uint64_t>(edgeshift::gguf_number(value.element, value.elements + i * width) == 1);
  }
  for (const GgufValue& item : value.items) touch(item);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A heap copy of exact size: reads past its end are seen.
  const Bytes exact(data, data + size);
  auto result = edgeshift::parse_gguf(exact.data(), exact.size());
  if (!result.ok()) {
    if (result.status().message().empty()) std::abort();
    return 0;
  }
  for (const auto& entry : result.value().metadata) touch(entry.value);
  for (const auto& tensor : result.value().tensors) {
    sink = sink + exact[tensor.offset] + exact[tensor.offset + tensor.bytes - 1];
  }
  return 0;
}

#ifndef EDGESHIFT_LIBFUZZER
namespace {

uint64_t interesting(std::mt19937_64& rng) {
  static const uint64_t values[] = {0, 1, 2, 3, 8, 9, 31, 32, 33, 64, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff,
                                    0x7fffffff, 0x80000000, 0xffffffff, 1ull << 53, 1ull << 61, 1ull << 62, 1ull << 63,
                                    ~0ull, ~0ull - 7, ~0ull - 31};
  return values[rng() % std::size(values)];
}

void mutate(Bytes& b, std::mt19937_64& rng) {
  if (b.empty()) return b.push_back(uint8_t(rng()));
  const size_t at = rng() % b.size();
  switch (rng() % 8) {
    case 0: b[at] ^= uint8_t(1u << (rng() % 8)); break;
    case 1: b[at] = uint8_t(rng()); break;
    case 2: b.resize(at); break;
    case 3: b.insert(b.begin() + at, 1 + rng() % 16, uint8_t(rng())); break;
    case 4: b.erase(b.begin() + at, b.begin() + at + std::min<size_t>(b.size() - at, 1 + rng() % 16)); break;
    case 5: {  // a count, length, offset or dimension
      const uint64_t v = interesting(rng);
      std::memcpy(&b[at], &v, std::min<size_t>(b.size() - at, rng() % 2 ? 8 : 4));
      break;
    }
    case 6: {  // repeat a stretch: duplicate keys and tensors
      const size_t n = std::min<size_t>(b.size() - at, 1 + rng() % 64);
      const Bytes part(b.begin() + at, b.begin() + at + n);
      b.insert(b.begin() + rng() % b.size(), part.begin(), part.end());
      break;
    }
    default: {  // nudge a byte, which keeps lengths near the truth
      b[at] = uint8_t(b[at] + (rng() % 5) - 2);
      break;
    }
  }
}

void read_seed(const std::filesystem::path& path, std::vector<Bytes>& seeds) {
  // Large files make slow cases; headers matter, so their start is enough.
  constexpr size_t kLimit = 16384;
  std::ifstream in(path, std::ios::binary);
  Bytes bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (bytes.size() > kLimit) bytes.resize(kLimit);
  seeds.push_back(std::move(bytes));
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  std::vector<Bytes> seeds = {edgeshift::test::sample_gguf()};
  for (int i = 3; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      read_seed(argv[i], seeds);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) read_seed(entry.path(), seeds);
  }
  std::mt19937_64 rng(seed);
  uint64_t accepted = 0;
  for (uint64_t i = 0; i < cases; ++i) {
    // Half of the cases start from the small sample, where each field is likely to be hit.
    Bytes bytes = seeds[i % 2 == 0 ? 0 : rng() % seeds.size()];
    for (uint64_t n = 1 + rng() % 4; n > 0; --n) mutate(bytes, rng);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    accepted += edgeshift::parse_gguf(bytes.data(), bytes.size()).ok();
  }
  std::printf("%llu cases from %zu seed files, %llu accepted\n", static_cast<unsigned long long>(cases), seeds.size(),
              static_cast<unsigned long long>(accepted));
}
#endif
