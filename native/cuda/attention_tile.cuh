// Attention on tensor cores straight from global memory to registers, shared by decode and prefill.
//
// One warp handles tiles of 16 cached tokens for columns of 8 "queries" (decode: the query heads of one kv head; prefill:
// 8 tokens of one head). Both products are transposed so that 8 queries fill the instruction's narrow side:
//   S^T [16 tokens x 8] = K [16 x D] * Q^T,   O^T [D x 8] += V^T [D x 16] * P^T.
// Sums over head_dim may run in any order, so lane (g, t) of K's A fragment simply takes 16-byte pieces (4i + t) of the
// rows of tokens g and g + 8: full sectors, no shared memory, no ldmatrix. For V^T lane (g, t) takes piece g of tokens
// 2t, 2t+1, 2t+8, 2t+9 and pairs neighbours with byte permutes; fragment row g of m-tile j stands for dimension 8g + 2j,
// row g + 8 for 8g + 2j + 1. P^T comes from S^T by movmatrix.
// Lane (g, t) owns queries 2t and 2t+1 in accumulators {0, 2} and {1, 3}.
#pragma once

#include "cuda/device.cuh"
#include "ops/attention.h"

namespace edgeshift::cuda {

inline constexpr int kTileTokens = 16;

template <int D>
struct HeadShape {
  static constexpr int k_pieces = (D + 31) / 32;  // 16-byte pieces of a row per lane
  static constexpr int v_chunks = (D + 63) / 64;  // 64 dimensions each
};

template <int D>
struct KeyTile {
  uint4 low[HeadShape<D>::k_pieces];   // token g
  uint4 high[HeadShape<D>::k_pieces];  // token g + 8

  // `rows` points at the tile's first token; rows are D halves apart.
  __device__ void load(const half* rows) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < HeadShape<D>::k_pieces; ++i) {
      low[i] = *reinterpret_cast<const uint4*>(rows + g * D + (i * 4 + t) * 8);
      high[i] = *reinterpret_cast<const uint4*>(rows + (g + 8) * D + (i * 4 + t) * 8);
    }
  }
};

template <int D>
struct ValueTile {
  uint4 part[HeadShape<D>::v_chunks][4];  // tokens 2t, 2t+1, 2t+8, 2t+9

  __device__ void load(const half* rows) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < HeadShape<D>::v_chunks; ++c) {
      bool inside = c * 64 + g * 8 < D;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int token = 2 * t + i % 2 + i / 2 * 8;
        part[c][i] = inside ? *reinterpret_cast<const uint4*>(rows + token * D + c * 64 + g * 8) : uint4{0, 0, 0, 0};
      }
    }
  }
};

// Eight queries: lane (g, t) holds the B fragments of query g.
template <int D>
struct QueryTile {
  uint4 part[HeadShape<D>::k_pieces];

  __device__ void load(const half* row) {
    int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < HeadShape<D>::k_pieces; ++i)
      part[i] = *reinterpret_cast<const uint4*>(row + (i * 4 + t) * 8);
  }
};

// Scores of a tile: s[0], s[1] = token g; s[2], s[3] = token g + 8; queries 2t, 2t+1.
template <int D>
__device__ inline void score_tile(const KeyTile<D>& keys, const QueryTile<D>& q, float (&s)[4]) {
  s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
  for (int i = 0; i < HeadShape<D>::k_pieces; ++i) {
    uint32_t even[4] = {keys.low[i].x, keys.high[i].x, keys.low[i].y, keys.high[i].y};
    uint32_t odd[4] = {keys.low[i].z, keys.high[i].z, keys.low[i].w, keys.high[i].w};
    mma_16816(s, even, q.part[i].x, q.part[i].y);
    mma_16816(s, odd, q.part[i].z, q.part[i].w);
  }
}

// Running softmax of one column pair: maxima in units of log2, and this lane's share of the sums.
template <int D>
struct SoftmaxState {
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0, 0};
  float o[HeadShape<D>::v_chunks * 4][4] = {};

  // Folds in scores (log2 units, -inf = masked); the probabilities come out as B fragments.
  __device__ void fold(float (&s)[4], uint32_t& b0, uint32_t& b1) {
    float scale[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float top = fmaxf(s[c], s[c + 2]);
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
      float next = fmaxf(m[c], top);
      // A column with nothing yet: keep exp2 away from inf - inf.
      float base = next == -INFINITY ? 0 : next;
      scale[c] = exp2f(m[c] - base);
      s[c] = exp2f(s[c] - base);
      s[c + 2] = exp2f(s[c + 2] - base);
      l[c] = l[c] * scale[c] + s[c] + s[c + 2];
      m[c] = next;
    }
    if (__any_sync(~0u, scale[0] != 1 || scale[1] != 1)) {
#pragma unroll
      for (auto& tile : o) {
        tile[0] *= scale[0];
        tile[1] *= scale[1];
        tile[2] *= scale[0];
        tile[3] *= scale[1];
      }
    }
    b0 = transpose_8x8(pack_half2(s[0], s[1]));
    b1 = transpose_8x8(pack_half2(s[2], s[3]));
  }

  __device__ void add_values(const ValueTile<D>& v, uint32_t b0, uint32_t b1) {
#pragma unroll
    for (int c = 0; c < HeadShape<D>::v_chunks; ++c) {
      const uint32_t* w0 = &v.part[c][0].x;
      const uint32_t* w1 = &v.part[c][1].x;
      const uint32_t* w2 = &v.part[c][2].x;
      const uint32_t* w3 = &v.part[c][3].x;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t a[4] = {__byte_perm(w0[j], w1[j], 0x5410), __byte_perm(w0[j], w1[j], 0x7632),
                         __byte_perm(w2[j], w3[j], 0x5410), __byte_perm(w2[j], w3[j], 0x7632)};
        mma_16816(o[c * 4 + j], a, b0, b1);
      }
    }
  }

  // Sums over the lanes that share a column; call once at the end.
  __device__ void finish() {
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) l[c] += __shfl_xor_sync(~0u, l[c], mask);
  }
};

// Turns a raw score into log2 units, masked by position.
struct ScoreRule {
  float scale;    // args.scale * log2(e)
  float softcap;  // 0 = off
  int window;
  __device__ float operator()(float raw, int token, int position) const {
    if (token > position || (window > 0 && token <= position - window)) return -INFINITY;
    if (softcap > 0) return softcap * 1.44269504f * tanhf(raw * scale / (softcap * 1.44269504f));
    return raw * scale;
  }
};

// Where a sequence's cached rows of one layer and kv head lie.
struct CacheRows {
  const unsigned char* arena;
  const uint32_t* blocks;  // this sequence's
  int block_size, head_dim;
  size_t key_offset, value_offset;  // bytes inside a block

  __device__ static CacheRows of(const void* arena, const KvLayout& kv, const SequenceBatch& batch, int sequence, int layer,
                                 int head) {
    size_t at = size_t(layer) * 2 * kv.kv_heads + head;
    size_t rows = size_t(kv.block_size) * kv.head_dim * 2;
    return {static_cast<const unsigned char*>(arena), batch.blocks + batch.block_starts[sequence], kv.block_size, kv.head_dim,
            at * rows, (at + kv.kv_heads) * rows};
  }
  __device__ const half* row(uint32_t block, int token, size_t offset) const {
    return reinterpret_cast<const half*>(arena + size_t(block) * kKvUnitBytes + offset) +
           size_t(token % block_size) * head_dim;
  }
};

}  // namespace edgeshift::cuda
