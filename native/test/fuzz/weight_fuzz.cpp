// Fuzz target of the weight readers: storage, shapes, types and contents that don't agree.
// weight_fuzz [CASES] [SEED]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "quant/weight_reader.h"
#include "test/stored_builder.h"

namespace {

using namespace edgeshift;
using test::Random;

constexpr const char* kTypes[] = {"f32",  "f16",  "bf16", "i8",   "i16",    "i32",    "f8_e4m3", "q4_0",   "q4_1",   "q5_0",
                                  "q5_1", "q8_0", "q2_k", "q3_k", "q4_k",   "q5_k",   "q6_k",    "iq1_s",  "iq1_m",  "iq2_xxs",
                                  "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0", "mxfp4", "nvfp4", "?"};

Storage random_storage(Random& r) {
  static const int kBits[] = {2, 3, 4, 8, 4, 8, 1, 5};
  static const int kGroups[] = {0, 8, 32, 64, 128, 31, 1 << 24};
  Storage s;
  s.method = Method(1 + r.below(4));
  s.bits = s.method == Method::int_quantized ? 8 : s.method == Method::awq ? 4 << r.below(2) : kBits[r.below(8)];
  if (s.method == Method::pack_quantized) s.bits = r.below(2) ? 4 : 8;
  s.group_size = kGroups[r.below(7)];
  s.version = AwqVersion(r.below(3));
  s.zero_points_minus_one = r.below(2);
  s.symmetric = r.below(2);
  return s;
}

// A valid matrix, then maybe a few changes to it.
void mutate(WeightSource& s, std::deque<std::vector<uint8_t>>& bytes, Random& r) {
  TensorBytes* tensors[] = {&s.codes, &s.scales, &s.zero_points, &s.group_index};
  for (int left = r.below(4); left > 0; --left) {
    TensorBytes& t = *tensors[r.below(4)];
    if (!t.data) continue;
    std::vector<uint8_t>& data = *std::find_if(bytes.begin(), bytes.end(), [&](const auto& b) { return b.data() == t.data; });
    switch (r.below(7)) {
      case 0: t.type = kTypes[r.below(std::size(kTypes))]; break;
      case 1: t.shape[size_t(r.below(int(t.shape.size())))] = r.below(200); break;
      case 2: t.bytes = size_t(r.below(int(t.bytes) + 1)); break;  // never more than there is: files are mapped whole
      case 3: t.data = nullptr; break;
      case 4: t.shape[0] = r.below(2) ? -1 : INT64_MAX; break;
      default: data[size_t(r.below(int(data.size())))] = uint8_t(r.bits());
    }
  }
  if (r.below(8) == 0) s.storage = random_storage(r);
}

void exercise(const WeightSource& source, int n, int k) {
  Result<std::unique_ptr<WeightReader>> reader = open_weight(source, n, k);
  if (!reader.ok()) {
    if (reader.status().message().empty()) std::abort();
    return;
  }
  CanonicalStorage out;
  std::vector<float> floats(size_t(n) * size_t(k));
  const int cut = n / 2;
  (void)reader.value()->dequantize(cut, n, floats.data());
  for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
    (void)reader.value()->read(0, cut, reader.value()->form(precision), out);
    (void)reader.value()->read(cut, n, reader.value()->form(precision), out);
  }
}

void quantized_case(Random& r) {
  static const int kRows[] = {32, 32, 64, 96}, kInputs[] = {32, 64, 128, 96};
  const Storage storage = random_storage(r);
  const int n = kRows[r.below(4)] >> r.below(2), k = kInputs[r.below(4)];
  const bool whole = n * storage.bits % 32 == 0 && k * storage.bits % 32 == 0;
  if (!whole || (storage.method == Method::awq && (k % 64 != 0 || (storage.bits == 8 && storage.version != AwqVersion::gemm)))) return;
  test::Stored stored = test::StoredBuilder(storage, n, k, r.below(2), r.below(2), r).take();
  mutate(stored.source, stored.bytes, r);
  exercise(stored.source, n, k);
}

// Random bytes as values of any plain type, or as 8-bit floats.
void plain_case(Random& r) {
  WeightSource source;
  source.slot = "test";
  const int n = 1 + r.below(9), k = r.below(3) ? 256 * (1 + r.below(2)) : 1 + r.below(300);
  const char* type = kTypes[r.below(std::size(kTypes))];
  Result<BlockType> block = parse_block_type(type);
  size_t bytes = size_t(n) * size_t(k);
  if (block.ok() && k % block_weights(block.value()) == 0) bytes = size_t(n) * row_bytes(block.value(), k);
  if (r.below(16) == 0) bytes -= 1;
  std::vector<uint8_t> data(bytes), scales(size_t(r.below(2) ? n : 1) * 2);
  for (uint8_t& b : data) b = uint8_t(r.bits());
  for (uint8_t& b : scales) b = uint8_t(r.bits());
  source.values = {type, {n, k}, data.data(), data.size()};
  if (r.below(4) == 0) {
    source.storage.method = Method::float_quantized;
    if (r.below(2)) {
      source.storage.block_rows = 1 + r.below(5), source.storage.block_inputs = 1 + r.below(2) * 127;
      const int down = (n + source.storage.block_rows - 1) / source.storage.block_rows;
      const int across = (k + source.storage.block_inputs - 1) / source.storage.block_inputs;
      scales.resize(size_t(down) * size_t(across) * 2 - (r.below(8) == 0 ? 2 : 0), 0x3c);
    }
    source.codes = {"f8_e4m3", {n, k}, data.data(), data.size()};
    source.scales = {"bf16", {int64_t(scales.size() / 2)}, scales.data(), scales.size()};
  }
  exercise(source, n, k);
}

}  // namespace

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::atol(argv[1]) : 20000;
  Random random(uint64_t(argc > 2 ? std::atol(argv[2]) : 1));
  for (long i = 0; i < cases; ++i) {
    if (random.below(2)) quantized_case(random);
    else plain_case(random);
  }
  std::printf("%ld cases\n", cases);
  return 0;
}
