// Seeded values for tests: the same on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace edgeshift::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state_ >> 33) ^ uint32_t(state_ >> 20);
  }
  int below(int n) { return int(uint64_t(bits()) * uint64_t(n) >> 32); }
  float uniform() { return (float(bits() >> 8) + 0.5f) * 0x1p-24f; }
  // Standard normal (Box and Muller).
  float normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.2831853f * uniform()); }
  std::vector<float> normals(size_t count, float scale = 1) {
    std::vector<float> out(count);
    for (float& v : out) v = normal() * scale;
    return out;
  }

 private:
  uint64_t state_;
};

}  // namespace edgeshift::test
