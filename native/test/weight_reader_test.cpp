// Every stored format against codes that are known, packed one at a time; what is refused.
#include <cmath>
#include <cstdio>
#include <string>

#include "cpu/ops.h"
#include "quant/weight_reader.h"
#include "test/check.h"
#include "test/stored_builder.h"

using namespace edgeshift;
using test::Stored;

namespace {

struct Case {
  const char* name;
  Storage storage;
  int n = 32, k = 128;
  bool act_order = false, symmetric = false;
};

Storage stored(Method method, int bits, int group) {
  Storage s;
  s.method = method;
  s.bits = bits;
  s.group_size = group;
  return s;
}

std::vector<Case> cases() {
  std::vector<Case> out;
  for (int bits : {2, 3, 4, 8}) {
    for (int group : {32, 64, 128, 0}) {
      for (bool minus_one : {false, true}) {
        Storage s = stored(Method::gptq, bits, group);
        s.zero_points_minus_one = minus_one;
        out.push_back({"gptq", s});
        out.push_back({"gptq act-order", s, 64, 256, true});
        out.push_back({"gptq symmetric", s, 160, 96, false, true});
      }
    }
  }
  for (int bits : {4, 8}) out.push_back({"gptq act-order, groups of 16", stored(Method::gptq, bits, 16), 64, 256, true});
  for (AwqVersion version : {AwqVersion::gemm, AwqVersion::gemv, AwqVersion::gemv_fast}) {
    for (int group : {32, 64, 128}) {
      Storage s = stored(Method::awq, 4, group);
      s.version = version;
      out.push_back({version == AwqVersion::gemm ? "awq gemm" : version == AwqVersion::gemv ? "awq gemv" : "awq gemv_fast", s, 72, 256});
    }
  }
  for (int group : {32, 128, 0}) out.push_back({"awq gemm", stored(Method::awq, 8, group), 72, 256});
  for (int bits : {4, 8}) {
    for (int group : {32, 64, 0}) {
      Storage s = stored(Method::pack_quantized, bits, group);
      out.push_back({"pack-quantized asymmetric", s, 19, 192});
      out.push_back({"pack-quantized act-order", s, 24, 192, true});
      s.symmetric = true;
      out.push_back({"pack-quantized", s, 17, 192, false, true});
      if (group == 0) out.push_back({"pack-quantized, odd inputs", s, 17, 43, false, true});
    }
  }
  Storage s = stored(Method::int_quantized, 8, 0);
  out.push_back({"int-quantized asymmetric", s, 20, 96});
  s.symmetric = true;
  out.push_back({"int-quantized", s, 20, 100, false, true});
  return out;
}

double canonical_value(const CanonicalStorage& s, int row, int j) {
  const int groups = (s.k + s.form.group - 1) / s.form.group, padded = groups * s.form.group;
  const size_t at = size_t(row * groups + j / s.form.group), place = size_t(row * padded + j);
  const int code = s.form.precision == Precision::int8 ? int8_t(s.codes[place]) : s.codes[place / 2] >> (place % 2 * 4) & 15;
  return double(code) * double(to_float(s.scales[at])) + (s.form.has_minimums ? double(to_float(s.minimums[at])) : 0);
}

// Rows are read in two ranges, so that ranges don't depend on each other.
void check_floats(const Case& c, const Stored& s, const WeightReader& reader) {
  std::vector<float> out(size_t(s.n * s.k));
  const int cut = s.n / 3;
  ES_CHECK(reader.dequantize(0, cut, out.data()).ok() && reader.dequantize(cut, s.n, out.data() + cut * s.k).ok());
  const bool fast = s.source.storage.method == Method::awq && s.source.storage.version == AwqVersion::gemv_fast;
  for (int row = 0; row < s.n; ++row) {
    for (int i = 0; i < s.k; ++i) {
      // gemv_fast's file holds -zero * scale rounded to binary16.
      const double allowed = fast ? 16 * 0.11 / 2048 : 0;
      if (std::fabs(double(out[size_t(row * s.k + i)]) - s.value(row, i)) <= allowed) continue;
      return test::report(__FILE__, __LINE__, std::string(c.name) + " " + std::to_string(s.bits) + " bits: row " + std::to_string(row) + ", input " + std::to_string(i));
    }
  }
}

void check_canonical(const Case& c, const Stored& s, const WeightReader& reader, Precision precision) {
  const CanonicalForm form = reader.form(precision);
  CanonicalStorage storage;
  ES_CHECK(reader.read(0, s.n, form, storage).ok());
  const std::span<const int32_t> order = reader.order(precision);
  // Roundings of the minimum to binary16: half an ulp of up to 255 scales.
  const double allowed = (s.bits == 8 ? 128 : 16) * 0.11 / 2048;
  for (int row = 0; row < s.n; ++row) {
    for (int j = 0; j < s.k; ++j) {
      const double expected = s.value(row, order.empty() ? j : order[size_t(j)]);
      if (std::fabs(canonical_value(storage, row, j) - expected) <= (form.has_minimums ? allowed : 0)) continue;
      return test::report(__FILE__, __LINE__, std::string(c.name) + " at rung " + std::to_string(int(precision)));
    }
  }
}

// Codes that are not kept are rounded: in the order of the inputs, or in the one that the reader tells.
void check_rounded(const Case& c, const Stored& s, const WeightReader& reader, Precision precision) {
  CanonicalStorage storage;
  ES_CHECK(reader.read(0, s.n, reader.form(precision), storage).ok());
  const std::span<const int32_t> order = reader.order(precision);
  double squares = 0, errors = 0;
  for (int row = 0; row < s.n; ++row) {
    for (int j = 0; j < s.k; ++j) {
      const double expected = s.value(row, order.empty() ? j : order[size_t(j)]), error = canonical_value(storage, row, j) - expected;
      squares += expected * expected, errors += error * error;
    }
  }
  if (std::sqrt(errors / squares) < (precision == Precision::int4 ? 0.15 : 0.01)) return;
  test::report(__FILE__, __LINE__, std::string(c.name) + " rounded to rung " + std::to_string(int(precision)));
}

void check_case(const Case& c, test::Random& random) {
  const Stored s = test::StoredBuilder(c.storage, c.n, c.k, c.act_order, c.symmetric, random).take();
  Result<std::unique_ptr<WeightReader>> reader = open_weight(s.source, s.n, s.k);
  if (!reader.ok()) return test::report(__FILE__, __LINE__, std::string(c.name) + ": " + reader.status().message());
  check_floats(c, s, *reader.value());
  const Precision width = reader.value()->width();
  const bool whole = s.group % 32 == 0 || s.group == s.k;
  ES_CHECK(width == (!whole ? Precision::fp16 : s.bits <= 4 ? Precision::int4 : Precision::int8));
  for (const Precision precision : {Precision::int8, Precision::int4}) {
    const bool kept = whole && precision <= width;
    ES_CHECK(kept == (reader.value()->kept(precision) != nullptr));
    kept ? check_canonical(c, s, *reader.value(), precision) : check_rounded(c, s, *reader.value(), precision);
  }
}

// What pack_awq() of GPTQModel 7.7.0 makes of random codes, and its dequantize_gemm() of them, which rounds to binary16.
void reads_what_gptqmodel_packs() {
  static const uint32_t kWords[] = {
      0x83f9986a, 0x1500c8b8, 0x6bca93fd, 0x958aa9f9,
      0x94e0a677, 0x8ea75dac, 0xda511af8, 0xbf024296,
      0x5ab3813c, 0x616e6845, 0xfb986a9d, 0xabf8073e,
      0xb04f7b21, 0x315e1425, 0xf4ce7f95, 0x0036771c};
  static const uint32_t kZeros[] = {
      0x7412e9c0, 0xb8b8a5bf, 0xaefda5c7, 0x55017121,
      0xebca7775, 0xdb63e47c, 0xa050ff90, 0x4b12f290};
  static const uint16_t kScales[] = {
      0x3131, 0x3a35, 0x3622, 0x3405, 0x38ae, 0x39aa, 0x386c, 0x3533, 0x38be, 0x34e8, 0x354b, 0x3507, 0x3a62, 0x30d1, 0x39bd, 0x3a13,
      0x315e, 0x2fb2, 0x3158, 0x2cee, 0x3b5c, 0x3b87, 0x36e2, 0x3bc0, 0x3922, 0x20dd, 0x2971, 0x3423, 0x1527, 0x3454, 0x3915, 0x37d2};
  static const float kWeights[] = {
      -13.953125f, -62.84375f, 88.5625f, 3.767578125f, -4.09375f, 24.78125f, -101.6875f, -52.96875f,
      32.0f, -5.51953125f, -16.875f, -21.046875f, 172.375f, 8.4296875f, 98.25f, 48.59375f,
      -11.84375f, -51.96875f, 78.9375f, 8.0390625f, -11.1171875f, -50.96875f, -9.3984375f, -13.6484375f,
      29.046875f, -42.625f, -56.90625f, 13.828125f, 93.375f, -7.07421875f, 0.71728515625f, 80.5f,
      -9.5625f, 1.2021484375f, -3.83984375f, -11.171875f, -50.59375f, -116.6875f, 4.73046875f, -118.1875f,
      8.34375f, -1.4150390625f, 3.060546875f, 23.53125f, -0.1031494140625f, -63.5625f, 146.125f, 46.9375f,
      -14.0859375f, 0.48095703125f, -20.546875f, -4.54296875f, -80.0625f, -195.75f, -2.150390625f, -164.75f,
      3.20703125f, -1.2158203125f, 5.35546875f, 21.71875f, -0.1458740234375f, -33.28125f, 22.875f, -36.65625f};
  constexpr int kInputs = 4, kOutputs = 16;
  auto tensor = [](const char* type, std::vector<int64_t> shape, const auto& values) {
    return TensorBytes{type, std::move(shape), reinterpret_cast<const uint8_t*>(values), sizeof values};
  };
  WeightSource source;
  source.slot = "test";
  source.storage = stored(Method::awq, 8, 2);
  source.codes = tensor("i32", {kInputs, kOutputs / 4}, kWords);
  source.zero_points = tensor("i32", {2, kOutputs / 4}, kZeros);
  source.scales = tensor("f16", {2, kOutputs}, kScales);
  Result<std::unique_ptr<WeightReader>> reader = open_weight(source, kOutputs, kInputs);
  if (!reader.ok()) return test::report(__FILE__, __LINE__, reader.status().message());
  float out[kOutputs * kInputs];
  ES_CHECK(reader.value()->dequantize(0, kOutputs, out).ok());
  for (int row = 0; row < kOutputs; ++row) {
    for (int i = 0; i < kInputs; ++i) {
      const float expected = kWeights[i * kOutputs + row];
      ES_CHECK(std::fabs(out[row * kInputs + i] - expected) <= std::fabs(expected) / 2048);
    }
  }
}

// Older writers of 3-bit version 1 subtract 1 from each code: symmetric files are recognized.
void reads_old_three_bits(test::Random& random) {
  Storage storage = stored(Method::gptq, 3, 32);
  Stored s = test::StoredBuilder(storage, 32, 64, false, true, random).take();
  const uint32_t threes[] = {0xdb6db6dbu, 0xb6db6db6u, 0x6db6db6du};
  for (size_t w = 0; w < s.source.zero_points.bytes / 4; ++w) {
    std::memcpy(const_cast<uint8_t*>(s.source.zero_points.data) + w * 4, &threes[w % 3], 4);
  }
  s.source.storage.zero_points_minus_one = true;
  check_floats({"gptq, old", s.source.storage}, s, *open_weight(s.source, s.n, s.k).value());
}

// Groups of unequal size: floats only.
void reads_uneven_groups(test::Random& random) {
  Stored s = test::StoredBuilder(stored(Method::gptq, 4, 32), 32, 64, true, false, random).take();
  uint8_t* index = const_cast<uint8_t*>(s.source.group_index.data);
  for (int i = 0; i < 48; ++i) index[i * 4] = 0, s.group_of[size_t(i)] = 0;
  Result<std::unique_ptr<WeightReader>> reader = open_weight(s.source, s.n, s.k);
  ES_CHECK(reader.ok() && reader.value()->width() == Precision::fp16 && reader.value()->order(Precision::int8).empty());
  check_floats({"uneven groups", s.source.storage}, s, *reader.value());
}

void refuses() {
  test::Random random(5);
  auto expect = [&](auto change, Code code, const std::string& part) {
    Stored s = test::StoredBuilder(stored(Method::gptq, 4, 32), 32, 64, true, false, random).take();
    change(s);
    Result<std::unique_ptr<WeightReader>> reader = open_weight(s.source, s.n, s.k);
    Status status = reader.status();
    CanonicalStorage out;
    if (reader.ok()) status = reader.value()->read(0, s.n, reader.value()->form(Precision::int4), out);
    if (status.code() == code && status.message().find(part) != std::string::npos) return;
    test::report(__FILE__, __LINE__, "got: " + status.message() + "\n  wanted: " + part);
  };
  auto index = [](Stored& s, int at, int32_t value) {
    std::memcpy(const_cast<uint8_t*>(s.source.group_index.data) + at * 4, &value, 4);
  };
  auto scale = [](Stored& s, uint16_t bits) { std::memcpy(const_cast<uint8_t*>(s.source.scales.data) + 6, &bits, 2); };
  expect([&](Stored& s) { index(s, 5, 9); }, Code::invalid_file, "group 9 of 2 at input 5");
  expect([&](Stored& s) { index(s, 0, -1); }, Code::invalid_file, "group -1 of 2 at input 0");
  expect([&](Stored& s) { index(s, 63, INT32_MAX); }, Code::invalid_file, "group 2147483647 of 2");
  expect([&](Stored& s) { scale(s, 0x7e00); }, Code::invalid_file, "not finite");
  expect([&](Stored& s) { scale(s, 0xfc00); }, Code::invalid_file, "not finite");
  expect([&](Stored& s) { scale(s, 0x7bff); }, Code::unsupported, "outside binary16");
  expect([](Stored& s) { s.source.codes.shape[0] = 7; }, Code::invalid_file, "codes has shape [7, 32], not [8, 32]");
  expect([](Stored& s) { s.source.codes.bytes -= 1; }, Code::invalid_file, "its shape needs 1024");
  expect([](Stored& s) { s.source.zero_points.shape[1] = 3; }, Code::invalid_file, "zero points has shape [2, 3]");
  expect([](Stored& s) { s.source.scales.type = "i32"; }, Code::invalid_file, "scales has type");
  expect([](Stored& s) { s.source.scales.data = nullptr; }, Code::invalid_file, "scales is missing");
  expect([](Stored& s) { s.source.group_index.shape = {63}; }, Code::invalid_file, "group index has shape [63], not [64]");
  expect([](Stored& s) { s.source.storage.bits = 5; }, Code::unsupported, "5 bits");
  expect([](Stored& s) { s.source.storage.group_size = -7; }, Code::invalid_file, "group size -7");
}

// bf16 and float values that binary16 cannot hold.
void refuses_large_values() {
  std::vector<float> values(64, 1.0f);
  WeightSource source;
  source.slot = "layers.0.q";
  source.values = {"f32", {2, 32}, reinterpret_cast<const uint8_t*>(values.data()), 256};
  auto reader = std::move(open_weight(source, 2, 32).value());
  CanonicalStorage out;
  auto read = [&](Precision precision) { return reader->read(0, 2, reader->form(precision), out); };
  values[40] = 65504;
  ES_CHECK(read(Precision::fp16).ok());
  values[40] = -70000;
  ES_CHECK(read(Precision::fp16).code() == Code::unsupported && read(Precision::int8).ok());
  values[40] = INFINITY;
  ES_CHECK(read(Precision::fp16).code() == Code::invalid_file && read(Precision::int8).code() == Code::invalid_file);
}

// A block's scale, also where the last blocks are cut off; codes 0x38 and 0xc0 are 1 and -2.
void reads_float_blocks() {
  const int n = 5, k = 70;
  std::vector<uint8_t> codes(size_t(n * k), 0x38);
  codes[size_t(4 * k + 69)] = 0xc0;
  const std::vector<float> scales = {1, 2, 3, 4, 5, 6, 7, 8, 9};  // 2 rows by 32 inputs each
  WeightSource source;
  source.slot = "layers.0.q";
  source.storage.method = Method::float_quantized;
  source.storage.block_rows = 2, source.storage.block_inputs = 32;
  source.codes = {"f8_e4m3", {n, k}, codes.data(), codes.size()};
  source.scales = {"f32", {3, 3}, reinterpret_cast<const uint8_t*>(scales.data()), 36};
  auto reader = std::move(open_weight(source, n, k).value());
  std::vector<float> out(size_t(n * k));
  ES_CHECK(reader->dequantize(0, 3, out.data()).ok() && reader->dequantize(3, n, out.data() + 3 * k).ok());
  for (int row = 0; row < n; ++row) {
    for (int i = 0; i < k; ++i) {
      const float code = row == 4 && i == 69 ? -2.0f : 1.0f;
      ES_CHECK(out[size_t(row * k + i)] == code * scales[size_t(row / 2 * 3 + i / 32)]);
    }
  }
  source.scales.bytes = 32;
  const Status short_of = open_weight(source, n, k).status();
  ES_CHECK(short_of.code() == Code::invalid_file && short_of.message().find("8 scales") != std::string::npos);
}

}  // namespace

int main() {
  test::Random random(3);
  for (const Case& c : cases()) check_case(c, random);
  reads_old_three_bits(random);
  reads_what_gptqmodel_packs();
  reads_uneven_groups(random);
  reads_float_blocks();
  refuses();
  refuses_large_values();
  std::printf("%zu stored forms\n", cases().size());
  return test::failures ? 1 : 0;
}
