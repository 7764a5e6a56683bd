#include "cuda/attention.h"
#include "cuda/attention_tile.cuh"

namespace edgeshift::cuda {
namespace {

constexpr int kWarps = 4;

// Query tiles of 8 per warp, as many as registers hold.
template <int D>
constexpr int kColumnsOf = D > 128 ? 1 : 2;
template <int D>
constexpr int kBlockQueriesOf = kWarps * kColumnsOf<D> * 8;

struct PrefillParams {
  AttentionArgs<f16> args;
  SequenceBatch batch;
  KvLayout kv;
  ScoreRule rule;
};

// Grid (query blocks, heads, sequences): a warp takes 16 (head_dim 256: 8) consecutive tokens of one head over all the cache they attend to.
// The four warps of a block walk over nearly the same keys and values, so L1 serves three of them. Long blocks start first.
template <int D>
__global__ void __launch_bounds__(kWarps * 32) prefill_kernel(const __grid_constant__ PrefillParams p) {
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

  QueryTile<D> q[kColumns];
  SoftmaxState<D> state[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    int token = start + min(query0 + c * 8 + g, count - 1);
    q[c].load(reinterpret_cast<const half*>(p.args.q) + (size_t(token) * p.args.heads + head) * D);
  }
  int last = base + min(query0 + kColumns * 8, count) - 1;
  int first = p.args.window > 0 ? max(0, base + query0 - p.args.window + 1) : 0;
  int tile = first / kTileTokens, end = last / kTileTokens + 1;
  auto block_of = [&](int at) { return cache.blocks[at * kTileTokens / p.kv.block_size]; };
  KeyTile<D> keys;
  ValueTile<D> values;
  uint32_t block = block_of(tile);
  keys.load(cache.row(block, tile * kTileTokens, cache.key_offset));
  for (; tile < end; ++tile) {
    values.load(cache.row(block, tile * kTileTokens, cache.value_offset));
    float s[kColumns][4];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) score_tile<D>(keys, q[c], s[c]);
    if (tile + 1 < end) {
      block = block_of(tile + 1);
      keys.load(cache.row(block, (tile + 1) * kTileTokens, cache.key_offset));
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[c][i] = p.rule(s[c][i], tile * kTileTokens + g + i / 2 * 8, base + query0 + c * 8 + 2 * t + i % 2);
      uint32_t b0, b1;
      state[c].fold(s[c], b0, b1);
      state[c].add_values(values, b0, b1);
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
      for (int chunk = 0; chunk < HeadShape<D>::v_chunks; ++chunk) {
        uint4 bits;
        uint32_t* word = &bits.x;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          word[j] = pack_half2(state[c].o[chunk * 4 + j][i] * inverse, state[c].o[chunk * 4 + j][i + 2] * inverse);
        if (chunk * 64 + g * 8 < D) *reinterpret_cast<uint4*>(out + chunk * 64 + g * 8) = bits;
      }
    }
  }
}

template <int D>
Status launch_prefill(const PrefillParams& params, const Launch& on) {
  int blocks = (params.batch.max_count + kBlockQueriesOf<D> - 1) / kBlockQueriesOf<D>;
  return launch(on, prefill_kernel<D>, dim3(blocks, params.args.heads, params.batch.s), kWarps * 32, 0, params);
}

}  // namespace

Status prefill_attention(const AttentionArgs<f16>& args, const Launch& on) {
  const KvLayout& kv = *args.kv;
  if (args.batch->max_count < 1 || args.heads % kv.kv_heads != 0)
    return {Code::invalid_argument, "cuda prefill_attention: tokens and whole head groups"};
  if (kv.block_size % kTileTokens != 0)
    return {Code::unsupported, "cuda prefill_attention: block_size must be a multiple of 16"};
  PrefillParams params{args, *args.batch, kv, {args.scale * 1.44269504f, args.softcap, args.window}};
  switch (kv.head_dim) {
    case 64: return launch_prefill<64>(params, on);
    case 96: return launch_prefill<96>(params, on);
    case 128: return launch_prefill<128>(params, on);
    case 256: return launch_prefill<256>(params, on);
  }
  return {Code::unsupported, "cuda prefill_attention: head_dim " + std::to_string(kv.head_dim)};
}

}  // namespace edgeshift::cuda
