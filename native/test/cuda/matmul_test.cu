// gemv, slice_matmul, tiled_matmul and wide_matmul against a double reference. Tolerance: 1e-3 of the norm (f16 in and out, fp32 sums).
//   cuda_matmul_test [gemv|slices|tiled|stream|wide ...]   these kernels alone
#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#include "cuda/input_tiles.h"
#include "cuda/matmul.h"
#include "cuda/rms_norm.h"
#include "cuda/widen.h"
#include "device_test.h"

using namespace edgeshift;
using namespace edgeshift::test;
using cuda::Epilogue;

namespace {

constexpr double kTolerance = 1e-3;

// wide also tests the inputs' way into tiles, in a random order as an act-order matrix wants them.
enum class Kernel { gemv, slices, tiled, stream, wide };
constexpr const char* kNames[] = {"gemv", "slices", "tiled", "stream", "wide"};

struct Case {
  Precision precision;
  int n, k, group, t;
  Epilogue epilogue;
  bool norm;
};

// Calls f(0) .. f(count - 1) on all cores: the reference takes longer than the kernels.
template <class F>
void in_parallel(size_t count, F f) {
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> running;
  for (size_t i = 0; i < threads; ++i)
    running.emplace_back([=] {
      for (size_t j = count * i / threads; j < count * (i + 1) / threads; ++j) f(j);
    });
  for (std::thread& thread : running) thread.join();
}

double activated(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }

std::string name_of(const Case& c, Kernel kernel) {
  char text[128];
  std::snprintf(text, sizeof text, "%s bits %d n %d k %d group %d t %d epilogue %d norm %d", kNames[int(kernel)],
                cuda::weight_bits(c.precision), c.n, c.k, c.group, c.t, int(c.epilogue), int(c.norm));
  return text;
}

// The activations as the products see them, rounded to f16 where the kernel rounds.
std::vector<double> inputs(const Case& c, const std::vector<float>& x, const std::vector<float>& weight) {
  std::vector<double> in(x.size());
  for (int row = 0; row < c.t; ++row) {
    double squares = 0;
    for (int i = 0; i < c.k; ++i) squares += double(x[row * c.k + i]) * x[row * c.k + i];
    double inverse = 1 / std::sqrt(squares / c.k + 1e-5);
    for (int i = 0; i < c.k; ++i) {
      size_t at = size_t(row) * c.k + i;
      in[at] = half_value(half_of(c.norm ? float(x[at] * inverse * weight[i]) : x[at]));
    }
  }
  return in;
}

// The product of inputs that stand in `order` of the matrix's columns: tiles undo it.
void run_wide(cuda::FusedMatmulArgs args, const std::vector<f16>& halves, DeviceRandom& random, const cuda::Buffer& workspace,
              const cuda::Launch& on) {
  const PackedMatrix& m = *args.weight;
  std::vector<int32_t> order(m.k);
  std::iota(order.begin(), order.end(), 0);
  const bool ordered = random.bits() % 2;
  for (int i = m.k - 1; ordered && i > 0; --i) std::swap(order[i], order[random.bits() % (i + 1)]);
  std::vector<f16> placed(halves.size());
  for (int row = 0; row < args.t; ++row)
    for (int i = 0; i < m.k; ++i) placed[size_t(row) * m.k + order[i]] = halves[size_t(row) * m.k + i];
  cuda::Buffer x = upload(placed), places = upload(order), tiles;
  require(tiles.allocate(cuda::tiled_input_bytes(args.t, m.k)), "tiles");
  require(cuda::to_status(cudaMemset(tiles.as<void>(), 0xff, tiles.bytes()), "memset"), "tiles");
  const int count = cuda::input_tiles(cuda::strip_layout(m.precision, m.n, m.k, m.group));
  require(cuda::tile_inputs(x.as<f16>(), ordered ? places.as<int32_t>() : nullptr, args.t, m.k, count, tiles.as<void>(), on), "tile_inputs");
  args.x = tiles.as<void>();
  // Weights turned before the product where there is room: for a part of the rows, for all, or none.
  cuda::Buffer widened;
  const size_t room[] = {0, cuda::widened_strip_bytes(m.k) * 16, cuda::widened_bytes(m, on.device)};
  const size_t bytes = room[random.bits() % 3];
  require(widened.allocate(bytes), "widened");
  require(cuda::wide_matmul(args, {workspace.as<void>(), widened.as<void>(), bytes}, on), "wide_matmul");
  require(cuda::to_status(cudaStreamSynchronize(on.stream), "wide_matmul"), "wide_matmul");
}

std::vector<std::string> chosen;

bool is_chosen(Kernel kernel) {
  return chosen.empty() || std::find(chosen.begin(), chosen.end(), kNames[int(kernel)]) != chosen.end();
}

void run(const Case& c, Kernel kernel, const cuda::Buffer& workspace, const cuda::Launch& on, Checks& checks) {
  if (!is_chosen(kernel)) return;
  DeviceRandom random(c.n * 31 + c.k * 7 + c.t);
  auto order = c.epilogue == Epilogue::gate ? cuda::RowOrder::gate_up : cuda::RowOrder::plain;
  TestMatrix m = random_matrix(random, c.precision, c.n, c.k, c.group, order);
  std::vector<float> x = random.floats(size_t(c.t) * c.k), weight = random.floats(c.k), bias = random.floats(c.n);
  std::vector<f16> halves(x.size());
  for (size_t i = 0; i < x.size(); ++i) halves[i] = half_of(x[i]);
  bool wide = c.epilogue == Epilogue::add || c.epilogue == Epilogue::logits, gate = c.epilogue == Epilogue::gate;
  size_t columns = gate ? c.n / 2 : c.n, count = columns * c.t;
  std::vector<float> before = random.floats(count);
  std::vector<uint8_t> poison(count * (wide ? 4 : 2), 0xff);
  if (c.epilogue == Epilogue::add) std::memcpy(poison.data(), before.data(), count * 4);
  cuda::Buffer dx = upload(x), dh = upload(halves), dw = upload(weight), db = upload(bias), out = upload(poison);

  cuda::FusedMatmulArgs args;
  args.weight = &m.packed;
  args.x = c.norm ? dx.as<void>() : dh.as<void>();
  args.norm = c.norm ? dw.as<float>() : nullptr;
  args.eps = 1e-5f;
  args.bias = gate ? nullptr : db.as<float>();
  args.out = out.as<void>();
  args.epilogue = c.epilogue;
  args.t = c.t;
  // Outputs of a gate go into tiles too where they fill them.
  cuda::Buffer tiled_out;
  const size_t tile_bytes = cuda::input_tile_bytes(c.t);
  const bool out_tiles = kernel == Kernel::stream && gate && columns % 64 == 0;
  if (kernel == Kernel::stream) {
    cuda::Buffer tiles;
    require(tiles.allocate(cuda::tiled_input_bytes(c.t, c.k)), "tiles");
    require(cuda::to_status(cudaMemset(tiles.as<void>(), 0xff, tiles.bytes()), "memset"), "tiles");
    require(cuda::tile_inputs(dh.as<f16>(), nullptr, c.t, c.k, c.k / cuda::kTileInputs, tiles.as<void>(), on), "tile_inputs");
    args.x = tiles.as<void>();
    args.x_tile_bytes = tile_bytes;
    if (out_tiles) {
      require(tiled_out.allocate(cuda::tiled_input_bytes(c.t, int(columns))), "tiles");
      args.out = tiled_out.as<void>();
      args.out_tile_bytes = tile_bytes;
    }
    require(cuda::stream_matmul(args, workspace.as<void>(), on), name_of(c, kernel).c_str());
    require(cuda::to_status(cudaStreamSynchronize(on.stream), "stream_matmul"), "stream_matmul");
  } else if (kernel == Kernel::wide) {
    run_wide(args, halves, random, workspace, on);
  } else {
    Status status = kernel == Kernel::tiled    ? cuda::tiled_matmul(args, workspace.as<void>(), on)
                    : kernel == Kernel::slices ? cuda::slice_matmul(args, workspace.as<void>(), on)
                                               : cuda::gemv(args, on);
    require(status, name_of(c, kernel).c_str());
  }

  std::vector<double> in = inputs(c, x, weight), expected(count), got(count);
  in_parallel(columns, [&](size_t j) {
    for (int row = 0; row < c.t; ++row) {
      const double* xr = in.data() + size_t(row) * c.k;
      size_t at = row * columns + j;
      if (gate) expected[at] = activated(m.row_dot(int(j), xr), m.row_dot(int(j + columns), xr));
      else expected[at] = m.row_dot(int(j), xr) + bias[j] + (c.epilogue == Epilogue::add ? before[at] : 0);
    }
  });
  if (wide) {
    std::vector<float> host = download<float>(out, count);
    for (size_t i = 0; i < count; ++i) got[i] = host[i];
  } else if (out_tiles) {
    std::vector<uint8_t> host = download<uint8_t>(tiled_out, tiled_out.bytes());
    for (size_t i = 0; i < count; ++i) {
      f16 value;
      std::memcpy(&value, host.data() + cuda::tiled_input(int(i / columns), int(i % columns), tile_bytes), 2);
      got[i] = half_value(value);
    }
  } else {
    std::vector<f16> host = download<f16>(out, count);
    for (size_t i = 0; i < count; ++i) got[i] = half_value(host[i]);
  }
  checks.below(relative_error(got, expected), kTolerance, name_of(c, kernel));
}

// A product whose parts the norm adds to the residual stream is, to the bit, the one that adds them itself.
void check_parts(Precision precision, int n, int k, int t, bool shared, const cuda::Buffer& workspace, const cuda::Launch& on, Checks& checks) {
  const std::string name = name_of({precision, n, k, 128, t, Epilogue::add, true}, Kernel::stream) + " parts";
  DeviceRandom random(n + k + t);
  TestMatrix m = random_matrix(random, precision, n, k, precision == Precision::fp16 ? 0 : 128, cuda::RowOrder::plain);
  const std::vector<float> residual = random.floats(size_t(t) * n), weight = random.floats(n);
  cuda::Buffer x = upload(random.halves(size_t(t) * k)), norm = upload(weight), tiles;
  require(tiles.allocate(cuda::tiled_input_bytes(t, k)), "tiles");
  require(cuda::tile_inputs(x.as<f16>(), nullptr, t, k, k / cuda::kTileInputs, tiles.as<void>(), on), "tile_inputs");
  auto run = [&](bool leave) {
    cuda::Buffer stream = upload(residual), out = upload(std::vector<f16>(residual.size(), f16{0xffff}));
    cuda::FusedMatmulArgs args;
    args.weight = &m.packed;
    args.x = tiles.as<void>();
    args.x_tile_bytes = cuda::input_tile_bytes(t);
    args.out = stream.as<void>();
    args.epilogue = Epilogue::add;
    args.t = t;
    cuda::OutputParts parts;
    require(leave ? cuda::stream_matmul_parts(args, workspace.as<void>(), parts, on) : cuda::stream_matmul(args, workspace.as<void>(), on), name.c_str());
    checks.below(leave && (parts.count > 1) != shared, 1, name + (shared ? " are left" : " are none"));
    RmsNormArgs<f16> rms{stream.as<float>(), nullptr, norm.as<float>(), out.as<f16>(), t, n, 1e-5f};
    require(cuda::rms_norm(rms, parts, 0, on), "rms_norm");
    std::vector<float> sums = download<float>(stream, residual.size());
    for (f16 v : download<f16>(out, residual.size())) sums.push_back(half_value(v));
    return sums;
  };
  checks.below(run(true) != run(false), 1, name);
}

}  // namespace

int main(int argc, char** argv) {
  chosen.assign(argv + 1, argv + argc);
  cuda::Launch on = open_device();
  Checks checks;
  cuda::Buffer workspace;
  require(workspace.allocate(cuda::matmul_workspace_bytes(on.device)), "workspace");
  require(cuda::to_status(cudaMemset(workspace.as<void>(), 0, workspace.bytes()), "memset"), "workspace");
  struct Weight { Precision precision; int group; };
  const Weight weights[] = {{Precision::int4, 32}, {Precision::int4, 64}, {Precision::int4, 128}, {Precision::int4, 256},
                            {Precision::int4, 1536}, {Precision::int8, 32}, {Precision::int8, 64}, {Precision::int8, 128},
                            {Precision::int8, 576}, {Precision::fp16, 0}};
  const Epilogue epilogues[] = {Epilogue::store, Epilogue::add, Epilogue::gate, Epilogue::logits};
  for (const Weight& w : weights)
    for (auto [n, k] : {std::pair{64, 64}, {96, 1536}, {576, 576}, {2048, 1000}, {520, 4096}}) {
      for (int t : {1, 2, 3, 4, 8})
        for (bool norm : {false, true}) {
          Epilogue epilogue = epilogues[(t + norm + n / 16) % 4];
          if (epilogue == Epilogue::gate && n % 16) epilogue = Epilogue::store;
          run({w.precision, n, k, w.group, t, epilogue, norm}, Kernel::gemv, workspace, on, checks);
        }
      for (int t : {5, 16, 33, 64, 100, 260}) {
        Epilogue epilogue = epilogues[(t + n / 16) % 4];
        if (epilogue == Epilogue::gate && n % 16) epilogue = Epilogue::store;
        run({w.precision, n, k, w.group, t, epilogue, false}, Kernel::tiled, workspace, on, checks);
      }
    }
  for (auto [n, k] : {std::pair{64, 64}, {96, 1536}, {576, 576}, {2048, 1000}, {520, 4096}, {1600, 11008}})
    for (int t : {9, 13, 16})
      for (Epilogue epilogue : epilogues)
        if (epilogue != Epilogue::gate || n % 16 == 0)
          run({Precision::fp16, n, k, 0, t, epilogue, false}, Kernel::slices, workspace, on, checks);
  if (on.device.hopper)
    for (const Weight& w : weights)
      for (auto [n, k] : {std::pair{64, 64}, {96, 1536}, {576, 576}, {1003, 1024}, {512, 4096}})
        for (int t : {1, 16, 30, 64}) {
          Epilogue epilogue = epilogues[(t / 7 + n / 16 + w.group / 32) % 4];
          if (epilogue == Epilogue::gate && n % 16) epilogue = Epilogue::store;
          run({w.precision, n, k, w.group, t, epilogue, false}, Kernel::stream, workspace, on, checks);
        }
  // More tiles than clusters at a time: shares that end within tiles, whole ones between.
  if (on.device.hopper)
    for (const Weight& w : {Weight{Precision::int4, 32}, Weight{Precision::int4, 128}, Weight{Precision::int8, 128}, Weight{Precision::fp16, 0}})
      for (auto [n, t, epilogue] : {std::tuple{26000, 33, Epilogue::logits}, {38400, 16, Epilogue::gate}, {25700, 24, Epilogue::store}, {29000, 64, Epilogue::add}})
        run({w.precision, n, 384, w.group, t, epilogue, false}, Kernel::stream, workspace, on, checks);
  if (on.device.hopper && is_chosen(Kernel::stream))
    for (Precision precision : {Precision::int4, Precision::int8, Precision::fp16})
      for (auto [n, k, t, shared] : {std::tuple{4096, 4096, 64, true}, {4096, 11008, 16, true}, {2052, 1536, 33, true}, {100, 768, 5, true}, {64, 128, 8, false}, {29000, 384, 64, false}})
        check_parts(precision, n, k, t, shared, workspace, on, checks);
  // What cards with 99 KB of shared memory per block run.
  cuda::Launch small = on;
  small.device.shared_bytes = 99 * 1024;
  for (const Weight& w : weights)
    for (auto [n, k] : {std::pair{96, 1536}, {520, 4096}, {64, 11008}})
      for (int t : {1, 3, 8, 16, 32, 64, 100}) {
        Epilogue epilogue = epilogues[(t + n / 16) % 4];
        if (epilogue == Epilogue::gate && n % 16) epilogue = Epilogue::store;
        PackedMatrix shape{w.precision, n, k, w.group};
        run({w.precision, n, k, w.group, t, epilogue, false}, cuda::gemv_fits(shape, t, small.device) ? Kernel::gemv : Kernel::tiled, workspace, small, checks);
      }
  // Many tokens on every kind of card, as this one can stand in for them: rows and tokens past a tile, every epilogue, parts of
  // k, codes turned within the products and (from 768 or 896 tokens on, where the card does) before them.
  struct Card { bool hopper, fast; int shared; };
  for (Card card : {Card{false, true, on.device.shared_bytes}, {false, false, 99 * 1024}, {true, true, on.device.shared_bytes}}) {
    if (card.hopper && !on.device.hopper) continue;
    cuda::Launch wide = on;
    wide.device.hopper = card.hopper;
    wide.device.fast_products = card.fast;
    wide.device.shared_bytes = card.shared;
    int index = 0;
    for (const Weight& w : weights)
      for (auto [n, k] : {std::pair{64, 64}, {576, 576}, {1003, 1000}, {272, 4096}})
        for (int t : {7, k > 1000 ? 130 : 300, 900}) {
          if (t == 900 && (n < 500 || !card.fast || index % 2)) continue;
          Epilogue epilogue = epilogues[index++ % 4];
          if (epilogue == Epilogue::gate && n % 16) epilogue = Epilogue::store;
          run({w.precision, n, k, w.group, t, epilogue, false}, Kernel::wide, workspace, wide, checks);
        }
  }
  run({Precision::int4, 4096, 11008, 128, 4, Epilogue::add, false}, Kernel::gemv, workspace, on, checks);
  run({Precision::int8, 4096, 11008, 128, 2, Epilogue::add, false}, Kernel::gemv, workspace, on, checks);
  run({Precision::fp16, 4096, 11008, 0, 1, Epilogue::add, false}, Kernel::gemv, workspace, on, checks);
  return checks.report("matmul");
}
