#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/pointwise_kernels.h"
#include "ops/kv_codes.h"

namespace edgeshift::cpu {

namespace {

// The sequence that token `t` of the batch belongs to.
int sequence_of(const SequenceBatch& b, int64_t t) {
  return int(std::upper_bound(b.starts, b.starts + b.s + 1, int32_t(t)) - b.starts) - 1;
}

// Where a token's keys and values go: its block and its place inside.
struct Place {
  char* block;
  int inside;
};

Place place_of(const RopeKvArgs<float>& a, int64_t t) {
  const SequenceBatch& b = *a.batch;
  int sequence = sequence_of(b, t);
  int position = b.first_positions[sequence] + int(t - b.starts[sequence]);
  uint32_t entry = b.blocks[b.block_starts[sequence] + position / a.kv->block_size];
  char* block = static_cast<char*>(a.arena) + size_t(entry) * kKvUnitBytes;
  return {block, position % a.kv->block_size};
}

// count floats to codes; returns their scale.
uint16_t to_codes(const float* from, uint8_t* to, int count, KvDtype dtype) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(from[i]));
  const uint16_t scale = kv_scale(largest, dtype);
  const float inverse = 1.0f / bf16_to_float(scale);
  if (dtype == KvDtype::fp8) {
    for (int i = 0; i < count; ++i) to[i] = fp8_code(from[i] * inverse);
  } else {
    for (int i = 0; i < count; ++i) to[i] = int8_code(from[i] * inverse);
  }
  return scale;
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
    float key[256];
    std::copy_n(from, args.kv->head_dim, key);
    rotate(key, args.k_norm);
    const KvLayout& kv = *args.kv;
    const size_t stride = size_t(kv.block_size), inside = size_t(place.inside);
    write(key, place.block + kv.key_offset(args.layer, head) + inside * kv.element_bytes(), stride,
          place.block + kv.key_scale_offset(args.layer, head));
  }

  void write_value(const float* from, int head) const {
    const KvLayout& kv = *args.kv;
    const size_t row = size_t(kv.head_dim) * kv.element_bytes();
    write(from, place.block + kv.value_offset(args.layer, head) + size_t(place.inside) * row, 1,
          place.block + kv.value_scale_offset(args.layer, head));
  }

  // A head's row as elements `stride` apart, and its scale where they are codes.
  void write(const float* from, char* to, size_t stride, char* scales) const {
    const int dim = args.kv->head_dim;
    if (args.kv->scaled()) {
      uint8_t codes[256];
      reinterpret_cast<uint16_t*>(scales)[place.inside] = to_codes(from, codes, dim, args.kv->dtype);
      for (int d = 0; d < dim; ++d) to[size_t(d) * stride] = char(codes[d]);
      return;
    }
    f16 halves[256];
    kernels.to_half(from, halves, dim);
    for (int d = 0; d < dim; ++d) reinterpret_cast<f16*>(to)[size_t(d) * stride] = halves[d];
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
