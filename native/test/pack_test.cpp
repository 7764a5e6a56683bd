// Packing: the same bytes whatever the memory held, wherever the rows lie and on however many threads.
#include "cpu/pack.h"

#include <cstring>
#include <string>
#include <vector>

#include "quant/half.h"
#include "quant/plain_reader.h"
#include "test/check.h"
#include "test/random.h"

using namespace edgeshift;

namespace {

// Finite values of a type: floats, or blocks whose first two parameters are small.
std::vector<uint8_t> random_rows(BlockType type, int n, int k, test::Random& random) {
  std::vector<uint8_t> bytes(size_t(n) * row_bytes(type, k));
  const size_t block = size_t(block_bytes(type));
  for (size_t at = 0; at < bytes.size(); at += block) {
    const f16 value = to_f16(random.normal() * 0.05f);
    const float wide = to_float(value);
    for (size_t i = 0; i < block; ++i) bytes[at + i] = uint8_t(random.bits());
    if (type == BlockType::f32) std::memcpy(&bytes[at], &wide, 4);
    else std::memcpy(&bytes[at], &value.bits, 2);
    if (type == BlockType::q4_1 || type == BlockType::q4_k || type == BlockType::q5_k) std::memcpy(&bytes[at + 2], &value.bits, 2);
  }
  return bytes;
}

// `fill`: what the memory holds before.
std::vector<char> packed(cpu::Parts parts, CanonicalForm form, int threads, char fill) {
  int n = 0;
  for (const WeightReader* part : parts) n += part->n();
  cpu::ThreadPool pool(threads);
  const size_t bytes = cpu::packed_bytes(form, n, parts[0]->k());
  std::vector<char> memory(bytes + 64, fill);
  char* place = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  PackedMatrix out;
  RoundingSums rounding;
  ES_CHECK(cpu::pack(pool, parts, form, place, out, rounding).ok());
  return {place, place + bytes};
}

void check_shape(BlockType type, int n, int k, test::Random& random) {
  const std::vector<uint8_t> bytes = random_rows(type, n, k, random);
  // One byte further on: no type's values are aligned there.
  std::vector<uint8_t> moved(bytes.size() + 1);
  std::memcpy(moved.data() + 1, bytes.data(), bytes.size());
  const int cut = n / 3, rest = n - cut;
  const BlockReader whole("", type, bytes.data(), n, k), unaligned("", type, moved.data() + 1, n, k);
  const BlockReader first("", type, bytes.data(), cut, k), second("", type, bytes.data() + size_t(cut) * row_bytes(type, k), rest, k);
  const WeightReader* one[] = {&whole};
  const WeightReader* other[] = {&unaligned};
  const WeightReader* two[] = {&first, &second};
  for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
    CanonicalForm form = cpu::packed_form(one, precision);
    for (bool minimums : {false, true}) {
      form.has_minimums |= minimums && precision != Precision::fp16;
      const std::vector<char> expected = packed(one, form, 1, 0);
      ES_CHECK(packed(one, form, 3, char(0xee)) == expected);
      ES_CHECK(packed(other, form, 2, char(0x55)) == expected);
      ES_CHECK(packed(two, form, 1, char(0xee)) == expected);
    }
  }
}

// Row r of a binary16 matrix in the tile layout.
void check_places(test::Random& random) {
  const int n = 50, k = 21;
  const std::vector<uint8_t> bytes = random_rows(BlockType::f16, n, k, random);
  const BlockReader reader("", BlockType::f16, bytes.data(), n, k);
  const WeightReader* parts[] = {&reader};
  const CanonicalForm form = cpu::packed_form(parts, Precision::fp16);
  const std::vector<char> tiles = packed(parts, form, 2, char(0xee));
  const size_t tile_bytes = tiles.size() / 4;
  for (int row = 0; row < 64; ++row) {
    for (int i = 0; i < k; ++i) {
      uint16_t stored = 0, found;
      if (row < n) std::memcpy(&stored, &bytes[size_t(row * k + i) * 2], 2);
      std::memcpy(&found, &tiles[size_t(row / 16) * tile_bytes + size_t(i * 16 + row % 16) * 2], 2);
      ES_CHECK(found == stored);
    }
  }
}

void refuses_what_is_not_finite(test::Random& random) {
  const int n = 40, k = 64;
  for (size_t shift : {size_t(0), size_t(1)}) {
    for (int at : {0, n * k / 2 + 3, n * k - 1}) {
      std::vector<uint8_t> bytes = random_rows(BlockType::f16, n, k, random);
      const uint16_t infinity = 0xfc00;
      std::memcpy(&bytes[size_t(at) * 2], &infinity, 2);
      bytes.insert(bytes.begin(), shift, uint8_t(0));
      const BlockReader reader("layers.3.q", BlockType::f16, bytes.data() + shift, n, k);
      const WeightReader* parts[] = {&reader};
      for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
        cpu::ThreadPool pool(2);
        const CanonicalForm form = cpu::packed_form(parts, precision);
        std::vector<char> memory(cpu::packed_bytes(form, n, k));
        PackedMatrix out;
        RoundingSums rounding;
        const Status status = cpu::pack(pool, parts, form, memory.data(), out, rounding);
        ES_CHECK(status.code() == Code::invalid_file && status.message().find("layers.3.q") != std::string::npos);
      }
    }
  }
}

}  // namespace

int main() {
  test::Random random(5);
  for (BlockType type : {BlockType::f32, BlockType::f16, BlockType::bf16}) {
    for (const auto& [n, k] : {std::pair{37, 40}, {160, 96}, {3, 7}, {48, 5000}}) check_shape(type, n, k, random);
  }
  for (BlockType type : {BlockType::q4_0, BlockType::q4_1, BlockType::q5_0, BlockType::q8_0, BlockType::q4_k, BlockType::q5_k}) {
    for (const auto& [n, k] : {std::pair{37, 256}, {160, 512}}) check_shape(type, n, k, random);
  }
  check_places(random);
  refuses_what_is_not_finite(random);
  return test::failures ? 1 : 0;
}
