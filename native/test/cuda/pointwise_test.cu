// rms_norm, gated_activation, embed and sample against double references. Tolerances: 1e-3 of the norm for f16 outputs,
// 1e-6 for embeddings, tokens exact.
#include "cuda/embed.h"
#include "cuda/gated_activation.h"
#include "cuda/input_tiles.h"
#include "cuda/rms_norm.h"
#include "device_test.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

std::vector<double> widen(const std::vector<f16>& v) {
  std::vector<double> out;
  for (f16 x : v) out.push_back(half_value(x));
  return out;
}

void check_rms_norm(int t, int hidden, bool with_delta, const cuda::Launch& on, Checks& checks) {
  DeviceRandom random(hidden + t);
  std::vector<float> residual = random.floats(size_t(t) * hidden, 3), weight = random.floats(hidden);
  std::vector<f16> delta = random.halves(residual.size());
  std::vector<double> sums(residual.size()), expected(residual.size());
  for (int row = 0; row < t; ++row) {
    double squares = 0;
    for (int i = 0; i < hidden; ++i) {
      size_t at = size_t(row) * hidden + i;
      sums[at] = residual[at] + (with_delta ? half_value(delta[at]) : 0);
      squares += sums[at] * sums[at];
    }
    for (int i = 0; i < hidden; ++i) expected[size_t(row) * hidden + i] = sums[size_t(row) * hidden + i] / std::sqrt(squares / hidden + 1e-5) * weight[i];
  }
  cuda::Buffer dr = upload(residual), dd = upload(delta), dw = upload(weight), out = upload(std::vector<f16>(residual.size(), f16{0xffff}));
  RmsNormArgs<f16> args{dr.as<float>(), with_delta ? dd.as<f16>() : nullptr, dw.as<float>(), out.as<f16>(), t, hidden, 1e-5f};
  require(cuda::rms_norm(args, {}, 0, on), "rms_norm");
  const std::vector<f16> rows = download<f16>(out, residual.size());
  // The same row by row into tiles of inputs; the sum with delta is already in the residual stream.
  const size_t tile_bytes = cuda::input_tile_bytes(t);
  cuda::Buffer tiles;
  require(tiles.allocate(cuda::tiled_input_bytes(t, hidden)), "tiles");
  args.delta = nullptr;
  args.out = tiles.as<f16>();
  require(cuda::rms_norm(args, {}, tile_bytes, on), "rms_norm");
  const std::vector<f16> tiled = download<f16>(tiles, tiles.bytes() / 2);
  int different = 0;
  for (int row = 0; row < t; ++row)
    for (int i = 0; i < hidden; ++i) different += tiled[cuda::tiled_input(row, i, tile_bytes) / 2].bits != rows[size_t(row) * hidden + i].bits;
  std::string name = "rms_norm t " + std::to_string(t) + " hidden " + std::to_string(hidden);
  checks.below(relative_error(widen(rows), expected), 1e-3, name);
  checks.below(different, 1, name + " in tiles");
  std::vector<float> after = download<float>(dr, residual.size());
  checks.below(relative_error({after.begin(), after.end()}, sums), 1e-6, name + " residual");
}

void check_gate(int t, int ffn, Activation activation, const cuda::Launch& on, Checks& checks) {
  DeviceRandom random(ffn);
  std::vector<f16> in = random.halves(size_t(t) * 2 * ffn, 2);
  std::vector<double> expected;
  for (int row = 0; row < t; ++row)
    for (int i = 0; i < ffn; ++i) {
      double g = half_value(in[size_t(row) * 2 * ffn + i]), u = half_value(in[size_t(row) * 2 * ffn + ffn + i]);
      double gate = activation == Activation::silu ? g / (1 + std::exp(-g))
                                                   : 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
      expected.push_back(gate * u);
    }
  cuda::Buffer di = upload(in), out = upload(std::vector<f16>(expected.size(), f16{0xffff}));
  require(cuda::gated_activation(GatedActivationArgs<f16>{di.as<f16>(), out.as<f16>(), t, ffn, activation}, on), "gated_activation");
  checks.below(relative_error(widen(download<f16>(out, expected.size())), expected), 1e-3, "gated_activation " + std::to_string(ffn));
}

void check_embed(Precision precision, int vocab, int hidden, int group, const cuda::Launch& on, Checks& checks) {
  DeviceRandom random(vocab);
  TestMatrix table = random_matrix(random, precision, vocab, hidden, group, cuda::RowOrder::plain);
  // Below 0: the tokens last sampled for slots 0 and 2, the second of which is no token.
  const std::vector<int32_t> tokens = {0, vocab - 1, 17, vocab / 2, -1, -3, vocab}, last_tokens = {23, 0, -1};
  std::vector<double> expected;
  for (int32_t token : {0, vocab - 1, 17, vocab / 2, 23, -1, vocab})
    for (int i = 0; i < hidden; ++i) expected.push_back(token >= 0 && token < vocab ? table.values[size_t(token) * hidden + i] : 0);
  cuda::Buffer dt = upload(tokens), last = upload(last_tokens), out = upload(std::vector<float>(expected.size(), NAN));
  require(cuda::embed(EmbedArgs{dt.as<int32_t>(), int(tokens.size()), &table.packed, out.as<float>()}, last.as<int32_t>(), on), "embed");
  std::vector<float> got = download<float>(out, expected.size());
  checks.below(relative_error({got.begin(), got.end()}, expected), 1e-6, "embed bits " + std::to_string(cuda::weight_bits(precision)));
}

}  // namespace

int main() {
  cuda::Launch on = open_device();
  Checks checks;
  for (auto [t, hidden] : {std::pair{1, 576}, {3, 4096}, {33, 896}, {256, 8192}, {2, 16384}, {2, 20000}})
    for (bool delta : {false, true}) check_rms_norm(t, hidden, delta, on, checks);
  for (auto activation : {Activation::silu, Activation::gelu_tanh})
    for (auto [t, ffn] : {std::pair{1, 1536}, {7, 11008}, {64, 100}}) check_gate(t, ffn, activation, on, checks);
  check_embed(Precision::fp16, 1000, 576, 0, on, checks);
  check_embed(Precision::int8, 1000, 576, 32, on, checks);
  check_embed(Precision::int8, 200, 1024, 128, on, checks);
  for (int group : {32, 64, 128}) check_embed(Precision::int4, 300, 1024, group, on, checks);
  return checks.report("pointwise");
}
