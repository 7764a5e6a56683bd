// Rounding to nearest: the same bits from every instruction set, codes that are the nearest, lines that are good ones.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "quant/half.h"
#include "quant/row_kernels.h"
#include "test/check.h"
#include "test/isas.h"
#include "test/random.h"

using namespace edgeshift;

namespace {

struct Rounded {
  std::vector<uint8_t> codes;
  std::vector<f16> scales, minimums;
  RoundingSums sums;
};

// Rows padded with zeros to whole groups.
struct Matrix {
  std::vector<float> weights;
  FloatRows rows;

  Matrix(int n, int k, int group) : rows{nullptr, n, k, group} {
    weights.resize(size_t(n) * size_t(rows.padded()));
    rows.weights = weights.data();
  }
  Matrix(const Matrix&) = delete;
  float& at(int row, int j) { return weights[size_t(row) * size_t(rows.padded()) + size_t(j)]; }

  Rounded round(cpu::Isa isa, Precision precision) const {
    Rounded out;
    const size_t groups = size_t(rows.rows) * size_t(rows.groups()), padded = weights.size();
    out.codes.assign(precision == Precision::int4 ? padded / 2 : padded, 0xee);
    out.scales.resize(groups);
    out.minimums.resize(groups);
    const RowKernels& kernels = row_kernels(isa);
    if (precision == Precision::int8) kernels.round_int8(rows, out.codes.data(), out.scales.data(), out.sums);
    else kernels.round_int4(rows, out.codes.data(), out.scales.data(), out.minimums.data(), out.sums);
    return out;
  }

  // What a code stands for.
  double value(const Rounded& r, Precision precision, int row, int j) const {
    const size_t place = size_t(row) * size_t(rows.padded()) + size_t(j);
    const size_t g = place / size_t(rows.group);
    const int code = precision == Precision::int8 ? int8_t(r.codes[place]) : r.codes[place / 2] >> (place % 2 * 4) & 15;
    return double(code) * to_float(r.scales[g]) + to_float(r.minimums[g]);
  }
};

bool same(const std::vector<f16>& a, const std::vector<f16>& b) {
  return std::ranges::equal(a, b, {}, &f16::bits, &f16::bits);
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

enum class Kind { normal, constant, zero, outlier, tiny, huge, steps };

void fill(Matrix& m, Kind kind, test::Random& random) {
  for (int row = 0; row < m.rows.rows; ++row) {
    for (int j = 0; j < m.rows.k; ++j) {
      const float x = random.normal();
      float& w = m.at(row, j);
      switch (kind) {
        case Kind::normal: w = x * 0.02f; break;
        case Kind::constant: w = -0.3f; break;
        case Kind::zero: w = 0; break;
        case Kind::outlier: w = j % 37 == 5 ? x * 8 : x * 0.01f; break;
        case Kind::tiny: w = x * 1e-7f; break;
        case Kind::huge: w = x * 1e38f; break;
        case Kind::steps: w = float(int(x * 3)) * 0.5f; break;
      }
    }
  }
}

// The squared error of the plainest way: sixteen steps from the smallest to the largest weight of each group.
double plain_error(Matrix& m) {
  double error = 0;
  for (int row = 0; row < m.rows.rows; ++row) {
    for (int first = 0; first < m.rows.k; first += m.rows.group) {
      const int last = std::min(m.rows.k, first + m.rows.group);
      float low = m.at(row, first), high = low;
      for (int j = first; j < last; ++j) low = std::min(low, m.at(row, j)), high = std::max(high, m.at(row, j));
      const double step = (double(high) - low) / 15;
      for (int j = first; j < last; ++j) {
        const double q = step > 0 ? std::nearbyint((m.at(row, j) - low) / step) : 0;
        error += std::pow(m.at(row, j) - (low + q * step), 2);
      }
    }
  }
  return error;
}

void check_codes(Matrix& m, Precision precision, Kind kind, const Rounded& r) {
  double error = 0, weights = 0;
  for (int row = 0; row < m.rows.rows; ++row) {
    for (int j = 0; j < m.rows.padded(); ++j) {
      const double w = m.at(row, j), miss = m.value(r, precision, row, j) - w;
      if (j >= m.rows.k) {
        const size_t place = size_t(row) * size_t(m.rows.padded()) + size_t(j);
        ES_CHECK((precision == Precision::int8 ? r.codes[place] : r.codes[place / 2] >> (place % 2 * 4) & 15) == 0);
        continue;
      }
      error += miss * miss;
      weights += w * w;
    }
  }
  // Weights beyond what squares of floats hold have no sums.
  if (kind == Kind::huge) return;
  ES_CHECK(std::fabs(r.sums.error - error) <= 1e-4 * error + 1e-20);
  ES_CHECK(std::fabs(r.sums.weights - weights) <= 1e-4 * weights);
  if (precision == Precision::int4 && kind == Kind::normal && m.rows.group == 32 && m.rows.k > 32) ES_CHECK(error < 0.9 * plain_error(m));
  // binary16 has no steps finer than 2^-24.
  if (precision == Precision::int4 && kind != Kind::tiny) ES_CHECK(error <= 1.02 * plain_error(m) + 1e-6 * weights);
  if (precision == Precision::int8 && kind == Kind::normal) ES_CHECK(std::sqrt(error / weights) < 0.008);
}

void check_rounding(cpu::Isa isa) {
  test::Random random(11);
  const int shapes[][3] = {{1, 32, 32}, {16, 576, 32}, {17, 172, 32}, {5, 200, 64}, {3, 259, 288}, {2, 1, 32}, {40, 64, 64}};
  for (const auto& [n, k, group] : shapes) {
    for (Kind kind : {Kind::normal, Kind::constant, Kind::zero, Kind::outlier, Kind::tiny, Kind::huge, Kind::steps}) {
      Matrix m(n, k, group);
      fill(m, kind, random);
      for (Precision precision : {Precision::int8, Precision::int4}) {
        const Rounded scalar = m.round(cpu::Isa::scalar, precision), r = m.round(isa, precision);
        ES_CHECK(r.codes == scalar.codes && same(r.scales, scalar.scales) && same(r.minimums, scalar.minimums));
        ES_CHECK(same(r.sums.error, scalar.sums.error) && same(r.sums.weights, scalar.sums.weights));
        check_codes(m, precision, kind, r);
      }
    }
  }
}

void check_loops(cpu::Isa isa) {
  const RowKernels& kernels = row_kernels(isa);
  test::Random random(12);
  std::vector<float> values(1003);
  for (float& v : values) v = random.normal() * 1e4f;
  values[1] = 1e9f, values[500] = -7e5f, values[17] = 1e-8f, values[1001] = -65519.0f;
  for (int64_t count : {1, 15, 16, 17, 1003}) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(std::fabs(values[size_t(i)])));
    ES_CHECK(kernels.largest_bits(values.data(), count) == largest);
    std::vector<f16> halves(static_cast<size_t>(count));
    kernels.to_halves(values.data(), count, halves.data());
    for (size_t i = 0; i < size_t(count); ++i) {
      ES_CHECK(halves[i].bits == to_f16(std::clamp(values[i], -65504.0f, 65504.0f)).bits);
    }
  }
  // Wherever it is, what is not finite is seen.
  for (size_t at : {size_t(0), size_t(16), size_t(1000), size_t(1002)}) {
    const float kept = std::exchange(values[at], at % 2 ? -INFINITY : NAN);
    ES_CHECK(kernels.largest_bits(values.data(), 1003) >= 0x7f800000u);
    values[at] = kept;
  }
}

}  // namespace

int main() {
  return test::for_each_isa([](cpu::Isa isa) {
    check_rounding(isa);
    check_loops(isa);
  });
}
