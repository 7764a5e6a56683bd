// rms_norm and gated_activation on every instruction set of this machine against the double reference.
// Tolerance: 2e-6 relative to the size of the result's factors (fp32).
#include "cpu/ops.h"
#include "ops/reference/reference.h"
#include "test/check.h"
#include "test/isas.h"
#include "test/random.h"

using namespace edgeshift;

namespace {

void check_norm(cpu::Isa isa, int t, int hidden, bool with_delta) {
  if (t <= 0 || hidden <= 0) return;
  test::Random random{uint64_t(hidden)};
  cpu::ThreadPool pool(2, isa);
  size_t count = size_t(t) * size_t(hidden);
  std::vector<float> residual = random.normals(count, 3), delta = random.normals(count), weight = random.normals(size_t(hidden));
  std::vector<double> expected_residual(residual.begin(), residual.end()), expected(count);
  std::vector<float> alone(residual.begin(), residual.begin() + hidden), first(size_t(hidden), NAN), out(count, NAN);
  RmsNormArgs<float> args{residual.data(), with_delta ? delta.data() : nullptr, weight.data(), out.data(), t, hidden, 1e-5f};
  ES_CHECK(cpu::rms_norm(pool, args).ok());
  for (int i = 0; i < t; ++i) {
    size_t at = size_t(i) * size_t(hidden);
    ref::rms_norm(&expected_residual[at], with_delta ? &delta[at] : nullptr, weight.data(), &expected[at], hidden, 1e-5);
  }
  for (size_t i = 0; i < count; ++i) {
    ES_CHECK(std::fabs(double(residual[i]) - expected_residual[i]) <= 1e-6 * (1 + std::fabs(expected_residual[i])));
    ES_CHECK(std::fabs(double(out[i]) - expected[i]) <= 2e-6 * (1 + std::fabs(expected[i])));
  }
  args.residual = alone.data();
  args.out = first.data();
  args.t = 1;
  ES_CHECK(cpu::rms_norm(pool, args).ok());
  ES_CHECK(std::equal(first.begin(), first.end(), out.begin()));
}

void check_gate(cpu::Isa isa, int t, int ffn, Activation activation) {
  if (t <= 0 || ffn <= 0) return;
  test::Random random{uint64_t(ffn)};
  cpu::ThreadPool pool(2, isa);
  std::vector<float> in = random.normals(size_t(t) * size_t(ffn) * 2, 4);
  for (int i = 0; i < 8 && i < ffn; ++i) in[size_t(i)] = float(i - 4) * 40;  // both ends of the exponential
  std::vector<float> out(size_t(t) * size_t(ffn), NAN), first(size_t(ffn), NAN);
  ES_CHECK(cpu::gated_activation(pool, {in.data(), out.data(), t, ffn, activation}).ok());
  ES_CHECK(cpu::gated_activation(pool, {in.data(), first.data(), 1, ffn, activation}).ok());
  ES_CHECK(std::equal(first.begin(), first.end(), out.begin()));
  std::vector<double> expected(size_t(ffn), 0.0);
  for (int i = 0; i < t; ++i) {
    const float* row = in.data() + size_t(i) * size_t(ffn) * 2;
    ref::gated_activation(row, expected.data(), ffn, activation);
    for (int j = 0; j < ffn; ++j) {
      double size = std::fabs(double(row[j])) * std::fabs(double(row[ffn + j]));
      ES_CHECK(std::fabs(double(out[size_t(i) * size_t(ffn) + size_t(j)]) - expected[size_t(j)]) <= 2e-6 * (size + 1e-3));
    }
  }
}

void check_isa(cpu::Isa isa) {
  for (int hidden : {1, 5, 64, 576, 1000}) {
    check_norm(isa, 1, hidden, false);
    check_norm(isa, 70, hidden, true);
  }
  for (int ffn : {1, 31, 172, 1536}) {
    check_gate(isa, 40, ffn, Activation::silu);
    check_gate(isa, 3, ffn, Activation::gelu_tanh);
  }
}

}  // namespace

int main() { return test::for_each_isa(check_isa); }
