// Conversion of stored matrices on the device against WeightReader::read on the CPU: the same bytes.
#include "cuda/stored.h"

#include <bit>
#include <cstring>

#include "device_test.h"
#include "test/stored_builder.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

struct Converted {
  std::vector<uint8_t> codes;
  std::vector<f16> scales, minimums;
  bool bad;
};

Converted on_device(const cuda::StoredPlan& plan, const CanonicalStorage& like, const cuda::Launch& on) {
  std::vector<uint8_t> raw(plan.bytes());
  size_t at = 0;
  for (const std::span<const uint8_t> tensor : plan.tensors()) {
    if (!tensor.empty()) std::memcpy(raw.data() + at, tensor.data(), tensor.size());
    at += aligned(tensor.size());
  }
  const size_t bytes = like.codes.size() + like.values.size() * 2;
  cuda::Buffer from = upload(raw), codes, scales, minimums, bad = upload(std::vector<int32_t>{0});
  require(codes.allocate(bytes), "codes");
  require(scales.allocate(like.scales.size() * 2), "scales");
  require(minimums.allocate(like.minimums.size() * 2), "minimums");
  const cuda::CanonicalRows rows{plan.in_place() ? from.as<void>() : codes.as<void>(), scales.as<f16>(), like.minimums.empty() ? nullptr : minimums.as<f16>()};
  require(cuda::convert_stored(plan, from.as<char>(), rows, bad.as<int32_t>(), on), "convert_stored");
  return {download<uint8_t>(plan.in_place() ? from : codes, bytes), download<f16>(scales, like.scales.size()),
          download<f16>(minimums, like.minimums.size()), download<int32_t>(bad, 1)[0] != 0};
}

bool equal(const std::vector<f16>& a, const std::vector<f16>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 2) == 0;
}

void compare(const WeightSource& source, int n, int k, Precision precision, bool expect_bad, const std::string& what, const cuda::Launch& on, Checks& checks) {
  auto reader = open_weight(source, n, k);
  require(reader.status(), what.c_str());
  const CanonicalForm form = reader.value()->form(precision);
  const auto plan = cuda::plan_stored(*reader.value(), form);
  checks.below(plan ? 0 : 1, 0.5, what + " is planned");
  if (!plan) return;
  CanonicalStorage rows;
  const Status read = reader.value()->read(0, n, form, rows);
  checks.below(read.ok() != expect_bad ? 0 : 1, 0.5, what + " on the CPU");
  const Converted got = on_device(*plan, rows, on);
  checks.below(got.bad == expect_bad ? 0 : 1, 0.5, what + " is noticed");
  if (expect_bad) return;
  const void* codes = precision == Precision::fp16 ? static_cast<const void*>(rows.values.data()) : rows.codes.data();
  checks.below(std::memcmp(got.codes.data(), codes, got.codes.size()) == 0 ? 0 : 1, 0.5, what + ": codes");
  checks.below(equal(got.scales, rows.scales) ? 0 : 1, 0.5, what + ": scales");
  checks.below(equal(got.minimums, rows.minimums) ? 0 : 1, 0.5, what + ": minimums");
}

void compare_codes(const cuda::Launch& on, Checks& checks) {
  Random random(3);
  struct Case {
    const char* name;
    Method method;
    AwqVersion version;
    int bits;
    bool minus_one, symmetric;
  };
  const Case cases[] = {
      {"gptq 4", Method::gptq, AwqVersion::gemm, 4, false, false},  {"gptq 4 v1", Method::gptq, AwqVersion::gemm, 4, true, false},
      {"gptq 8", Method::gptq, AwqVersion::gemm, 8, true, false},   {"gptq 8 symmetric", Method::gptq, AwqVersion::gemm, 8, true, true},
       {"awq gemm", Method::awq, AwqVersion::gemm, 4, false, false},
      {"awq gemv", Method::awq, AwqVersion::gemv, 4, false, false}, {"packed 4", Method::pack_quantized, AwqVersion::gemm, 4, false, true},
      {"packed 8", Method::pack_quantized, AwqVersion::gemm, 8, false, false},
  };
  for (const Case& c : cases) {
    for (int group : {32, 128, 0}) {
      for (bool order : {false, true}) {
        if (order && (c.method == Method::awq || group == 0)) continue;
        Storage storage;
        storage.method = c.method;
        storage.version = c.version;
        storage.bits = c.bits;
        storage.group_size = group;
        storage.zero_points_minus_one = c.minus_one;
        storage.symmetric = c.symmetric;
        const int n = 72, k = 256;
        const Stored stored = StoredBuilder(storage, n, k, order, c.symmetric, random).take();
        const Precision precision = c.bits == 4 ? Precision::int4 : Precision::int8;
        compare(stored.source, n, k, precision, false, std::string(c.name) + ", group " + std::to_string(group) + (order ? ", act-order" : ""), on, checks);
      }
    }
  }
}

void compare_floats(const cuda::Launch& on, Checks& checks) {
  DeviceRandom random(4);
  const int n = 24, k = 40;
  for (const char* type : {"f16", "bf16"}) {
    for (bool bad : {false, true}) {
      std::vector<f16> values = random.halves(size_t(n) * k);
      if (type[0] == 'b') for (f16& v : values) v.bits = uint16_t(std::bit_cast<uint32_t>(half_value(v)) >> 16);
      if (bad) values[77].bits = 0x7fff;
      WeightSource source;
      source.slot = "test";
      source.shape = {n, k};
      source.values = {type, {n, k}, reinterpret_cast<const uint8_t*>(values.data()), values.size() * 2};
      compare(source, n, k, Precision::fp16, bad, std::string(type) + (bad ? " with a NaN" : ""), on, checks);
    }
  }
}

void compare_bad_scale(const cuda::Launch& on, Checks& checks) {
  Random random(5);
  Storage storage;
  storage.method = Method::gptq;
  storage.bits = 4;
  storage.group_size = 32;
  Stored stored = StoredBuilder(storage, 32, 64, false, false, random).take();
  std::vector<uint8_t> scales(stored.source.scales.data, stored.source.scales.data + stored.source.scales.bytes);
  scales[10] = 0, scales[11] = 0x7c;  // infinity
  stored.source.scales.data = scales.data();
  compare(stored.source, 32, 64, Precision::int4, true, "an infinite scale", on, checks);
}

}  // namespace

int main() {
  const cuda::Launch on = open_device();
  Checks checks;
  compare_codes(on, checks);
  compare_floats(on, checks);
  compare_bad_scale(on, checks);
  return checks.report("stored");
}
