#include <algorithm>

#include "cuda/attention.h"
#include "cuda/attention_tile.cuh"
#include "cuda/rope.cuh"

namespace edgeshift::cuda {
namespace {

constexpr int kQueries = 8;

struct DecodeParams {
  RopeArgs rope;
  AttentionArgs<f16> args;
  SequenceBatch batch;
  KvLayout kv;
  ScoreRule rule;
  int splits;
  float* partial_out;  // [splits][s][heads][D]
  float2* partial_ml;  // [splits][s][heads]
  int* tickets;        // [s][kv_heads]
  NextRead next;
};

// Partial results of the block's warps, then of the splits: sum over parts of 2^(m - top) * part.
struct Merge {
  float top = -INFINITY;
  float sum = 0;
};

// One block: the query heads of one kv head of one sequence over a share of the cached tokens. Its warps take tiles of
// 16 tokens in turn, with the next tile's loads in flight during the current tile's arithmetic; the warps' results meet
// in shared memory, the splits' results in global memory, where the last block to arrive merges them.
// Shared: queries f16 [8][D]; scratch fp32 [warps][max(D, heads * D + 2 * heads)].
template <int D, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, (D <= 128 ? 16 : 8) / kWarps) decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  half* queries = reinterpret_cast<half*>(shared);
  float* scratch = reinterpret_cast<float*>(shared + kQueries * D * 2);
  __shared__ bool last;
  __shared__ float2 table[kMaxRotaryPairs];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int head = blockIdx.x, sequence = blockIdx.y, split = blockIdx.z;
  int group = p.args.heads / p.kv.kv_heads;
  // Nothing below until the wait was written by the kernels of this step: positions and block table, older tokens.
  if (threadIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) prefetch_share(p.next);
  int position = __ldcg(p.batch.first_positions + sequence);
  int first_tile = p.args.window > 0 ? max(0, position - p.args.window + 1) / kTileTokens : 0;
  int tiles = position / kTileTokens + 1 - first_tile;
  int per_split = (tiles + p.splits - 1) / p.splits;
  int active = (tiles + per_split - 1) / per_split;
  if (split >= active) {
    wait_for_previous_kernel();
    return;
  }
  int begin = first_tile + split * per_split, end = min(begin + per_split, first_tile + tiles);
  CacheRows cache = CacheRows::of(p.args.arena, p.kv, p.batch, sequence, p.args.layer, head);
  auto block_of = [&](int tile) { return cache.blocks[tile * kTileTokens / p.kv.block_size]; };
  int tile = begin + warp;
  uint32_t block = tile < end ? block_of(tile) : 0;
  KeyTile<D> keys;
  ValueTile<D> values;
  bool early = tile < end && (tile + 1) * kTileTokens <= position;
  if (early) {
    keys.load(cache.row(block, tile * kTileTokens, cache.key_offset));
    values.load(cache.row(block, tile * kTileTokens, cache.value_offset));
  }
  bool writes = split == active - 1;
  uint32_t own_block = cache.blocks[position / p.kv.block_size];
  uint32_t next_block = tile + kWarps < end ? block_of(tile + kWarps) : 0;
  fill_rotation(table, p.rope, sequence, position);
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();

  // Rotate the queries; the block whose tokens include this position also writes its key and value.
  for (int v = warp; v < group + (writes ? 2 : 0); v += kWarps) {
    bool query = v < group;
    int source = query ? head * group + v : p.args.heads + head + (v == group ? 0 : p.kv.kv_heads);
    const f16* in = p.rope.qkv + (size_t(sequence) * (p.args.heads + 2 * p.kv.kv_heads) + source) * D;
    float* row = scratch + warp * D;
    rotate_head(in, row, p.rope, query ? p.rope.q_norm : v == group ? p.rope.k_norm : nullptr, v <= group ? table : nullptr, D);
    half* out = query ? queries + v * D
                      : const_cast<half*>(cache.row(own_block, position, v == group ? cache.key_offset : cache.value_offset));
    for (int d = lane * 2; d < D; d += 64) *reinterpret_cast<half2*>(out + d) = __floats2half2_rn(row[d], row[d + 1]);
    __syncwarp();
  }
  for (int i = threadIdx.x + group * D; i < kQueries * D; i += kWarps * 32) queries[i] = __float2half(0);
  __syncthreads();

  QueryTile<D> q;
  q.load(queries + g * D);
  SoftmaxState<D> state;
  if (tile < end && !early) {
    keys.load(cache.row(block, tile * kTileTokens, cache.key_offset));
    values.load(cache.row(block, tile * kTileTokens, cache.value_offset));
  }
  for (; tile < end; tile += kWarps) {
    int next = tile + kWarps;
    float s[4];
    score_tile<D>(keys, q, s);
    if (next < end) keys.load(cache.row(next_block, next * kTileTokens, cache.key_offset));
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = p.rule(s[i], tile * kTileTokens + g + i / 2 * 8, position);
    uint32_t b0, b1;
    state.fold(s, b0, b1);
    state.add_values(values, b0, b1);
    if (next < end) values.load(cache.row(next_block, next * kTileTokens, cache.value_offset));
    if (next + kWarps < end) next_block = block_of(next + kWarps);
  }
  state.finish();

  // Warps to shared memory: [warp][head][D], then (m, l) [warp][head].
  float2* ml = reinterpret_cast<float2*>(scratch + kWarps * group * D);
  __syncthreads();
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    int h = 2 * t + c;
    if (h >= group) continue;
    float* row = scratch + (warp * group + h) * D;
#pragma unroll
    for (int i = 0; i < HeadShape<D>::v_chunks * 4; ++i) {
      int d = i / 4 * 64 + g * 8 + i % 4 * 2;
      if (d < D) *reinterpret_cast<float2*>(row + d) = {state.o[i][c], state.o[i][c + 2]};
    }
    if (g == 0) ml[warp * group + h] = {state.m[c], state.l[c]};
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * D; i += kWarps * 32) {
    int h = i / D, d = i % D;
    Merge merge;
    for (int w = 0; w < kWarps; ++w) merge.top = fmaxf(merge.top, ml[w * group + h].x);
    float value = 0;
    for (int w = 0; w < kWarps; ++w) {
      float2 part = ml[w * group + h];
      float weight = exp2f(part.x - merge.top);
      merge.sum += weight * part.y;
      value += weight * scratch[(w * group + h) * D + d];
    }
    size_t row = size_t(sequence) * p.args.heads + head * group + h;
    if (active == 1) {
      p.args.out[row * D + d] = to_f16(value / merge.sum);
      continue;
    }
    size_t at = size_t(split) * p.batch.s * p.args.heads + row;
    __stcg(p.partial_out + at * D + d, value);
    if (d == 0) __stcg(p.partial_ml + at, make_float2(merge.top, merge.sum));
  }
  if (active == 1) return;

  __threadfence();
  __syncthreads();
  int* ticket = p.tickets + sequence * p.kv.kv_heads + head;
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1) == active - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) *ticket = 0;
  for (int i = threadIdx.x; i < group * D; i += kWarps * 32) {
    int h = i / D, d = i % D;
    size_t row = size_t(sequence) * p.args.heads + head * group + h;
    size_t stride = size_t(p.batch.s) * p.args.heads;
    Merge merge;
    for (int w = 0; w < active; ++w) merge.top = fmaxf(merge.top, __ldcg(p.partial_ml + w * stride + row).x);
    float value = 0;
    for (int w = 0; w < active; ++w) {
      float2 part = __ldcg(p.partial_ml + w * stride + row);
      float weight = exp2f(part.x - merge.top);
      merge.sum += weight * part.y;
      value += weight * __ldcg(p.partial_out + (w * stride + row) * D + d);
    }
    p.args.out[row * D + d] = to_f16(value / merge.sum);
  }
}

template <int D, int kWarps>
Status launch_decode_warps(const DecodeParams& params, const Launch& on) {
  int group = params.args.heads / params.kv.kv_heads;
  size_t shared = size_t(kQueries) * D * 2 + size_t(kWarps) * std::max(D, group * D + 2 * group) * 4;
  ES_RETURN_IF_ERROR(allow_shared(decode_kernel<D, kWarps>, shared));
  return launch(on, decode_kernel<D, kWarps>, dim3(params.kv.kv_heads, params.batch.s, params.splits), kWarps * 32, shared, params);
}

// With blocks to spare, few warps per block: each then has more tiles to pay for its start.
template <int D>
Status launch_decode(const DecodeParams& params, const Launch& on) {
  bool many = params.kv.kv_heads * params.batch.s * params.splits >= 3 * on.device.multiprocessors;
  return many ? launch_decode_warps<D, 4>(params, on) : launch_decode_warps<D, 8>(params, on);
}

size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Tickets stand in the same place for every batch: they must be zero between calls, partial sums need not.
constexpr int kTickets = 1 << 15;

}  // namespace

size_t attention_workspace_bytes(int sequences, int heads, int head_dim, int splits) {
  size_t rows = size_t(sequences) * heads * splits;
  return size_t(kTickets) * 4 + round_up(rows * 8) + round_up(rows * head_dim * 4);
}

Status decode_attention(const RopeArgs& rope, const AttentionArgs<f16>& args, int splits, void* workspace,
                        NextRead next, const Launch& on) {
  const SequenceBatch& batch = *args.batch;
  const KvLayout& kv = *args.kv;
  if (batch.t != batch.s || args.heads % kv.kv_heads != 0)
    return {Code::invalid_argument, "cuda decode_attention: one token per sequence, whole head groups"};
  if (args.heads / kv.kv_heads > kQueries || kv.block_size % kTileTokens != 0)
    return {Code::unsupported, "cuda decode_attention: at most 8 heads per group, blocks of a multiple of 16"};
  DecodeParams params{rope, args, batch, kv, {args.scale * 1.44269504f, args.softcap, args.window}, splits,
                      nullptr, nullptr, nullptr, next};
  if (splits > 1) {
    if (batch.s * kv.kv_heads > kTickets) return {Code::unsupported, "cuda decode_attention: too many sequences"};
    size_t rows = size_t(batch.s) * args.heads * splits;
    unsigned char* at = static_cast<unsigned char*>(workspace);
    params.tickets = reinterpret_cast<int*>(at);
    at += size_t(kTickets) * 4;
    params.partial_ml = reinterpret_cast<float2*>(at);
    params.partial_out = reinterpret_cast<float*>(at + round_up(rows * 8));
  }
  switch (kv.head_dim) {
    case 64: return launch_decode<64>(params, on);
    case 96: return launch_decode<96>(params, on);
    case 128: return launch_decode<128>(params, on);
    case 256: return launch_decode<256>(params, on);
  }
  return {Code::unsupported, "cuda decode_attention: head_dim " + std::to_string(kv.head_dim)};
}

}  // namespace edgeshift::cuda
