// What the device tests share: random data, uploads, comparison with a double reference.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/buffer.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace edgeshift::test {

// Ends the test with a message: a test has nothing to recover.
inline void require(const Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.message().c_str());
  std::exit(1);
}

// A stream on device 0, or exit 77 (skipped) where there is none.
inline cuda::Launch open_device() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) std::exit(77);
  cuda::Launch on;
  auto traits = cuda::device_traits(0);
  require(traits.status(), "device_traits");
  on.device = traits.value();
  require(cuda::to_status(cudaStreamCreate(&on.stream), "stream"), "open");
  return on;
}

template <class T>
cuda::Buffer upload(const std::vector<T>& host) {
  cuda::Buffer buffer;
  require(buffer.allocate(host.size() * sizeof(T)), "upload");
  require(cuda::to_status(cudaMemcpy(buffer.as<void>(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "upload"),
          "upload");
  return buffer;
}

template <class T>
std::vector<T> download(const cuda::Buffer& buffer, size_t count) {
  require(cuda::to_status(cudaDeviceSynchronize(), "kernel"), "download");
  std::vector<T> host(count);
  require(cuda::to_status(cudaMemcpy(host.data(), buffer.as<void>(), count * sizeof(T), cudaMemcpyDeviceToHost), "download"),
          "download");
  return host;
}

inline float half_value(f16 v) { return __half2float(__ushort_as_half(v.bits)); }
inline f16 half_of(float v) { return {__half_as_ushort(__float2half_rn(v))}; }

class DeviceRandom {
 public:
  explicit DeviceRandom(uint64_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  uint32_t bits() { return uint32_t(engine_()); }
  std::vector<f16> halves(size_t count, float scale = 1) {
    std::vector<f16> v(count);
    for (f16& x : v) x = half_of(normal() * scale);
    return v;
  }
  std::vector<float> floats(size_t count, float scale = 1) {
    std::vector<float> v(count);
    for (float& x : v) x = normal() * scale;
    return v;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

// A random canonical matrix on host and device, its packed form, and its exact values.
struct TestMatrix {
  std::vector<double> values;  // [n, k]
  cuda::Buffer device_values, codes, scales, minimums, data;
  PackedMatrix packed;

  double row_dot(int row, const double* x) const {
    double sum = 0;
    for (int i = 0; i < packed.k; ++i) sum += values[size_t(row) * packed.k + i] * x[i];
    return sum;
  }
};

inline TestMatrix random_matrix(DeviceRandom& random, Precision precision, int n, int k, int group, cuda::RowOrder order) {
  TestMatrix m;
  CanonicalMatrix source;
  source.precision = precision;
  source.n = n;
  source.k = k;
  source.group = precision == Precision::fp16 ? 0 : group;
  m.values.resize(size_t(n) * k);
  if (precision == Precision::fp16) {
    std::vector<f16> values = random.halves(m.values.size(), 0.05f);
    for (size_t i = 0; i < values.size(); ++i) m.values[i] = half_value(values[i]);
    m.device_values = upload(values);
    source.values = m.device_values.as<f16>();
  } else {
    int padded = source.padded_k(), groups = padded / group;
    bool four = precision == Precision::int4;
    std::vector<uint8_t> codes(size_t(n) * padded / (four ? 2 : 1));
    std::vector<f16> scales(size_t(n) * groups), minimums(scales.size());
    for (f16& s : scales) s = half_of((0.5f + random.bits() % 1000 / 1000.0f) * (four ? 0.01f : 0.0006f));
    for (size_t i = 0; i < minimums.size(); ++i) minimums[i] = half_of(half_value(scales[i]) * (four ? -7.5f : 3) * random.normal());
    for (int row = 0; row < n; ++row)
      for (int i = 0; i < k; ++i) {
        size_t at = size_t(row) * padded + i;
        int code = four ? int(random.bits() % 16) : int(random.bits() % 256) - 128;
        if (four) codes[at / 2] |= uint8_t(code << (at % 2 * 4)); else codes[at] = uint8_t(code);
        size_t g = size_t(row) * groups + i / group;
        m.values[size_t(row) * k + i] = double(code) * half_value(scales[g]) + half_value(minimums[g]);
      }
    m.codes = upload(codes);
    m.scales = upload(scales);
    m.minimums = upload(minimums);
    source.codes = m.codes.as<void>();
    source.scales = m.scales.as<f16>();
    source.minimums = m.minimums.as<f16>();
  }
  require(m.data.allocate(cuda::packed_bytes(source)), "packed");
  require(cuda::pack(source, order, m.data.as<void>(), m.packed, nullptr), "pack");
  return m;
}

// ||out - expected|| / ||expected||; NaN counts as infinite.
inline double relative_error(const std::vector<double>& out, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    difference += (out[i] - expected[i]) * (out[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  double error = std::sqrt(difference / norm);
  return std::isfinite(error) ? error : INFINITY;
}

// Counts and prints failures; report() is main's result.
class Checks {
 public:
  void below(double error, double tolerance, const std::string& what) {
    ++count_;
    worst_ = std::max(worst_, error / tolerance);
    if (error < tolerance) return;
    ++failed_;
    std::fprintf(stderr, "FAILED %s: error %.3g, tolerance %.3g\n", what.c_str(), error, tolerance);
  }
  int report(const char* name) const {
    std::printf("%s: %d checks, %d failed, worst error / tolerance %.2f\n", name, count_, failed_, worst_);
    return failed_ ? 1 : 0;
  }

 private:
  int count_ = 0;
  int failed_ = 0;
  double worst_ = 0;
};

}  // namespace edgeshift::test
