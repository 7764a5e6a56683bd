// rope_kv, prefill_attention, wide_attention and decode_attention against a double reference, whose keys and values are
// rounded to the cache's codes where it has any. Tolerance: 2e-3 of the norm (keys, values and probabilities are f16); 3e-3
// for codes, of which a few fall to the other side because what is rounded is fp32 here and double there.
//   cuda_attention_test [longest context=8191]   what compute-sanitizer ends with in minutes is shorter
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/attention.h"
#include "cuda/input_tiles.h"
#include "cuda/rope_kv.h"
#include "device_test.h"
#include "ops/kv_codes.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

double tolerance(KvDtype dtype) { return dtype == KvDtype::fp16 ? 2e-3 : 3e-3; }

// A key or value as the cache has it.
void round_to_cache(KvDtype dtype, std::vector<double>& row) {
  if (dtype == KvDtype::fp16) return;
  float largest = 0;
  for (double x : row) largest = std::max(largest, std::fabs(float(x)));
  const float scale = bf16_to_float(kv_scale(largest, dtype)), inverse = 1 / scale;
  for (double& x : row) {
    const float scaled = float(x) * inverse;
    x = double(kv_code_value(dtype == KvDtype::fp8 ? fp8_code(scaled) : int8_code(scaled), dtype)) * scale;
  }
}

struct Case {
  int heads, kv_heads, head_dim, block_size, window, splits;
  float softcap;
  bool interleaved, norms;
  std::vector<int> prompts;
  KvDtype dtype = KvDtype::fp16;
};

std::string name_of(const Case& c, const char* what) {
  char text[200];
  std::snprintf(text, sizeof text, "%s cache %d heads %d/%d dim %d block %d window %d splits %d softcap %.0f interleaved %d norms %d", what, int(c.dtype),
                c.heads, c.kv_heads, c.head_dim, c.block_size, c.window, c.splits, c.softcap, c.interleaved, c.norms);
  return text;
}

// A batch of sequences whose whole history is known on the host: qkv of every token of every sequence.
class History {
 public:
  History(const Case& c, DeviceRandom& random) : c_(c), row_((c.heads + 2 * c.kv_heads) * c.head_dim) {
    for (int length : c.prompts) qkv_.push_back(random.halves(size_t(length + 1) * row_));
    q_norm = random.floats(c.head_dim);
    k_norm = random.floats(c.head_dim);
    for (int i = 0; i < c.head_dim / 2; ++i) inv_freq.push_back(float(std::pow(10000.0, -2.0 * i / c.head_dim)));
  }

  const f16* token(int sequence, int position) const { return qkv_[sequence].data() + size_t(position) * row_; }
  int row() const { return row_; }

  // Vector `index` of a token as attention sees it: query heads, then key heads, then value heads.
  const std::vector<double>& vector(int sequence, int position, int index) const {
    std::vector<double>& kept = kept_[(int64_t(sequence) << 40) + (int64_t(position) << 16) + index];
    if (kept.empty()) {
      kept = exact(sequence, position, index);
      if (index >= c_.heads) round_to_cache(c_.dtype, kept);
    }
    return kept;
  }

  // Rotated (and normed); values as they are.
  std::vector<double> exact(int sequence, int position, int index) const {
    int d = c_.head_dim;
    std::vector<double> v(d);
    for (int i = 0; i < d; ++i) v[i] = half_value(token(sequence, position)[index * d + i]);
    if (index >= c_.heads + c_.kv_heads) return v;
    if (c_.norms) {
      const std::vector<float>& weight = index < c_.heads ? q_norm : k_norm;
      double squares = 0;
      for (double x : v) squares += x * x;
      for (int i = 0; i < d; ++i) v[i] *= weight[i] / std::sqrt(squares / d + 1e-6);
    }
    for (int i = 0; i < d / 2; ++i) {
      double angle = double(position) * inv_freq[i];
      int a = c_.interleaved ? 2 * i : i, b = c_.interleaved ? 2 * i + 1 : i + d / 2;
      double x = v[a], y = v[b];
      v[a] = x * std::cos(angle) - y * std::sin(angle);
      v[b] = y * std::cos(angle) + x * std::sin(angle);
    }
    return v;
  }

  // Attention output of one token, [heads * head_dim].
  std::vector<double> attend(int sequence, int position) const {
    int d = c_.head_dim, first = c_.window ? std::max(0, position - c_.window + 1) : 0;
    std::vector<double> out(size_t(c_.heads) * d);
    for (int h = 0; h < c_.heads; ++h) {
      const std::vector<double>& q = vector(sequence, position, h);
      std::vector<double> p;
      int kv = h / (c_.heads / c_.kv_heads);
      double sum = 0;
      for (int j = first; j <= position; ++j) {
        const std::vector<double>& k = vector(sequence, j, c_.heads + kv);
        double s = 0;
        for (int i = 0; i < d; ++i) s += q[i] * k[i];
        s /= std::sqrt(double(d));
        if (c_.softcap > 0) s = c_.softcap * std::tanh(s / c_.softcap);
        p.push_back(std::exp(s));
        sum += p.back();
      }
      for (int j = first; j <= position; ++j) {
        const std::vector<double>& v = vector(sequence, j, c_.heads + c_.kv_heads + kv);
        for (int i = 0; i < d; ++i) out[h * d + i] += p[j - first] / sum * v[i];
      }
    }
    return out;
  }

  std::vector<float> q_norm, k_norm, inv_freq;

 private:
  const Case& c_;
  int row_;
  std::vector<std::vector<f16>> qkv_;
  mutable std::map<int64_t, std::vector<double>> kept_;
};

struct DeviceBatch {
  cuda::Buffer starts, first, block_starts, blocks;
  SequenceBatch batch;
};

DeviceBatch make_batch(const std::vector<int>& counts, const std::vector<int>& first, const std::vector<int>& block_starts,
                       const std::vector<uint32_t>& blocks) {
  std::vector<int> starts = {0};
  for (int n : counts) starts.push_back(starts.back() + n);
  DeviceBatch b{upload(starts), upload(first), upload(block_starts), upload(blocks), {}};
  b.batch = {int(counts.size()), starts.back(), b.starts.as<int32_t>(), b.first.as<int32_t>(), b.block_starts.as<int32_t>(),
             b.blocks.as<uint32_t>(), 0, 0};
  for (size_t i = 0; i < counts.size(); ++i) {
    b.batch.max_count = std::max(b.batch.max_count, counts[i]);
    b.batch.max_context = std::max(b.batch.max_context, first[i] + counts[i]);
  }
  return b;
}

void compare(const History& history, const Case& c, const cuda::Buffer& out, const std::vector<int>& counts,
             const std::vector<int>& first, const char* what, Checks& checks) {
  size_t columns = size_t(c.heads) * c.head_dim, token = 0;
  std::vector<double> got, expected;
  int total = 0;
  for (int n : counts) total += n;
  std::vector<f16> host = download<f16>(out, columns * total);
  for (size_t s = 0; s < counts.size(); ++s)
    for (int i = 0; i < counts[s]; ++i, ++token) {
      // Long prompts: a sample of the positions, at every place in a tile.
      const int stride = std::max(13, counts[s] / 8 | 1);
      if (counts[s] > 40 && i % stride != 0 && i != counts[s] - 1) continue;
      std::vector<double> row = history.attend(int(s), first[s] + i);
      expected.insert(expected.end(), row.begin(), row.end());
      for (size_t j = 0; j < columns; ++j) got.push_back(half_value(host[token * columns + j]));
    }
  checks.below(relative_error(got, expected), tolerance(c.dtype), name_of(c, what));
}

void run(const Case& c, const cuda::Launch& on, Checks& checks) {
  DeviceRandom random(c.heads * 100 + c.head_dim + c.window);
  History history(c, random);
  KvLayout kv{2, c.kv_heads, c.head_dim, c.block_size, c.dtype};
  std::vector<int> block_starts = {0}, zeros(c.prompts.size(), 0), ones(c.prompts.size(), 1);
  for (int length : c.prompts) block_starts.push_back(block_starts.back() + (length + c.block_size) / c.block_size);
  std::vector<uint32_t> blocks(block_starts.back());
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = uint32_t((i * 5 + 3) % blocks.size() * (kv.block_bytes() / kKvUnitBytes));
  if (blocks.size() % 5 == 0) for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = uint32_t((blocks.size() - 1 - i) * (kv.block_bytes() / kKvUnitBytes));
  cuda::Buffer arena, q, out, workspace;
  require(arena.allocate(kv.block_bytes() * blocks.size()), "arena");
  // What no token has written is no number, neither as a half nor as a scale.
  require(cuda::to_status(cudaMemset(arena.as<void>(), 0xff, arena.bytes()), "memset"), "arena");
  int total = 0;
  for (int length : c.prompts) total += length;
  require(q.allocate(size_t(total) * c.heads * c.head_dim * 2), "q");
  require(out.allocate(q.bytes()), "out");
  require(workspace.allocate(cuda::attention_workspace_bytes(int(c.prompts.size()), c.heads, c.head_dim, c.splits)), "workspace");
  require(cuda::to_status(cudaMemset(workspace.as<void>(), 0, workspace.bytes()), "memset"), "workspace");
  cuda::Buffer freq = upload(history.inv_freq), q_norm = upload(history.q_norm), k_norm = upload(history.k_norm);

  RopeKvArgs<f16> rope;
  rope.q = q.as<f16>();
  rope.kv = &kv;
  rope.arena = arena.as<void>();
  rope.layer = 1;
  rope.heads = c.heads;
  rope.inv_freq = freq.as<float>();
  rope.rotary_dim = c.head_dim;
  rope.interleaved = c.interleaved;
  rope.q_norm = c.norms ? q_norm.as<float>() : nullptr;
  rope.k_norm = c.norms ? k_norm.as<float>() : nullptr;
  rope.norm_eps = 1e-6f;
  AttentionArgs<f16> args;
  args.q = q.as<f16>();
  args.out = out.as<f16>();
  args.kv = &kv;
  args.arena = arena.as<void>();
  args.layer = 1;
  args.heads = c.heads;
  args.scale = 1 / std::sqrt(float(c.head_dim));
  args.window = c.window;
  args.softcap = c.softcap;

  // The prompts in two chunks, then one token each.
  std::vector<int> half, rest;
  for (int length : c.prompts) half.push_back((length + 1) / 2), rest.push_back(length - (length + 1) / 2);
  auto prefill = [&](const std::vector<int>& counts, const std::vector<int>& first, const char* what) {
    std::vector<f16> rows;
    for (size_t s = 0; s < counts.size(); ++s)
      rows.insert(rows.end(), history.token(int(s), first[s]), history.token(int(s), first[s]) + size_t(counts[s]) * history.row());
    cuda::Buffer qkv = upload(rows);
    DeviceBatch b = make_batch(counts, first, block_starts, blocks);
    rope.qkv = qkv.as<f16>();
    rope.batch = args.batch = &b.batch;
    require(cuda::rope_kv(rope, on), "rope_kv");
    require(cuda::prefill_attention(args, on), "prefill_attention");
    compare(history, c, out, counts, first, what, checks);
    if (c.dtype != KvDtype::fp16) return;
    require(cuda::to_status(cudaMemset(out.as<void>(), 0xff, out.bytes()), "memset"), "out");
    require(cuda::wide_attention(args, on), "wide_attention");
    compare(history, c, out, counts, first, (std::string("wide ") + what).c_str(), checks);
  };
  prefill(half, zeros, "prefill");
  prefill(rest, half, "second chunk");
  std::vector<f16> rows;
  for (size_t s = 0; s < c.prompts.size(); ++s)
    rows.insert(rows.end(), history.token(int(s), c.prompts[s]), history.token(int(s), c.prompts[s]) + history.row());
  cuda::Buffer qkv = upload(rows);
  DeviceBatch b = make_batch(ones, c.prompts, block_starts, blocks);
  rope.qkv = qkv.as<f16>();
  rope.batch = args.batch = &b.batch;
  require(cuda::to_status(cudaMemset(out.as<void>(), 0xff, out.bytes()), "memset"), "out");
  require(cuda::decode_attention(rope, args, c.splits, workspace.as<void>(), 0, {}, on), "decode_attention");
  compare(history, c, out, ones, c.prompts, "decode", checks);
  // Splits that meet in a cluster's shared memory give, to the bit, what they give in device memory.
  const std::vector<f16> met = download<f16>(out, out.bytes() / 2);
  cuda::Launch plain = on;
  plain.device.hopper = false;
  require(cuda::to_status(cudaMemset(out.as<void>(), 0xff, out.bytes()), "memset"), "out");
  require(cuda::decode_attention(rope, args, c.splits, workspace.as<void>(), 0, {}, plain), "decode_attention");
  const std::vector<f16> apart = download<f16>(out, out.bytes() / 2);
  checks.below(std::memcmp(met.data(), apart.data(), out.bytes()) != 0, 1, name_of(c, "decode by cluster"));
  // Once more, into tiles of inputs.
  const int sequences = int(c.prompts.size()), columns = c.heads * c.head_dim;
  const size_t tile_bytes = cuda::input_tile_bytes(sequences);
  cuda::Buffer tiles;
  require(tiles.allocate(cuda::tiled_input_bytes(sequences, columns)), "tiles");
  args.out = tiles.as<f16>();
  require(cuda::decode_attention(rope, args, c.splits, workspace.as<void>(), tile_bytes, {}, on), "decode_attention");
  const std::vector<f16> tiled = download<f16>(tiles, tiles.bytes() / 2);
  std::vector<f16> untiled;
  for (int s = 0; s < sequences; ++s)
    for (int k = 0; k < columns; ++k) untiled.push_back(tiled[cuda::tiled_input(s, k, tile_bytes) / 2]);
  out = upload(untiled);
  compare(history, c, out, ones, c.prompts, "decode in tiles", checks);
}

std::vector<int> lengths(int sequences) {
  std::vector<int> all;
  for (int i = 0; i < sequences; ++i) all.push_back(1 + i * 37 % 90);
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  const int longest = argc > 1 ? std::atoi(argv[1]) : 8191;
  cuda::Launch on = open_device();
  Checks checks;
  const auto test = [&](const Case& c) {
    if (*std::max_element(c.prompts.begin(), c.prompts.end()) <= longest) run(c, on, checks);
  };
  for (KvDtype dtype : {KvDtype::fp16, KvDtype::fp8, KvDtype::int8}) {
    test({4, 4, 128, 16, 0, 1, 0, false, false, {2, 17, 33, 128, 131}, dtype});
    test({4, 2, 64, 32, 0, 4, 0, false, false, {15, 16, 300}, dtype});
    test({9, 3, 64, 16, 0, 3, 0, true, false, {77, 200}, dtype});
    test({8, 1, 128, 16, 0, 8, 0, false, true, {31, 900}, dtype});
    test({8, 2, 128, 16, 50, 2, 0, false, false, {20, 180}, dtype});
    test({4, 2, 96, 16, 0, 2, 20, false, false, {40, 100}, dtype});
    test({4, 2, 256, 16, 0, 2, 0, false, true, {40, 100}, dtype});
    test({4, 2, 128, 32, 0, 2, 0, false, false, {1, 64, 129, 520}, dtype});
    test({4, 1, 64, 16, 70, 2, 0, false, false, {5, 330}, dtype});
    test({2, 1, 256, 16, 40, 2, 30, false, false, {3, 230}, dtype});
    // Query heads per key head that the families above have not; contexts of 8,192 tokens.
    test({10, 2, 128, 16, 0, 2, 0, false, true, {33, 700}, dtype});
    test({12, 2, 128, 32, 0, 4, 0, false, false, {100, 1500}, dtype});
    test({14, 2, 64, 16, 0, 1, 0, false, false, {8191, 1, 2048}, dtype});
    test({7, 1, 128, 16, 0, 16, 0, false, false, {4095, 8191}, dtype});
    test({4, 1, 256, 16, 4096, 8, 0, false, false, {8191}, dtype});
    // So many blocks that each has few warps; a batch of 256.
    test({4, 2, 64, 16, 0, 1, 0, false, false, lengths(256), dtype});
    test({8, 8, 128, 16, 0, 1, 0, false, false, lengths(60), dtype});
    test({16, 16, 64, 16, 0, 1, 0, false, false, lengths(110), dtype});
  }
  return checks.report("attention");
}
