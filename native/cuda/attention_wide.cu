// Prefill attention for prompts of some length: keys and values go through shared memory once for a block's queries.
//
// A warp takes 32 queries (head_dim 256: 16) of one head, a block four warps; they walk over tiles of 64 (32) cached tokens
// that cp.async brings from the paged cache while the tile before is used. S = Q K^T and O += P V in the tensor cores' usual
// orientation: the scores of a fragment are the next product's A operand where they lie. Rows of head_dim stand in 16-byte
// pieces swapped by the row's lowest three bits: no bank conflicts for ldmatrix.
#include <algorithm>

#include "cuda/attention.h"
#include "cuda/attention_tile.cuh"

namespace edgeshift::cuda {
namespace {

template <int D>
struct WideAttention {
  static constexpr int warps = 4, threads = warps * 32;
  static constexpr int query_tiles = D > 128 ? 1 : 2, warp_queries = query_tiles * 16, queries = warps * warp_queries;
  static constexpr int keys = D > 128 ? 32 : 64;
  static constexpr int pieces = D / 8, stride = (D * 2 + 127) / 128 * 128;
  static constexpr int tile_bytes = keys * stride, query_bytes = queries * stride;
  static constexpr int shared = query_bytes + 4 * tile_bytes;  // keys and values, each twice
};

struct WideAttentionParams {
  AttentionArgs<f16> args;
  SequenceBatch batch;
  KvLayout kv;
  ScoreRule rule;
};

__device__ inline float exp2_fast(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// Where a 16-byte piece of a row stands.
template <int D>
__device__ inline uint32_t piece_at(int row, int piece) {
  return row * WideAttention<D>::stride + (piece ^ row % 8) * 16;
}

// Keys and values of a tile; tokens past `last` repeat it: their scores are masked. Sixteen tokens lie in one cache block.
template <int D>
__device__ inline void fetch_tile(const CacheRows& cache, int first, int last, uint32_t to) {
  using Shape = WideAttention<D>;
#pragma unroll
  for (int group = 0; group < Shape::keys / 16; ++group) {
    const int token = min(first + group * 16, last / 16 * 16), block = token / cache.block_size;
    const unsigned char* from = cache.arena + size_t(cache.blocks[block]) * kKvUnitBytes + size_t(token - block * cache.block_size) * (D * 2);
#pragma unroll
    for (int i = 0; i < (16 * Shape::pieces + Shape::threads - 1) / Shape::threads; ++i) {
      const int index = i * Shape::threads + threadIdx.x, row = index / Shape::pieces, piece = index % Shape::pieces;
      if (16 * Shape::pieces % Shape::threads != 0 && row >= 16) break;
      const unsigned char* at = from + min(row, last - token) * (D * 2) + piece * 16;
      const uint32_t place = to + piece_at<D>(group * 16 + row, piece);
      copy_async16(place, at + cache.keys);
      copy_async16(place + Shape::tile_bytes, at + cache.values);
    }
  }
}

// A warp's scores of a tile.
template <int D>
__device__ inline void score(uint32_t queries, uint32_t keys, float (&s)[WideAttention<D>::query_tiles][WideAttention<D>::keys / 8][4]) {
  using Shape = WideAttention<D>;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int q = 0; q < Shape::query_tiles; ++q)
#pragma unroll
    for (auto& tile : s[q]) tile[0] = tile[1] = tile[2] = tile[3] = 0;
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[Shape::query_tiles][4];
#pragma unroll
    for (int q = 0; q < Shape::query_tiles; ++q)
      load_matrices(queries + q * 16 * Shape::stride + piece_at<D>(lane % 16, step * 2 + lane / 16), a[q][0], a[q][1], a[q][2], a[q][3]);
#pragma unroll
    for (int pair = 0; pair < Shape::keys / 16; ++pair) {
      uint32_t b[4];
      load_matrices(keys + pair * 16 * Shape::stride + piece_at<D>(lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2), b[0], b[1], b[2], b[3]);
#pragma unroll
      for (int q = 0; q < Shape::query_tiles; ++q) {
        mma_16816(s[q][pair * 2], a[q], b[0], b[1]);
        mma_16816(s[q][pair * 2 + 1], a[q], b[2], b[3]);
      }
    }
  }
}

template <int D>
using Scores = float (&)[WideAttention<D>::query_tiles][WideAttention<D>::keys / 8][4];

// Raw scores to log2 units.
template <int D>
__device__ inline void scale_scores(const ScoreRule& rule, Scores<D> s) {
  const float cap = rule.softcap * 1.44269504f;
#pragma unroll
  for (auto& query : s)
#pragma unroll
    for (auto& tile : query)
#pragma unroll
      for (float& v : tile) v *= rule.scale;
  if (cap == 0) return;
#pragma unroll
  for (auto& query : s)
#pragma unroll
    for (auto& tile : query)
#pragma unroll
      for (float& v : tile) v = cap * tanhf(v / cap);
}

// Hides what lies in a query's future or before its window (0: none). The tile starts at token key0, the warp's queries at
// position `first`.
template <int D>
__device__ inline void mask_scores(int window, int key0, int first, Scores<D> s) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int q = 0; q < WideAttention<D>::query_tiles; ++q)
#pragma unroll
    for (int n = 0; n < WideAttention<D>::keys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = key0 + n * 8 + lane % 4 * 2 + i % 2, position = first + q * 16 + lane / 4 + i / 2 * 8;
        if (token > position || (window > 0 && token <= position - window)) s[q][n][i] = -INFINITY;
      }
}

// The running softmax of 16 queries: lane (g, t) keeps those of g and g + 8.
template <int D>
struct QueryRows {
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
  float o[D / 8][4] = {};

  // Scores (log2 units, -inf = masked) become probabilities; sums so far shrink to the new maximum.
  __device__ void fold(float (&s)[WideAttention<D>::keys / 8][4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = m[r];
#pragma unroll
      for (const auto& tile : s) top = fmaxf(top, fmaxf(tile[2 * r], tile[2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float base = top == -INFINITY ? 0 : top;  // nothing yet: keeps exp2 away from inf - inf
      const float scale = exp2_fast(m[r] - base);
      m[r] = top;
      float sum = 0;
#pragma unroll
      for (auto& tile : s) {
        tile[2 * r] = exp2_fast(tile[2 * r] - base);
        tile[2 * r + 1] = exp2_fast(tile[2 * r + 1] - base);
        sum += tile[2 * r] + tile[2 * r + 1];
      }
      l[r] = l[r] * scale + sum;
#pragma unroll
      for (auto& tile : o) {
        tile[2 * r] *= scale;
        tile[2 * r + 1] *= scale;
      }
    }
  }
};

template <int D>
__global__ void __launch_bounds__(WideAttention<D>::threads, D > 128 ? 1 : 2) wide_attention_kernel(const __grid_constant__ WideAttentionParams p) {
  using Shape = WideAttention<D>;
  extern __shared__ __align__(1024) unsigned char shared[];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.x, sequence = blockIdx.z;
  const int start = p.batch.starts[sequence], count = p.batch.starts[sequence + 1] - start;
  const int base = p.batch.first_positions[sequence];
  const int query0 = (int(gridDim.y) - 1 - int(blockIdx.y)) * Shape::queries;  // long rows start first
  if (query0 >= count) return;
  const CacheRows cache = CacheRows::of(p.args.arena, p.kv, p.batch, sequence, p.args.layer, head / (p.args.heads / p.kv.kv_heads));

  const uint32_t queries = shared_address(shared), tiles = queries + Shape::query_bytes;
  for (int i = threadIdx.x; i < Shape::queries * Shape::pieces; i += Shape::threads) {
    const int row = i / Shape::pieces, piece = i % Shape::pieces, token = start + min(query0 + row, count - 1);
    copy_async16(queries + piece_at<D>(row, piece), reinterpret_cast<const half*>(p.args.q) + (size_t(token) * p.args.heads + head) * D + piece * 8);
  }
  const int last = base + min(query0 + Shape::queries, count) - 1;
  const int first = p.args.window > 0 ? max(0, base + query0 - p.args.window + 1) : 0;
  const int own0 = query0 + warp * Shape::warp_queries, own_first = base + own0, own_last = own_first + Shape::warp_queries - 1;
  auto fetch = [&](int tile, int slot) {
    const uint32_t to = tiles + slot * 2 * Shape::tile_bytes;
    fetch_tile<D>(cache, tile * Shape::keys, last, to);
    commit_copies();
  };

  QueryRows<D> rows[Shape::query_tiles];
  const uint32_t own = queries + warp * Shape::warp_queries * Shape::stride;
  int slot = 0;
  fetch(first / Shape::keys, 0);
  for (int tile = first / Shape::keys; tile <= last / Shape::keys; ++tile, slot ^= 1) {
    wait_copies<0>();
    __syncthreads();
    if (tile < last / Shape::keys) fetch(tile + 1, slot ^ 1);
    const int key0 = tile * Shape::keys;
    if (key0 > own_last) continue;  // all in the future of this warp's queries
    const uint32_t keys = tiles + slot * 2 * Shape::tile_bytes, values = keys + Shape::tile_bytes;
    float s[Shape::query_tiles][Shape::keys / 8][4];
    score<D>(own, keys, s);
    scale_scores<D>(p.rule, s);
    // Masks only where some query does not see all of the tile.
    if (key0 + Shape::keys - 1 > own_first || (p.args.window > 0 && key0 <= own_last - p.args.window)) mask_scores<D>(p.args.window, key0, own_first, s);
#pragma unroll
    for (int q = 0; q < Shape::query_tiles; ++q) rows[q].fold(s[q]);
#pragma unroll
    for (int step = 0; step < Shape::keys / 16; ++step) {
      uint32_t a[Shape::query_tiles][4];
#pragma unroll
      for (int q = 0; q < Shape::query_tiles; ++q)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[q][i] = pack_half2(s[q][step * 2 + i / 2][i % 2 * 2], s[q][step * 2 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < D / 8; d += 2) {
        uint32_t b[4];
        load_transposed(values + step * 16 * Shape::stride + piece_at<D>(lane % 16, d + lane / 16), b[0], b[1], b[2], b[3]);
#pragma unroll
        for (int q = 0; q < Shape::query_tiles; ++q) {
          mma_16816(rows[q].o[d], a[q], b[0], b[1]);
          mma_16816(rows[q].o[d + 1], a[q], b[2], b[3]);
        }
      }
    }
  }

  // Outputs go where this warp's queries stood, then out in whole rows.
  __syncwarp();
  unsigned char* staging = shared + warp * Shape::warp_queries * Shape::stride;
#pragma unroll
  for (int q = 0; q < Shape::query_tiles; ++q)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = rows[q].l[r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float inverse = 1 / sum;
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
        *reinterpret_cast<uint32_t*>(staging + piece_at<D>(q * 16 + g + r * 8, d) + t * 4) =
            pack_half2(rows[q].o[d][2 * r] * inverse, rows[q].o[d][2 * r + 1] * inverse);
    }
  __syncwarp();
  for (int i = lane; i < Shape::warp_queries * Shape::pieces; i += 32) {
    const int row = i / Shape::pieces, piece = i % Shape::pieces;
    if (own0 + row >= count) continue;
    half* out = reinterpret_cast<half*>(p.args.out) + (size_t(start + own0 + row) * p.args.heads + head) * D + piece * 8;
    *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(staging + piece_at<D>(row, piece));
  }
}

template <int D>
Status launch_wide_attention(const WideAttentionParams& params, const Launch& on) {
  using Shape = WideAttention<D>;
  ES_RETURN_IF_ERROR(allow_shared(wide_attention_kernel<D>, Shape::shared));
  const int blocks = (params.batch.max_count + Shape::queries - 1) / Shape::queries;
  return launch(on, wide_attention_kernel<D>, dim3(params.args.heads, blocks, params.batch.s), Shape::threads, Shape::shared, params);
}

}  // namespace

Status wide_attention(const AttentionArgs<f16>& args, const Launch& on) {
  const KvLayout& kv = *args.kv;
  if (args.batch->max_count < 1 || args.heads % kv.kv_heads != 0)
    return {Code::invalid_argument, "cuda wide_attention: tokens and whole head groups"};
  if (kv.dtype != KvDtype::fp16) return {Code::unsupported, "cuda wide_attention: a cache of codes"};
  WideAttentionParams params{args, *args.batch, kv, ScoreRule::of(args)};
  switch (kv.head_dim) {
    case 64: return launch_wide_attention<64>(params, on);
    case 96: return launch_wide_attention<96>(params, on);
    case 128: return launch_wide_attention<128>(params, on);
    case 256: return launch_wide_attention<256>(params, on);
  }
  return {Code::unsupported, "cuda wide_attention: head_dim " + std::to_string(kv.head_dim)};
}

}  // namespace edgeshift::cuda
