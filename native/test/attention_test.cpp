// rope_kv and attention on every instruction set of this machine against the double reference.
//
// Tolerance: 2e-5 of the largest value's size for attention (fp32 sums and exponentials), 1e-6 for the rotation, one
// rounding to fp16 for the cache or half a step of its codes. Exact: decode, chunked prefill and whole prefill; any batch; any number of threads.
#include <cstring>

#include "cpu/ops.h"
#include "ops/reference/reference.h"
#include "test/check.h"
#include "test/isas.h"
#include "test/random.h"

using namespace edgeshift;

namespace {

struct Case {
  int heads, kv_heads, head_dim, block_size, window;
  float softcap;
  bool interleaved, norm;
  int rotary_dim;
  KvDtype dtype = KvDtype::fp16;
};

constexpr int kLayers = 2;

// A cache and the sequences that fill it; every sequence owns blocks scattered over the arena.
struct World {
  Case c;
  KvLayout kv;
  std::vector<char> arena;
  std::vector<std::vector<uint32_t>> tables;
  std::vector<std::vector<float>> qkv;  // [sequence][position, (heads + 2 kv_heads) * head_dim]
  std::vector<float> inv_freq, q_norm, k_norm;

  int row_floats() const { return (c.heads + 2 * c.kv_heads) * c.head_dim; }
};

World make_world(const Case& c, const std::vector<int>& lengths) {
  test::Random random(uint64_t(c.heads * 31 + c.head_dim + c.window));
  World w{c, {kLayers, c.kv_heads, c.head_dim, c.block_size, c.dtype}, {}, {}, {}, {}, {}, {}};
  int blocks = 0;
  for (int length : lengths) blocks += (length + c.block_size - 1) / c.block_size;
  // What no token has written is poison: reading it into a result shows.
  w.arena.assign(size_t(blocks) * w.kv.block_bytes() + 256, char(0x7f));
  int next = 0;
  for (int length : lengths) {
    std::vector<uint32_t> table;
    for (int i = 0; i < (length + c.block_size - 1) / c.block_size; ++i, ++next) {
      table.push_back(uint32_t(size_t(blocks - 1 - next) * w.kv.block_bytes() / kKvUnitBytes));
    }
    w.tables.push_back(table);
    w.qkv.push_back(random.normals(size_t(length) * size_t(w.row_floats())));
  }
  for (int i = 0; i < c.rotary_dim / 2; ++i) w.inv_freq.push_back(std::pow(10000.0f, -2.0f * float(i) / float(c.rotary_dim)));
  w.q_norm = random.normals(size_t(c.head_dim));
  w.k_norm = random.normals(size_t(c.head_dim));
  return w;
}

// What one rounding may take of a value in a row with that largest one; scales are up to 2^-7 larger than they have to be.
double rounding(KvDtype dtype, double value, double largest) {
  const double step = largest / double(largest_code(dtype)) * (1 + 0x1p-7);
  if (dtype == KvDtype::int8) return 0.5001 * step;
  if (dtype == KvDtype::fp8) return std::max(0x1.001p-4 * std::fabs(value), step * 0x1.001p-10);
  return 0x1p-11 * std::fabs(value);
}

// Part of a sequence that one call processes.
struct Part {
  int sequence, first, count;
};

// Runs rope_kv and attention for the parts as one batch; outputs and rotated queries by part.
std::vector<std::vector<float>> run(cpu::ThreadPool& pool, World& w, const std::vector<Part>& parts, int layer) {
  std::vector<int32_t> starts{0}, firsts, block_starts{0};
  std::vector<uint32_t> blocks;
  std::vector<float> qkv;
  SequenceBatch b;
  for (const Part& p : parts) {
    starts.push_back(starts.back() + p.count);
    firsts.push_back(p.first);
    blocks.insert(blocks.end(), w.tables[size_t(p.sequence)].begin(), w.tables[size_t(p.sequence)].end());
    block_starts.push_back(int32_t(blocks.size()));
    const float* from = w.qkv[size_t(p.sequence)].data() + int64_t(p.first) * w.row_floats();
    qkv.insert(qkv.end(), from, from + int64_t(p.count) * w.row_floats());
    b.max_count = std::max(b.max_count, p.count);
    b.max_context = std::max(b.max_context, p.first + p.count);
  }
  b.s = int(parts.size());
  b.t = starts.back();
  b.starts = starts.data();
  b.first_positions = firsts.data();
  b.block_starts = block_starts.data();
  b.blocks = blocks.data();
  size_t width = size_t(w.c.heads * w.c.head_dim);
  std::vector<float> q(size_t(b.t) * width, NAN), out(size_t(b.t) * width, NAN), table(size_t(b.t * w.c.rotary_dim));
  std::vector<cpu::SequenceRope> ropes(size_t(b.s), {w.inv_freq.data(), 1.0f});
  ES_CHECK(cpu::rope_table(pool, b, ropes.data(), w.c.rotary_dim, table.data()).ok());
  RopeKvArgs<float> rope;
  rope.qkv = qkv.data();
  rope.q = q.data();
  rope.batch = &b;
  rope.kv = &w.kv;
  rope.arena = w.arena.data();
  rope.layer = layer;
  rope.heads = w.c.heads;
  rope.inv_freq = w.inv_freq.data();
  rope.rotary_dim = w.c.rotary_dim;
  rope.interleaved = w.c.interleaved;
  rope.q_norm = w.c.norm ? w.q_norm.data() : nullptr;
  rope.k_norm = w.c.norm ? w.k_norm.data() : nullptr;
  rope.norm_eps = 1e-5f;
  ES_CHECK(cpu::rope_kv(pool, rope, table.data()).ok());
  AttentionArgs<float> a;
  a.q = q.data();
  a.out = out.data();
  a.batch = &b;
  a.kv = &w.kv;
  a.arena = w.arena.data();
  a.layer = layer;
  a.heads = w.c.heads;
  a.scale = 1.0f / std::sqrt(float(w.c.head_dim));
  a.window = w.c.window;
  a.softcap = w.c.softcap;
  ES_CHECK(cpu::attention(pool, a).ok());
  std::vector<std::vector<float>> result;
  for (size_t i = 0; i < parts.size(); ++i) {
    result.emplace_back(out.begin() + int64_t(size_t(starts[i]) * width), out.begin() + int64_t(size_t(starts[i + 1]) * width));
  }
  // Checked here, while the batch is at hand.
  for (size_t i = 0; i < parts.size(); ++i) {
    for (int t = parts[i].count - 1; t >= 0; t -= std::max(1, parts[i].count / 3)) {
      int position = parts[i].first + t;
      size_t row = size_t(starts[i] + t);
      for (int h = 0; h < w.c.heads; h += std::max(1, w.c.heads - 1)) {
        const float* raw = qkv.data() + row * size_t(w.row_floats()) + h * w.c.head_dim;
        const float* rotated = q.data() + row * width + size_t(h * w.c.head_dim);
        std::vector<double> expected_q = ref::rotate(rope, raw, rope.q_norm, position);
        std::vector<double> expected = ref::attend(a, int(i), position, h, rotated);
        for (int d = 0; d < w.c.head_dim; ++d) {
          ES_CHECK(std::fabs(double(rotated[d]) - expected_q[size_t(d)]) <= 1e-6 * (1 + std::fabs(expected_q[size_t(d)])) * 4);
          ES_CHECK(std::fabs(double(result[i][size_t(t) * width + size_t(h * w.c.head_dim + d)]) - expected[size_t(d)]) <= 2e-5 * 4);
        }
      }
      for (int h = 0; h < w.c.kv_heads; ++h) {
        const float* key = qkv.data() + row * size_t(w.row_floats()) + (w.c.heads + h) * w.c.head_dim;
        const float* value = key + w.c.kv_heads * w.c.head_dim;
        std::vector<double> expected = ref::rotate(rope, key, rope.k_norm, position);
        double largest_key = 0, largest_value = 0;
        for (int d = 0; d < w.c.head_dim; ++d) {
          largest_key = std::max(largest_key, std::fabs(expected[size_t(d)]));
          largest_value = std::max(largest_value, std::fabs(double(value[d])));
        }
        const uint32_t* table_of = w.tables[size_t(parts[i].sequence)].data();
        for (int d = 0; d < w.c.head_dim; ++d) {
          double k = ref::cached(w.kv, w.arena.data(), table_of, layer, h, position, d, true);
          double v = ref::cached(w.kv, w.arena.data(), table_of, layer, h, position, d, false);
          ES_CHECK(std::fabs(k - expected[size_t(d)]) <= rounding(w.c.dtype, expected[size_t(d)], largest_key) + 1e-6);
          ES_CHECK(std::fabs(v - double(value[d])) <= rounding(w.c.dtype, double(value[d]), largest_value));
        }
      }
    }
  }
  return result;
}

bool same(const std::vector<float>& all, size_t from, const std::vector<float>& part) {
  return !std::memcmp(all.data() + from, part.data(), part.size() * sizeof(float));
}

void check_case(cpu::Isa isa, const Case& c, const std::vector<int>& lengths) {
  cpu::ThreadPool one(1, isa), three(3, isa);
  World w = make_world(c, lengths);
  std::vector<Part> whole;
  for (int i = 0; i < int(lengths.size()); ++i) whole.push_back({i, 0, lengths[size_t(i)]});
  std::vector<std::vector<float>> expected = run(three, w, whole, 1);
  size_t width = size_t(c.heads * c.head_dim);
  for (int s = 0; s < int(lengths.size()); ++s) {
    // In uneven chunks, then token by token at the end, in a fresh cache.
    World other = make_world(c, lengths);
    int done = 0;
    for (int chunk : {1, 50, 7, 3, 130, 300}) {
      int count = std::min(chunk, lengths[size_t(s)] - done);
      if (count <= 0) break;
      std::vector<float> out = run(one, other, {{s, done, count}}, 1)[0];
      ES_CHECK(same(expected[size_t(s)], size_t(done) * width, out));
      done += count;
    }
    // Decode steps on the full cache: alone (split over threads) and on one thread.
    for (int position = lengths[size_t(s)] - 1; position >= 0; position -= 1 + lengths[size_t(s)] / 4) {
      ES_CHECK(same(expected[size_t(s)], size_t(position) * width, run(three, w, {{s, position, 1}}, 1)[0]));
      ES_CHECK(same(expected[size_t(s)], size_t(position) * width, run(one, w, {{s, position, 1}}, 1)[0]));
    }
  }
  // All sequences' last tokens as one decode batch.
  std::vector<Part> last;
  for (int i = 0; i < int(lengths.size()); ++i) last.push_back({i, lengths[size_t(i)] - 1, 1});
  std::vector<std::vector<float>> out = run(three, w, last, 1);
  for (size_t s = 0; s < lengths.size(); ++s) ES_CHECK(same(expected[s], size_t(lengths[s] - 1) * width, out[s]));
}

void check_isa(cpu::Isa isa) {
  // SmolLM2's shape first; then other groupings, sizes, windows and rotations.
  check_case(isa, {9, 3, 64, 16, 0, 0, true, false, 64}, {300, 1, 65, 17});
  check_case(isa, {9, 3, 64, 16, 0, 0, true, false, 64}, {700});
  check_case(isa, {1, 1, 32, 16, 0, 0, false, false, 32}, {70, 5});
  check_case(isa, {4, 1, 48, 32, 0, 30, false, true, 32}, {90, 33});
  check_case(isa, {10, 2, 128, 16, 40, 0, false, true, 128}, {150, 64});
  check_case(isa, {6, 1, 80, 64, 0, 0, true, false, 80}, {130});
  check_case(isa, {7, 1, 256, 16, 300, 0, false, false, 128}, {400});
  check_case(isa, {9, 1, 96, 16, 64, 50, true, true, 96}, {200, 2});
  // A long context: many splits of a token's cache.
  check_case(isa, {1, 1, 32, 16, 0, 0, false, false, 32}, {8192});
  for (KvDtype dtype : {KvDtype::fp8, KvDtype::int8}) {
    check_case(isa, {9, 3, 64, 16, 0, 0, true, false, 64, dtype}, {300, 1, 65, 17});
    check_case(isa, {9, 3, 64, 16, 0, 0, true, false, 64, dtype}, {700});
    check_case(isa, {4, 1, 48, 32, 0, 30, false, true, 32, dtype}, {90, 33});
    check_case(isa, {10, 2, 128, 16, 40, 0, false, true, 128, dtype}, {150, 64});
    check_case(isa, {7, 1, 256, 16, 300, 0, false, false, 128, dtype}, {400});
    check_case(isa, {8, 1, 96, 16, 64, 50, true, true, 96, dtype}, {200, 2});
  }
}

// Codes against a search over all of them, and scales: rounded up, within bf16's precision, never zero or infinite.
void check_codes() {
  for (KvDtype dtype : {KvDtype::fp8, KvDtype::int8}) {
    const float limit = largest_code(dtype);
    auto nearest = [&](float x) {
      double best = INFINITY;
      for (int code = 0; code < 256; ++code) {
        if (dtype == KvDtype::fp8 && (code & 0x7f) == 0x7f) continue;  // NaN
        if (dtype == KvDtype::int8 && code == 0x80) continue;
        best = std::min(best, std::fabs(double(x) - double(kv_code_value(uint8_t(code), dtype))));
      }
      return best;
    };
    auto encode = [&](float x) { return dtype == KvDtype::fp8 ? fp8_code(x) : int8_code(x); };
    for (int code = 0; code < 256; ++code) {
      const float value = kv_code_value(uint8_t(code), dtype);
      if (std::fabs(value) <= limit && value != 0) ES_CHECK(encode(value) == code);
    }
    test::Random random(3);
    for (float x : random.normals(4000)) {
      for (float y : {x, x * 0.004f, x * 100}) {
        ES_CHECK(std::fabs(double(y) - double(kv_code_value(encode(y), dtype))) == nearest(y));
      }
    }
    for (float x : {1e9f, INFINITY}) {
      ES_CHECK(kv_code_value(encode(x), dtype) == limit && kv_code_value(encode(-x), dtype) == -limit);
    }
    for (float largest : {1e-6f, 0.3f, 1.0f, 77.7f, 65504.0f, 1e9f}) {
      const double scale = double(bf16_to_float(kv_scale(largest, dtype))), exact = double(largest) / double(limit);
      ES_CHECK(scale >= exact * (1 - 1e-6) && scale <= exact * (1 + 0x1p-7));
    }
    for (float largest : {0.0f, INFINITY}) {
      const float scale = bf16_to_float(kv_scale(largest, dtype));
      ES_CHECK(scale > 0 && std::isfinite(scale) && std::isfinite(1 / scale));
    }
  }
}

// The same table as test/unit/kv-block-bytes.test.ts.
void check_block_bytes() {
  auto bytes = [](int head_dim, KvDtype dtype) { return KvLayout{2, 3, head_dim, 16, dtype}.block_bytes(); };
  ES_CHECK(bytes(80, KvDtype::fp16) == 30720 && bytes(80, KvDtype::fp8) == 15872 && bytes(80, KvDtype::int8) == 15872);
  ES_CHECK(bytes(96, KvDtype::fp16) == 36864 && bytes(96, KvDtype::fp8) == 18944 && bytes(96, KvDtype::int8) == 18944);
}

void check_limits() {
  cpu::ThreadPool pool(1);
  World w = make_world({2, 1, 32, 16, 0, 0, false, false, 32}, {4});
  SequenceBatch b;
  AttentionArgs<float> a;
  a.batch = &b;
  a.kv = &w.kv;
  a.heads = 2;
  w.kv.head_dim = 24;
  ES_CHECK(cpu::attention(pool, a).code() == Code::unsupported);
  w.kv.head_dim = 32;
  w.kv.block_size = 8;
  ES_CHECK(cpu::attention(pool, a).code() == Code::invalid_argument);
}

}  // namespace

int main() {
  check_block_bytes();
  check_codes();
  check_limits();
  return test::for_each_isa(check_isa);
}
