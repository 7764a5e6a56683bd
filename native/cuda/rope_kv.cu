#include "cuda/rope_kv.h"

#include "cuda/attention_tile.cuh"
#include "cuda/rope.cuh"

namespace edgeshift::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kVectorsPerWarp = 4;
constexpr int kMaxHeadDim = 256;

struct RopeParams {
  RopeArgs args;
  SequenceBatch batch;
  KvLayout kv;
};

__device__ int sequence_of(const SequenceBatch& batch, int token) {
  int low = 0, high = batch.s;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (batch.starts[middle] <= token) low = middle; else high = middle;
  }
  return low;
}

// Grid (t, head vectors / 16): a warp takes four head vectors of a token, so that the table of sines serves sixteen.
template <KvDtype T>
__global__ void rope_kv_kernel(const __grid_constant__ RopeParams p) {
  __shared__ __align__(8) float rows[kWarps][kMaxHeadDim];
  __shared__ float2 table[kMaxRotaryPairs];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const RopeArgs& args = p.args;
  int warp = threadIdx.x / 32;
  int token = blockIdx.x;
  int vectors = args.heads + 2 * p.kv.kv_heads, d = p.kv.head_dim;
  int sequence = sequence_of(p.batch, token);
  int position = p.batch.first_positions[sequence] + token - p.batch.starts[sequence];
  uint32_t block = p.batch.blocks[p.batch.block_starts[sequence] + position / p.kv.block_size];
  fill_rotation(table, args, sequence, position);
  __syncthreads();
  int first = (blockIdx.y * kWarps + warp) * kVectorsPerWarp;
  for (int vector = first; vector < min(first + kVectorsPerWarp, vectors); ++vector) {
    bool query = vector < args.heads, key = !query && vector < args.heads + p.kv.kv_heads;
    rotate_head(args.qkv + (size_t(token) * vectors + vector) * d, rows[warp], args,
                query ? args.q_norm : key ? args.k_norm : nullptr, query || key ? table : nullptr, d);
    if (query) {
      f16* out = args.q + (size_t(token) * args.heads + vector) * d;
      write_row<KvDtype::fp16>(rows[warp], {reinterpret_cast<unsigned char*>(out), nullptr}, d);
    } else {
      CacheRows cache = CacheRows::of(args.arena, p.kv, p.batch, sequence, args.layer, (vector - args.heads) % p.kv.kv_heads);
      write_row<T>(rows[warp], key ? cache.keys_from(block, position) : cache.values_from(block, position), d);
    }
    __syncwarp();
  }
}

}  // namespace

Status rope_kv(const RopeArgs& args, const Launch& on) {
  if (args.kv->head_dim > kMaxHeadDim) return {Code::unsupported, "cuda rope_kv: head_dim over 256"};
  int vectors = args.heads + 2 * args.kv->kv_heads;
  RopeParams params{args, *args.batch, *args.kv};
  const dim3 grid(args.batch->t, (vectors + kWarps * kVectorsPerWarp - 1) / (kWarps * kVectorsPerWarp));
  auto start = [&](auto kernel) { return launch(on, kernel, grid, kWarps * 32, 0, params); };
  switch (args.kv->dtype) {
    case KvDtype::fp16: return start(rope_kv_kernel<KvDtype::fp16>);
    case KvDtype::fp8: return start(rope_kv_kernel<KvDtype::fp8>);
    case KvDtype::int8: return start(rope_kv_kernel<KvDtype::int8>);
  }
  return {Code::unsupported, "cuda rope_kv: the cache's type"};
}

}  // namespace edgeshift::cuda
