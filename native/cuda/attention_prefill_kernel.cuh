// Prefill attention over the paged cache.
#pragma once

#include <string>

#include "cuda/attention.h"
#include "cuda/attention_tile.cuh"

namespace edgeshift::cuda {

inline constexpr int kPrefillWarps = 4;

// Query tiles of 8 per warp, as many as registers hold.
template <int D>
inline constexpr int kColumnsOf = D > 128 ? 1 : 2;
template <int D>
inline constexpr int kBlockQueriesOf = kPrefillWarps * kColumnsOf<D> * 8;

struct PrefillParams {
  AttentionArgs<f16> args;
  SequenceBatch batch;
  KvLayout kv;
  ScoreRule rule = {};
};

// Grid (query blocks, heads, sequences): a warp takes 16 (head_dim 256: 8) consecutive tokens of one head over all the cache they attend to.
// The four warps of a block walk over nearly the same keys and values, so L1 serves three of them. Long blocks start first.
template <int D, KvDtype T>
__global__ void __launch_bounds__(kPrefillWarps * 32) prefill_kernel(const __grid_constant__ PrefillParams p) {
  using Shape = TileShape<D, T>;
  wait_for_previous_kernel();
  let_next_kernel_start();
  constexpr int kColumns = kColumnsOf<D>, kBlockQueries = kBlockQueriesOf<D>;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int head = blockIdx.y, sequence = blockIdx.z;
  int start = p.batch.starts[sequence], count = p.batch.starts[sequence + 1] - start;
  int base = p.batch.first_positions[sequence];
  int query0 = (int(gridDim.x) - 1 - int(blockIdx.x)) * kBlockQueries + warp * kColumns * 8;
  if (query0 >= count) return;
  int group = p.args.heads / p.kv.kv_heads;
  CacheRows cache = CacheRows::of(p.args.arena, p.kv, p.batch, sequence, p.args.layer, head / group);

  QueryTile<D, T> q[kColumns];
  SoftmaxState<D, T> state[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    int token = start + min(query0 + c * 8 + g, count - 1);
    q[c].load(reinterpret_cast<const half*>(p.args.q) + (size_t(token) * p.args.heads + head) * D);
  }
  int last = base + min(query0 + kColumns * 8, count) - 1;
  int first = p.args.window > 0 ? max(0, base + query0 - p.args.window + 1) : 0;
  int tile = first / kTileTokens, end = last / kTileTokens + 1;
  auto block_of = [&](int at) { return cache.blocks[at * kTileTokens / p.kv.block_size]; };
  KeyTile<D, T> keys;
  ValueTile<D, T> values[1];
  uint32_t block = block_of(tile);
  keys.load(cache.keys_from(block, tile * kTileTokens));
  for (; tile < end; ++tile) {
    values[0].load(cache.values_from(block, tile * kTileTokens));
    float s[kColumns][1][4];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) score_tile<D, T>(keys, q[c], s[c][0]);
    if (tile + 1 < end) {
      block = block_of(tile + 1);
      keys.load(cache.keys_from(block, (tile + 1) * kTileTokens));
    }
    if ((tile + 1) * kTileTokens > base + count) values[0].keep_first(base + count - tile * kTileTokens);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[c][0][i] = p.rule(s[c][0][i], tile * kTileTokens + g + i / 2 * 8, base + query0 + c * 8 + 2 * t + i % 2);
      uint32_t weights[1][2];
      state[c].fold(s[c], values, weights);
      state[c].add_values(values[0], weights[0]);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    state[c].finish();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int query = query0 + c * 8 + 2 * t + i;
      if (query >= count) continue;
      float inverse = 1 / state[c].l[i];
      half* out = reinterpret_cast<half*>(p.args.out) + (size_t(start + query) * p.args.heads + head) * D;
#pragma unroll
      for (int m = 0; m < Shape::m_tiles; m += 4) {
        uint4 bits;
        uint32_t* word = &bits.x;
#pragma unroll
        for (int j = 0; j < 4; ++j) word[j] = pack_half2(state[c].o[m + j][i] * inverse, state[c].o[m + j][i + 2] * inverse);
        if (int at = Shape::dimension(m, g); at < D) *reinterpret_cast<uint4*>(out + at) = bits;
      }
    }
  }
}

template <int D, KvDtype T>
Status launch_prefill_head(const PrefillParams& params, const Launch& on) {
  int blocks = (params.batch.max_count + kBlockQueriesOf<D> - 1) / kBlockQueriesOf<D>;
  return launch(on, prefill_kernel<D, T>, dim3(blocks, params.args.heads, params.batch.s), kPrefillWarps * 32, 0, params);
}

// The kernel for the model's head size; T is kv.dtype.
template <KvDtype T>
Status launch_prefill(PrefillParams params, const Launch& on) {
  params.rule = ScoreRule::of(params.args);
  switch (params.kv.head_dim) {
    case 64: return launch_prefill_head<64, T>(params, on);
    case 96: return launch_prefill_head<96, T>(params, on);
    case 128: return launch_prefill_head<128, T>(params, on);
    case 256: return launch_prefill_head<256, T>(params, on);
  }
  return {Code::unsupported, "cuda prefill_attention: head_dim " + std::to_string(params.kv.head_dim)};
}

extern template Status launch_prefill<KvDtype::fp16>(PrefillParams, const Launch&);
extern template Status launch_prefill<KvDtype::fp8>(PrefillParams, const Launch&);
extern template Status launch_prefill<KvDtype::int8>(PrefillParams, const Launch&);

}  // namespace edgeshift::cuda
