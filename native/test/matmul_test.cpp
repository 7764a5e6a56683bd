// matmul, packing and embedding on every instruction set of this machine against the double reference.
//
// Tolerances, relative to the norms |x| |w| of the dot product: fp16 weights 2e-6 * sqrt(k) (fp32 sums); int8 and int4
// 6e-5 (x rounded to 1/16256 of its group's largest value). Batch invariance is exact.
#include "cpu/ops.h"
#include "ops/reference/reference.h"
#include "test/check.h"
#include "test/isas.h"
#include "test/random.h"

using namespace edgeshift;

namespace {

struct Case {
  Precision precision;
  int n, k, group;
  bool minimums;
};

// A canonical matrix with random content, and its packed form.
struct Weights {
  std::vector<f16> values, scales, minimums;
  std::vector<uint8_t> codes;
  std::vector<int32_t> permutation;
  CanonicalMatrix canonical;
  cpu::Buffer memory;
  PackedMatrix packed;
};

Weights make(cpu::ThreadPool& pool, const Case& c, bool permute, test::Random& random) {
  Weights w;
  CanonicalMatrix& m = w.canonical;
  m.precision = c.precision;
  m.n = c.n;
  m.k = c.k;
  m.group = c.precision == Precision::fp16 ? 0 : c.group;
  size_t padded = size_t(m.padded_k());
  for (size_t i = 0; c.precision == Precision::fp16 && i < size_t(c.n) * size_t(c.k); ++i) w.values.push_back(to_f16(random.normal() * 0.05f));
  if (c.precision != Precision::fp16) {
    w.codes.assign(size_t(c.n) * (c.precision == Precision::int4 ? padded / 2 : padded), 0);
    for (int row = 0; row < c.n; ++row) {
      for (int j = 0; j < c.k; ++j) {
        if (c.precision == Precision::int8) w.codes[size_t(row) * padded + size_t(j)] = uint8_t(random.below(256));
        else w.codes[size_t(row) * (padded / 2) + size_t(j / 2)] |= uint8_t(random.below(16) << (j % 2 * 4));
      }
    }
    for (size_t i = 0; i < size_t(c.n) * padded / size_t(c.group); ++i) {
      w.scales.push_back(to_f16(random.uniform() * 0.01f));
      w.minimums.push_back(to_f16(random.normal() * 0.05f));
    }
  }
  for (int i = 0; permute && i < c.k; ++i) w.permutation.push_back((i * 7 + 3) % c.k);
  m.values = w.values.data();
  m.codes = w.codes.data();
  m.scales = w.scales.data();
  m.minimums = c.minimums ? w.minimums.data() : nullptr;
  m.permutation = permute ? w.permutation.data() : nullptr;
  Result<cpu::Buffer> memory = cpu::Buffer::allocate(cpu::packed_bytes(m));
  ES_CHECK(memory.ok());
  w.memory = std::move(memory.value());
  ES_CHECK(cpu::pack(pool, m, w.memory.data(), w.packed).ok());
  ES_CHECK(w.packed.bytes == cpu::packed_bytes(m));
  return w;
}

std::vector<float> run(cpu::ThreadPool& pool, const Weights& w, const float* x, const float* bias, int t) {
  std::vector<float> y(size_t(t) * size_t(w.packed.n), NAN);
  ES_CHECK(cpu::matmul(pool, {x, &w.packed, bias, y.data(), t}).ok());
  return y;
}

double norm(const std::vector<double>& v) {
  double s = 0;
  for (double x : v) s += x * x;
  return std::sqrt(s);
}

void check_close(const Case& c, const Weights& w, const std::vector<float>& x, const std::vector<float>& bias, const std::vector<float>& y, int t) {
  std::vector<double> expected(y.size());
  ref::matmul(x.data(), w.canonical, bias.data(), expected.data(), t);
  double relative = c.precision == Precision::fp16 ? 2e-6 * std::sqrt(double(c.k)) : 6e-5;
  for (int row = 0; row < c.n; ++row) {
    std::vector<double> weights;
    for (int j = 0; j < c.k; ++j) weights.push_back(ref::weight(w.canonical, row, j));
    for (int i = 0; i < t; ++i) {
      std::vector<double> inputs(x.begin() + int64_t(i) * c.k, x.begin() + int64_t(i + 1) * c.k);
      size_t at = size_t(i) * size_t(c.n) + size_t(row);
      double limit = relative * norm(weights) * norm(inputs) + 1e-6;
      if (!(std::fabs(double(y[at]) - expected[at]) <= limit)) {
        test::report(__FILE__, __LINE__, "n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " group " + std::to_string(c.group) +
                     " precision " + std::to_string(int(c.precision)) + " row " + std::to_string(i) + ": " + std::to_string(y[at]) + " instead of " + std::to_string(expected[at]));
        return;
      }
    }
  }
}

// Every row alone gives the same bits as in the batch, and so does another number of threads.
void check_invariant(cpu::ThreadPool& one, cpu::ThreadPool& three, const Weights& w, const std::vector<float>& x, const std::vector<float>& bias,
                     const std::vector<float>& y, int t) {
  size_t n = size_t(w.packed.n), k = size_t(w.packed.k);
  std::vector<float> other = run(three, w, x.data(), bias.data(), t);
  ES_CHECK(std::equal(y.begin(), y.end(), other.begin()));
  for (int i = 0; i < t; ++i) {
    std::vector<float> alone = run(one, w, x.data() + size_t(i) * k, bias.data(), 1);
    ES_CHECK(std::equal(alone.begin(), alone.end(), y.begin() + int64_t(size_t(i) * n)));
  }
  for (int part = 2; part < t; part += 5) {
    std::vector<float> tail = run(one, w, x.data() + size_t(part) * k, bias.data(), t - part);
    ES_CHECK(std::equal(tail.begin(), tail.end(), y.begin() + int64_t(size_t(part) * n)));
  }
}

void check_embed(cpu::ThreadPool& pool, const Weights& w, test::Random& random) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 5; ++i) tokens.push_back(random.below(w.packed.n));
  std::vector<float> out(tokens.size() * size_t(w.packed.k), NAN);
  ES_CHECK(cpu::embed(pool, {tokens.data(), int(tokens.size()), &w.packed, out.data()}).ok());
  for (size_t i = 0; i < tokens.size(); ++i) {
    for (int j = 0; j < w.packed.k; ++j) {
      int at = w.canonical.permutation ? w.canonical.permutation[j] : j;
      double expected = ref::weight(w.canonical, tokens[i], j);
      ES_CHECK(std::fabs(double(out[i * size_t(w.packed.k) + size_t(at)]) - expected) <= 1e-6 * std::fabs(expected) + 1e-7);
    }
  }
  int32_t outside = w.packed.n;
  ES_CHECK(cpu::embed(pool, {&outside, 1, &w.packed, out.data()}).code() == Code::invalid_argument);
}

void check_case(cpu::Isa isa, const Case& c, int t, bool permute) {
  test::Random random(uint64_t(c.n * 131 + c.k + int(c.precision)));
  cpu::ThreadPool one(1, isa), three(3, isa);
  Weights w = make(three, c, permute, random);
  std::vector<float> x = random.normals(size_t(t) * size_t(c.k)), bias = random.normals(size_t(c.n));
  std::vector<float> y = run(one, w, x.data(), bias.data(), t);
  check_close(c, w, x, bias, y, t);
  check_invariant(one, three, w, x, bias, y, t);
  check_embed(one, w, random);
}

// The largest codes of both signs: sums must neither saturate nor lose the sign of -128.
void check_extremes(cpu::Isa isa) {
  cpu::ThreadPool pool(1, isa);
  test::Random random(5);
  for (uint8_t code : {uint8_t(0x80), uint8_t(0x7f), uint8_t(0xff)}) {
    for (Precision precision : {Precision::int8, Precision::int4}) {
      Case c{precision, 16, 64, 32, precision == Precision::int4};
      Weights w = make(pool, c, false, random);
      std::fill(w.codes.begin(), w.codes.end(), code);
      ES_CHECK(cpu::pack(pool, w.canonical, w.memory.data(), w.packed).ok());
      for (float sign : {-1.0f, 1.0f}) {
        std::vector<float> x(64 * 4, 3.0f * sign), bias(16, 0.0f);
        check_close(c, w, x, bias, run(pool, w, x.data(), bias.data(), 4), 4);
      }
    }
  }
}

void check_isa(cpu::Isa isa) {
  const Precision f = Precision::fp16, b = Precision::int8, q = Precision::int4;
  const Case cases[] = {{f, 1, 1, 0, false},     {f, 17, 33, 0, false},    {f, 100, 576, 0, false},  {f, 64, 255, 0, false},
                        {b, 1, 32, 32, false},   {b, 48, 576, 32, true},   {b, 33, 128, 64, false},  {b, 40, 384, 128, true},
                        {b, 16, 96, 96, false},  {b, 20, 172, 32, false},  {q, 1, 32, 32, true},     {q, 48, 576, 32, true},
                        {q, 33, 128, 64, true},  {q, 40, 384, 128, true},  {q, 15, 160, 160, true},  {q, 20, 172, 64, true}};
  for (const Case& c : cases) {
    for (int t : {1, 7, 13, 27}) check_case(isa, c, t, false);
  }
  check_case(isa, {b, 40, 256, 128, false}, 5, true);
  check_case(isa, {q, 40, 256, 64, true}, 5, true);
  // More rows than one pass over the weights takes.
  check_case(isa, {q, 17, 8192, 32, true}, 64, false);
  check_extremes(isa);
}

}  // namespace

int main() { return test::for_each_isa(check_isa); }
