#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/pointwise_kernels.h"

namespace edgeshift::cpu {

namespace {

// The sequence that token `t` of the batch belongs to.
int sequence_of(const SequenceBatch& b, int64_t t) {
  return int(std::upper_bound(b.starts, b.starts + b.s + 1, int32_t(t)) - b.starts) - 1;
}

// Where a token's keys and values go: its block and its place inside.
struct Place {
  f16* layer;
  int inside;
};

Place place_of(const RopeKvArgs<float>& a, int64_t t) {
  const SequenceBatch& b = *a.batch;
  int sequence = sequence_of(b, t);
  int position = b.first_positions[sequence] + int(t - b.starts[sequence]);
  uint32_t entry = b.blocks[b.block_starts[sequence] + position / a.kv->block_size];
  char* block = static_cast<char*>(a.arena) + size_t(entry) * kKvUnitBytes;
  return {reinterpret_cast<f16*>(block) + size_t(a.layer) * a.kv->layer_elements(), position % a.kv->block_size};
}

struct Token {
  const RopeKvArgs<float>& args;
  const PointwiseKernels& kernels;
  const float* cos_sin;  // of this token
  Place place;

  void rotate(float* head, const float* norm) const {
    RotateArgs r;
    r.head = head;
    r.head_dim = args.kv->head_dim;
    r.norm = norm;
    r.eps = args.norm_eps;
    r.cos = cos_sin;
    r.sin = cos_sin + args.rotary_dim / 2;
    r.rotary_dim = args.rotary_dim;
    r.interleaved = args.interleaved;
    kernels.rotate(r);
  }

  // Keys are transposed in the cache: neighbouring elements lie block_size apart.
  void write_key(const float* from, int head) const {
    const int dim = args.kv->head_dim;
    float key[256];
    f16 halves[256];
    std::copy_n(from, dim, key);
    rotate(key, args.k_norm);
    kernels.to_half(key, halves, dim);
    f16* to = place.layer + args.kv->key_offset(head) + place.inside;
    for (int d = 0; d < dim; ++d) to[size_t(d) * size_t(args.kv->block_size)] = halves[d];
  }

  void write_value(const float* from, int head) const {
    size_t at = args.kv->value_offset(head) + size_t(place.inside) * size_t(args.kv->head_dim);
    kernels.to_half(from, place.layer + at, args.kv->head_dim);
  }
};

void run_token(const RopeKvArgs<float>& a, const PointwiseKernels& kernels, const float* cos_sin, int64_t t) {
  const int dim = a.kv->head_dim, kv_heads = a.kv->kv_heads;
  Token token{a, kernels, cos_sin + t * a.rotary_dim, place_of(a, t)};
  const float* row = a.qkv + t * (a.heads + 2 * kv_heads) * dim;
  float* q = a.q + t * a.heads * dim;
  std::copy_n(row, a.heads * dim, q);
  for (int h = 0; h < a.heads; ++h) token.rotate(q + h * dim, a.q_norm);
  for (int h = 0; h < kv_heads; ++h) {
    token.write_key(row + (a.heads + h) * dim, h);
    token.write_value(row + (a.heads + kv_heads + h) * dim, h);
  }
}

}  // namespace

Status rope_table(ThreadPool& pool, const SequenceBatch& batch, const SequenceRope* ropes, int rotary_dim,
                  float* cos_sin) {
  int half = rotary_dim / 2;
  pool.for_ranges(batch.t, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      int sequence = sequence_of(batch, t);
      float position = float(batch.first_positions[sequence] + int(t - batch.starts[sequence]));
      const SequenceRope& rope = ropes[sequence];
      float* cos = cos_sin + t * rotary_dim;
      for (int i = 0; i < half; ++i) {
        // The angle is rounded to float as in the models' own code; its sine and cosine are not.
        double angle = position * rope.inv_freq[i];
        cos[i] = float(std::cos(angle)) * rope.scale;
        cos[half + i] = float(std::sin(angle)) * rope.scale;
      }
    }
  });
  return {};
}

Status rope_kv(ThreadPool& pool, const RopeKvArgs<float>& args, const float* cos_sin) {
  const int dim = args.kv->head_dim;
  if (dim > 256 || args.rotary_dim > dim || args.rotary_dim % 2 != 0) {
    return {Code::unsupported, "head_dim " + std::to_string(dim) + " with rotary_dim " + std::to_string(args.rotary_dim)};
  }
  const PointwiseKernels& kernels = ES_KERNELS(pool.isa(), pointwise);
  int64_t chunk = std::max(1, 4096 / ((args.heads + 2 * args.kv->kv_heads) * dim));
  pool.for_ranges(args.batch->t, chunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) run_token(args, kernels, cos_sin, t);
  });
  return {};
}

}  // namespace edgeshift::cpu
