// Split-KV decode attention with rotary embedding and cache write fused in.
#pragma once

#include <algorithm>
#include <string>

#include "cuda/attention.h"
#include "cuda/attention_tile.cuh"
#include "cuda/input_tiles.h"
#include "cuda/rope.cuh"

namespace edgeshift::cuda {

inline constexpr int kQueries = 8;

struct DecodeParams {
  RopeArgs rope;
  AttentionArgs<f16> args;
  SequenceBatch batch;
  KvLayout kv;
  ScoreRule rule = {};
  int splits = 1;
  float* partial_out = nullptr;  // [splits][s][heads][D]
  float2* partial_ml = nullptr;  // [splits][s][heads]
  int* tickets = nullptr;        // [s][kv_heads]
  NextRead next = {};
  size_t out_tile_bytes = 0;     // 0: rows

  // Output d of `head`.
  __device__ void store(int sequence, int head, int head_dim, int d, float value) const {
    const int k = head * head_dim + d;
    if (out_tile_bytes == 0) args.out[size_t(sequence) * args.heads * head_dim + k] = to_f16(value);
    else *reinterpret_cast<f16*>(reinterpret_cast<unsigned char*>(args.out) + tiled_input(sequence, k, out_tile_bytes)) = to_f16(value);
  }
};

// Partial results of the block's warps, then of the splits: sum over parts of 2^(m - top) * part.
struct Merge {
  float top = -INFINITY;
  float sum = 0;
};

// Tiles that a warp takes at a time: of codes two, which are as many bytes under way as one of halves, where their scores
// and scales find registers too.
template <int D, KvDtype T>
inline constexpr int kTurnTiles = TileShape<D, T>::coded && D <= 64 ? 2 : 1;

// Which kernel: for whole sequences, or for splits of them, whose results meet in device memory or, where the splits of a sequence are
// a cluster, in the shared memory of its blocks.
enum class Share { whole, split, cluster };

// Warps of a multiprocessor. With heads of more than 64 in f16 there are registers for 12; 16 spill, and wait for that. Splits are
// quicker so all the same (docs/cuda.md).
template <int D, KvDtype T, Share kShare>
inline constexpr int kWarpsAtOnce = D > 128 ? 8 : D > 64 && T == KvDtype::fp16 && kShare == Share::whole ? 12 : 16;

// Whether keys are loaded in whole lines, and queries stay in shared memory: where that was measured to be quicker.
template <int D, KvDtype T, Share kShare>
inline constexpr bool kInLines = D == 128 && T == KvDtype::fp16 && kShare == Share::whole;

// One block: the query heads of one kv head of one sequence over a share of the cached tokens. Its warps take tiles of
// 16 tokens in turn, with the next tile's loads in flight during the current tile's arithmetic; the warps' results meet
// in shared memory, the splits' results in global memory, where the last block to arrive merges them, or in the shared memory of a
// cluster, where the first block does.
// Shared: queries f16 [8][D]; scratch fp32 [warps][max(D, heads * D + 2 * heads)]; of a cluster's block its result [heads][D + 2].
template <int D, KvDtype T, int kWarps, Share kShare>
__global__ void __launch_bounds__(kWarps * 32, std::max(1, kWarpsAtOnce<D, T, kShare> / kWarps)) decode_kernel(const __grid_constant__ DecodeParams p) {
  constexpr bool kLines = kInLines<D, T, kShare>;
  using Shape = TileShape<D, T, kLines>;
  extern __shared__ __align__(16) unsigned char shared[];
  half* queries = reinterpret_cast<half*>(shared);
  float* scratch = reinterpret_cast<float*>(shared + kQueries * D * 2);
  float* result = scratch + kWarps * max(D, p.args.heads / p.kv.kv_heads * (D + 2));
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
  // A warp's turn is of kTurn tiles; past the end the last one stands for those that are missing, and is masked.
  constexpr int kTurn = kTurnTiles<D, T>, kStride = kWarps * kTurn;
  KeyTile<D, T, kLines> keys[kTurn];
  ValueTile<D, T, kLines> values[kTurn];
  uint32_t blocks[kTurn];
  auto find = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kTurn; ++i) blocks[i] = cache.blocks[min(tile + i, end - 1) * kTileTokens / p.kv.block_size];
  };
  auto load_keys = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kTurn; ++i) keys[i].load(cache.keys_from(blocks[i], min(tile + i, end - 1) * kTileTokens));
  };
  auto load_values = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kTurn; ++i) values[i].load(cache.values_from(blocks[i], min(tile + i, end - 1) * kTileTokens));
  };
  int tile = begin + warp * kTurn;
  bool early = tile < end && min(tile + kTurn, end) * kTileTokens <= position;
  if (tile < end) find(tile);
  if (early) {
    load_keys(tile);
    load_values(tile);
  }
  bool writes = split == active - 1;
  uint32_t own_block = cache.blocks[position / p.kv.block_size];
  if (early && tile + kStride < end) find(tile + kStride);
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
    if (query) write_row<KvDtype::fp16>(row, {reinterpret_cast<unsigned char*>(queries + v * D), nullptr}, D);
    else write_row<T>(row, v == group ? cache.keys_from(own_block, position) : cache.values_from(own_block, position), D);
    __syncwarp();
  }
  for (int i = threadIdx.x + group * D; i < kQueries * D; i += kWarps * 32) queries[i] = __float2half(0);
  __syncthreads();

  QueryTile<D, T> q;
  if constexpr (!kLines) q.load(queries + g * D);
  SoftmaxState<D, T> state;
  if (tile < end && !early) {
    load_keys(tile);
    load_values(tile);
    if (tile + kStride < end) find(tile + kStride);
  }
  for (; tile < end; tile += kStride) {
    int next = tile + kStride;
    float s[kTurn][4];
#pragma unroll
    for (int j = 0; j < kTurn; ++j) {
      keys[j].exchange();
      if constexpr (kLines) score_tile<D>(keys[j], shared_address(queries + g * D), s[j]);
      else score_tile<D, T>(keys[j], q, s[j]);
    }
    if (next < end) load_keys(next);
#pragma unroll
    for (int j = 0; j < kTurn; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[j][i] = j == 0 || tile + j < end ? p.rule(s[j][i], (tile + j) * kTileTokens + Shape::token(g) + i / 2 * Shape::far, position) : -INFINITY;
    uint32_t weights[kTurn][2];
    state.fold(s, values, weights);
#pragma unroll
    for (int j = 0; j < kTurn; ++j) {
      if ((tile + j + 1) * kTileTokens > position + 1) values[j].keep_first(position + 1 - (tile + j) * kTileTokens);
      state.add_values(values[j], weights[j]);
    }
    if (next < end) load_values(next);
    if (next + kStride < end) find(next + kStride);
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
    for (int i = 0; i < Shape::m_tiles; ++i) {
      int d = Shape::dimension(i, g);
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
      p.store(sequence, head * group + h, D, d, value / merge.sum);
      continue;
    }
    if constexpr (kShare == Share::cluster) {
      result[h * (D + 2) + d] = value;
      if (d == 0) result[h * (D + 2) + D] = merge.top, result[h * (D + 2) + D + 1] = merge.sum;
      continue;
    }
    size_t at = size_t(split) * p.batch.s * p.args.heads + row;
    __stcg(p.partial_out + at * D + d, value);
    if (d == 0) __stcg(p.partial_ml + at, make_float2(merge.top, merge.sum));
  }
  if (active == 1) return;

  if constexpr (kShare == Share::cluster) {
    arrive_at_cluster();
    wait_for_cluster();
    for (int i = threadIdx.x; split == 0 && i < group * D; i += kWarps * 32) {
      const int h = i / D, d = i % D;
      const float* place = result + h * (D + 2);
      float values[kClusterSplits], tops[kClusterSplits], sums[kClusterSplits];
      Merge merge;
#pragma unroll
      for (int w = 0; w < kClusterSplits; ++w) {
        if (w >= active) break;
        values[w] = load_from_block(w, place + d), tops[w] = load_from_block(w, place + D), sums[w] = load_from_block(w, place + D + 1);
      }
#pragma unroll
      for (int w = 0; w < kClusterSplits; ++w)
        if (w < active) merge.top = fmaxf(merge.top, tops[w]);
      float value = 0;
#pragma unroll
      for (int w = 0; w < kClusterSplits; ++w)
        if (w < active) {
          const float weight = exp2f(tops[w] - merge.top);
          merge.sum += weight * sums[w];
          value += weight * values[w];
        }
      p.store(sequence, head * group + h, D, d, value / merge.sum);
    }
    // A block's shared memory must last until it has been read.
    __syncwarp();
    arrive_at_cluster();
    wait_for_cluster();
    return;
  }

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
    p.store(sequence, head * group + h, D, d, value / merge.sum);
  }
}

template <int D, KvDtype T, int kWarps, Share kShare = Share::whole>
Status launch_decode_warps(const DecodeParams& params, const Launch& on) {
  int group = params.args.heads / params.kv.kv_heads;
  size_t shared = size_t(kQueries) * D * 2 + size_t(kWarps) * std::max(D, group * (D + 2)) * 4;
  if (kShare == Share::cluster) shared += size_t(group) * (D + 2) * 4;
  ES_RETURN_IF_ERROR(allow_shared(decode_kernel<D, T, kWarps, kShare>, shared));
  const dim3 cluster(1, 1, kShare == Share::cluster ? params.splits : 1);
  return launch_in_clusters(on, cluster, decode_kernel<D, T, kWarps, kShare>, dim3(params.kv.kv_heads, params.batch.s, params.splits), kWarps * 32,
                            shared, params);
}

// With blocks to spare, few warps per block: each then has more tiles to pay for its start. With fewer blocks than
// multiprocessors as many as fill one: more tiles are under way, and no two blocks share a multiprocessor while another idles.
// (Splits are shares of a context that is short, or of one that many multiprocessors read already.)
template <int D, KvDtype T>
Status launch_decode_head(const DecodeParams& params, const Launch& on) {
  int blocks = params.kv.kv_heads * params.batch.s * params.splits, multiprocessors = on.device.multiprocessors;
  if (splits_meet(on.device, params.batch.s, params.kv.kv_heads, params.splits)) return launch_decode_warps<D, T, 8, Share::cluster>(params, on);
  if (params.splits > 1) return launch_decode_warps<D, T, 8, Share::split>(params, on);
  if constexpr (D <= 128)
    if (blocks <= multiprocessors) return launch_decode_warps<D, T, 12>(params, on);
  if constexpr (kWarpsAtOnce<D, T, Share::whole> == 12) {
    return blocks >= 3 * multiprocessors ? launch_decode_warps<D, T, 3>(params, on) : launch_decode_warps<D, T, 6>(params, on);
  } else {
    if (blocks >= 12 * multiprocessors) return launch_decode_warps<D, T, 2>(params, on);
    return blocks >= 3 * multiprocessors ? launch_decode_warps<D, T, 4>(params, on) : launch_decode_warps<D, T, 8>(params, on);
  }
}

// The kernel for the model's head size; T is kv.dtype.
template <KvDtype T>
Status launch_decode(DecodeParams params, const Launch& on) {
  params.rule = ScoreRule::of(params.args);
  switch (params.kv.head_dim) {
    case 64: return launch_decode_head<64, T>(params, on);
    case 96: return launch_decode_head<96, T>(params, on);
    case 128: return launch_decode_head<128, T>(params, on);
    case 256: return launch_decode_head<256, T>(params, on);
  }
  return {Code::unsupported, "cuda decode_attention: head_dim " + std::to_string(params.kv.head_dim)};
}

extern template Status launch_decode<KvDtype::fp16>(DecodeParams, const Launch&);
extern template Status launch_decode<KvDtype::fp8>(DecodeParams, const Launch&);
extern template Status launch_decode<KvDtype::int8>(DecodeParams, const Launch&);

}  // namespace edgeshift::cuda
