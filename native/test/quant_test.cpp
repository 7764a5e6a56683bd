// File blocks to float and to the canonical forms; packing straight from file blocks.
#include <cmath>
#include <cstring>

#include "cpu/ops.h"
#include "quant/plain_reader.h"
#include "ops/reference/reference.h"
#include "quant/canonical.h"
#include "quant/half.h"
#include "test/check.h"
#include "test/random.h"

using namespace edgeshift;

namespace {

constexpr BlockType kTypes[] = {BlockType::f32,  BlockType::f16,  BlockType::bf16, BlockType::q4_0,
                                BlockType::q4_1, BlockType::q5_0, BlockType::q5_1, BlockType::q8_0};

// Random blocks whose fp16 scales and minimums are sane.
std::vector<uint8_t> random_rows(BlockType type, int rows, int k, test::Random& random) {
  std::vector<uint8_t> out(size_t(rows) * row_bytes(type, k));
  for (uint8_t& byte : out) byte = uint8_t(random.bits());
  size_t step = size_t(block_bytes(type));
  for (size_t at = 0; at < out.size(); at += step) {
    float value = random.normal();
    uint16_t half = to_f16(value * 0.1f).bits, minimum = to_f16(random.normal()).bits;
    uint32_t bits = std::bit_cast<uint32_t>(value);
    if (type == BlockType::f32) std::memcpy(&out[at], &bits, 4);
    else if (type == BlockType::bf16) out[at] = uint8_t(bits >> 16), out[at + 1] = uint8_t(bits >> 24);
    else std::memcpy(&out[at], &half, 2);
    if (type == BlockType::q4_1 || type == BlockType::q5_1) std::memcpy(&out[at + 2], &minimum, 2);
  }
  return out;
}

void check_half() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    float value = to_float(f16{uint16_t(bits)});
    if (std::isnan(value)) continue;
    ES_CHECK(to_f16(value).bits == bits);
    // Halfway to the next value rounds to even, a little more rounds up.
    float next = to_float(f16{uint16_t(bits + 1)});
    if ((bits & 0x7fff) >= 0x7bff || std::isnan(next)) continue;
    float middle = value / 2 + next / 2;
    ES_CHECK(to_f16(middle).bits == bits + (bits & 1));
    ES_CHECK(to_f16(std::nextafter(middle, next)).bits == bits + 1);
  }
  ES_CHECK(to_float(f16{0x3c00}) == 1.0f && to_float(f16{0x0001}) == 0x1p-24f && std::isinf(to_float(f16{0xfc00})));
  ES_CHECK(to_f16(65519.0f).bits == 0x7bff && to_f16(65520.0f).bits == 0x7c00 && std::isnan(to_float(to_f16(NAN))));
}

// One block of each type, by hand.
void check_blocks() {
  uint8_t block[34] = {};
  float out[32];
  uint16_t two = to_f16(2.0f).bits, half = to_f16(0.5f).bits;
  std::memcpy(block, &two, 2);
  block[2] = 0x3f;  // q4_0: weight 0 has code 15, weight 16 code 3
  ES_CHECK(dequantize_rows(BlockType::q4_0, block, 1, 32, out).ok() && out[0] == 14 && out[16] == -10 && out[1] == -16);
  ES_CHECK(dequantize_rows(BlockType::q8_0, block, 1, 32, out).ok() && out[0] == 126 && out[1] == 0);
  std::memcpy(block + 2, &half, 2);
  block[4] = 0x3f;
  ES_CHECK(dequantize_rows(BlockType::q4_1, block, 1, 32, out).ok() && out[0] == 30.5f && out[16] == 6.5f && out[1] == 0.5f);
  block[4] = 1;     // q5_1: fifth bit of weight 0
  block[6] = 1;     // and of weight 16
  block[8] = 0x3f;
  ES_CHECK(dequantize_rows(BlockType::q5_1, block, 1, 32, out).ok() && out[0] == 62.5f && out[16] == 38.5f);
  uint8_t five[22] = {};
  std::memcpy(five, &two, 2);
  five[2] = 2;
  five[7] = 0x10;
  ES_CHECK(dequantize_rows(BlockType::q5_0, five, 1, 32, out).ok() && out[1] == 0 && out[17] == -30 && out[0] == -32);
  ES_CHECK(!dequantize_rows(BlockType::q8_0, block, 1, 33, out).ok());
  ES_CHECK(parse_block_type("q5_1").value() == BlockType::q5_1 && parse_block_type("q9_k").status().code() == Code::unsupported);
}

// Exact where promised; else at most half a step off (8 bits) and little worse than the range allows (4 bits).
void check_form(BlockType type, Precision target, int group) {
  test::Random random(uint64_t(type) * 7 + uint64_t(target));
  const int rows = 9, k = block_weights(type) == 32 ? 192 : 172;
  std::vector<uint8_t> data = random_rows(type, rows, k, random);
  std::vector<float> expected(size_t(rows) * size_t(k));
  ES_CHECK(dequantize_rows(type, data.data(), rows, k, expected.data()).ok());
  CanonicalStorage storage;
  CanonicalForm form = canonical_form(type, target, k, group);
  ES_CHECK(to_canonical(type, data.data(), rows, k, form, storage).ok());
  CanonicalMatrix m = storage.view();
  double error = 0, size = 0;
  for (int row = 0; row < rows; ++row) {
    for (int j = 0; j < k; ++j) {
      double w = expected[size_t(row) * size_t(k) + size_t(j)], miss = ref::weight(m, row, j) - w;
      error += miss * miss;
      size += w * w;
      double step = target == Precision::fp16 ? std::fabs(w) * 0x1p-11 + 1e-7 : fits_exactly(type, target) ? std::fabs(w) * 1e-6 + 1e-6 : INFINITY;
      ES_CHECK(std::fabs(miss) <= step);
    }
  }
  double allowed = target == Precision::int4 ? 0.12 : target == Precision::int8 ? 0.01 : 0.001;
  ES_CHECK(std::sqrt(error / size) < allowed);
}

// A q4_0 part beside a q4_1 one, and a source that gets minimums although it has none: stacked, packed, embedded.
void check_stacked() {
  test::Random random(4);
  cpu::ThreadPool pool(2);
  const int k = 64;
  std::vector<uint8_t> a = random_rows(BlockType::q4_0, 5, k, random), b = random_rows(BlockType::q4_1, 20, k, random), c = random_rows(BlockType::f32, 18, k, random);
  BlockReader first("a", BlockType::q4_0, a.data(), 5, k), second("b", BlockType::q4_1, b.data(), 20, k);
  BlockReader third("c", BlockType::f32, c.data(), 18, k);
  const WeightReader* parts[] = {&first, &second, &third};
  std::vector<float> expected(43 * k), out(43 * k);
  float* to = expected.data();
  for (const WeightReader* part : parts) {
    ES_CHECK(part->dequantize(0, part->n(), to).ok());
    to += part->n() * k;
  }
  for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
    CanonicalForm form = cpu::packed_form(parts, precision);
    Result<cpu::Buffer> memory = cpu::Buffer::allocate(cpu::packed_bytes(form, 43, k));
    PackedMatrix packed;
    RoundingSums rounding;
    ES_CHECK(cpu::pack(pool, parts, form, memory.value().data(), packed, rounding).ok());
    // Only the floats are rounded, and not at fp16.
    double squares = 0;
    for (int i = 25 * k; i < 43 * k; ++i) squares += double(expected[size_t(i)]) * expected[size_t(i)];
    ES_CHECK(std::fabs(rounding.weights - (precision == Precision::fp16 ? 0 : squares)) < 1e-4 * squares);
    ES_CHECK((rounding.error > 0) == (precision != Precision::fp16));
    std::vector<int32_t> tokens;
    for (int i = 0; i < 43; ++i) tokens.push_back(i);
    ES_CHECK(cpu::embed(pool, {tokens.data(), 43, &packed, out.data()}).ok());
    for (int i = 0; i < 43 * k; ++i) {
      bool exact = i < 25 * k;
      double allowed = precision == Precision::fp16 ? 0x1p-11 : exact ? 2e-3 : precision == Precision::int8 ? 0.02 : 0.3;
      ES_CHECK(std::fabs(out[size_t(i)] - expected[size_t(i)]) <= allowed * (1 + std::fabs(expected[size_t(i)])));
    }
  }
  BlockReader narrow("b", BlockType::q4_1, b.data(), 20, 32);
  parts[1] = &narrow;
  PackedMatrix packed;
  RoundingSums rounding;
  ES_CHECK(cpu::pack(pool, parts, {Precision::fp16, 0, false}, nullptr, packed, rounding).code() == Code::invalid_argument);
}

}  // namespace

int main() {
  check_half();
  check_blocks();
  for (BlockType type : kTypes) {
    for (Precision target : {Precision::fp16, Precision::int8, Precision::int4}) {
      for (int group : {32, 64, 0}) check_form(type, target, group);
    }
  }
  check_stacked();
  return test::failures ? 1 : 0;
}
