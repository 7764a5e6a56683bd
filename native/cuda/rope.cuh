// Norm and rotation of one head vector by one warp, shared by rope_kv and the fused decode attention.
#pragma once

#include "cuda/device.cuh"
#include "cuda/rope_kv.h"

namespace edgeshift::cuda {

inline constexpr int kMaxRotaryPairs = 128;

// (cos, sin) of every pair at `position` into `table` (shared, [rotary_dim / 2]); the block's threads share the work and
// synchronise before they read.
__device__ inline void fill_rotation(float2* table, const RopeArgs& args, int sequence, int position) {
  const float* inv_freq = args.inv_freq;
  const int pairs = args.rotary_dim / 2;
  float scale = args.scale;
  if (args.own.tables && args.own.slots[sequence] >= 0) {
    inv_freq = args.own.tables + size_t(args.own.slots[sequence]) * args.own.width + args.own.offset;
    scale = inv_freq[pairs];
  }
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    float sine, cosine;
    sincosf(position * inv_freq[i], &sine, &cosine);
    table[i] = {cosine * scale, sine * scale};
  }
}

// Reads f16 row `in` [head_dim] (written by the kernel before), applies the RMS norm `norm` (null = none) and the rotation
// `table` (null = none), and leaves the result in `row` (shared, fp32 [head_dim]). All 32 lanes call.
__device__ inline void rotate_head(const f16* in, float* row, const RopeKvArgs<f16>& args, const float* norm,
                                   const float2* table, int head_dim) {
  int lane = threadIdx.x % 32;
  float squares = 0;
  for (int d = lane * 2; d < head_dim; d += 64) {
    float2 v = __half22float2(as_half2(__ldcg(reinterpret_cast<const unsigned*>(in + d))));
    *reinterpret_cast<float2*>(row + d) = v;
    squares += v.x * v.x + v.y * v.y;
  }
  __syncwarp();
  if (norm) {
    float inverse = rsqrtf(warp_sum(squares) / head_dim + args.norm_eps);
    for (int d = lane; d < head_dim; d += 32) row[d] *= inverse * norm[d];
    __syncwarp();
  }
  if (!table) return;
  int pairs = args.rotary_dim / 2;
  for (int i = lane; i < pairs; i += 32) {
    float2 turn = table[i];
    int a = args.interleaved ? 2 * i : i, b = args.interleaved ? 2 * i + 1 : i + pairs;
    float x = row[a], y = row[b];
    row[a] = x * turn.x - y * turn.y;
    row[b] = y * turn.x + x * turn.y;
  }
  __syncwarp();
}

}  // namespace edgeshift::cuda
