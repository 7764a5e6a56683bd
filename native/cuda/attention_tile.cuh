// Attention on tensor cores straight from global memory to registers, shared by decode and prefill.
//
// One warp handles tiles of 16 cached tokens for columns of 8 "queries" (decode: the query heads of one kv head; prefill:
// 8 tokens of one head). Both products are transposed so that 8 queries fill the instruction's narrow side:
//   S^T [16 tokens x 8] = K [16 x D] * Q^T,   O^T [D x 8] += V^T [D x 16] * P^T.
// Sums over head_dim may run in any order, so lane (g, t) of K's A fragment simply takes 16-byte pieces (4i + t) of the
// rows of tokens g and g + 8: full sectors, no shared memory, no ldmatrix. Or, in whole lines, which is quicker where rows come
// from device memory: eight lanes load 128 bytes of a row at a time, and lanes (g, t) and (g ^ 1, t) exchange halves; rows g and
// g + 8 of a fragment are then tokens 8 (g % 2) + g / 2 and 4 more.
// For V^T lane (g, t) takes piece g of the tokens of fragment columns 2t, 2t+1, 2t+8, 2t+9 and pairs neighbours with byte
// permutes; fragment row g of m-tile j stands for dimension 8g + 2j, row g + 8 for 8g + 2j + 1. P^T comes from S^T by movmatrix.
// Lane (g, t) owns queries 2t and 2t+1 in accumulators {0, 2} and {1, 3}.
//
// Codes (fp8, int8) take the same ways with half the bytes: a word holds four codes of a row and becomes two registers of
// halves, the codes at even places and those at odd ones, or where the processor converts fp8 (sm_89 on) the first two and
// the last two; the query is read in the same order. Keys' scales multiply
// scores. Values' scales go into the softmax: with t = score + log2(scale) and M the largest t so far, the weights
// 2^(t - M) are at most 1, so that f16 holds them whatever the scales are, and the sum of 2^(score - M) is that of
// weight / scale.
#pragma once

#include "cuda/device.cuh"
#include "ops/attention.h"
#include "ops/kv_codes.h"

namespace edgeshift::cuda {

inline constexpr int kTileTokens = 16;

template <int D, KvDtype T, bool kWholeLines = false>
struct TileShape {
  static constexpr bool coded = T != KvDtype::fp16;
  static constexpr int element_bytes = coded ? 1 : 2;
  static constexpr int row_bytes = D * element_bytes;
  static constexpr int k_words = row_bytes / 16;  // of a row per lane
  static constexpr int k_piece = k_words % 4 == 0 ? 4 : 2;  // words of one load
  static constexpr int v_dims = coded && D % 128 != 0 ? 8 : 16 / element_bytes;  // of a row per lane and chunk
  static constexpr int v_words = v_dims * element_bytes / 4;
  static constexpr int v_chunks = (D + v_dims * 8 - 1) / (v_dims * 8);
  static constexpr int m_tiles = v_chunks * v_dims / 2;
  // Tokens of rows g and g + 8 of a fragment: token(g) and far more.
  static constexpr int far = kWholeLines ? 4 : 8;
  __device__ static int token(int g) { return kWholeLines ? g % 2 * 8 + g / 2 : g; }
  static_assert(!kWholeLines || row_bytes % 128 == 0);
  // The first of the two dimensions of lane row g in m-tile i.
  __device__ static int dimension(int i, int g) {
    return i / (v_dims / 2) * (v_dims * 8) + g * v_dims + i % (v_dims / 2) * 2;
  }
};

// Rows of one kv head from a tile's first token on.
struct TileRows {
  const unsigned char* rows;
  const uint16_t* scales;  // bf16; of codes only
};

template <int kWords>
__device__ inline void load_words(const unsigned char* from, uint32_t* to) {
  if constexpr (kWords == 4) {
    uint4 v = *reinterpret_cast<const uint4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else {
    uint2 v = *reinterpret_cast<const uint2*>(from);
    to[0] = v.x, to[1] = v.y;
  }
}

// What a scale that no token has written yet may be as well: something to compute with.
__device__ inline float scale_value(uint16_t bits) {
  return fminf(fmaxf(__uint_as_float(uint32_t(bits) << 16), 1e-30f), 1e30f);
}

// Whether expand_codes gives neighbours.
template <KvDtype T>
__device__ constexpr bool in_order() {
#if __CUDA_ARCH__ >= 890
  return T == KvDtype::fp8;
#else
  return false;
#endif
}

// What a half made of a code is short of its value.
template <KvDtype T>
__device__ constexpr float code_unit() {
  return T == KvDtype::fp8 && !in_order<T>() ? kFp8AsHalf : 1;
}

// Four codes to halves: first = places 0 and 2, second = 1 and 3; in_order: 0 and 1, 2 and 3. int8 is stored + 128.
template <KvDtype T>
__device__ inline void expand_codes(uint32_t word, uint32_t& first, uint32_t& second) {
  if constexpr (T == KvDtype::int8) {
    const half2 offset = __half2half2(__ushort_as_half(0x6480));  // 1024 + 128
    first = as_bits(__hsub2(as_half2(__byte_perm(word, 0x64646464, 0x4240)), offset));
    second = as_bits(__hsub2(as_half2(__byte_perm(word, 0x64646464, 0x4341)), offset));
  } else {
#if __CUDA_ARCH__ >= 890
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2;"
        " cvt.rn.f16x2.e4m3x2 %0, low; cvt.rn.f16x2.e4m3x2 %1, high;}"
        : "=r"(first), "=r"(second) : "r"(word));
#else
    first = mask_or(word << 7, 0x3f803f80, word << 8 & 0x80008000);
    second = mask_or(word >> 1, 0x3f803f80, word & 0x80008000);
#endif
  }
}

template <int D, KvDtype T, bool kWholeLines = false>
struct KeyTile {
  using Shape = TileShape<D, T, kWholeLines>;
  uint32_t low[Shape::k_words];   // of fragment row g; in whole lines after `exchange`
  uint32_t high[Shape::k_words];  // of g + 8
  uint16_t scales[2];

  __device__ void load(TileRows from) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if constexpr (kWholeLines) {
      const unsigned char* mine = from.rows + lane / 8 * Shape::row_bytes + lane % 8 * 16;
#pragma unroll
      for (int i = 0; i < Shape::k_words; i += 8) {
        load_words<4>(mine + i * 16, low + i);
        load_words<4>(mine + i * 16 + 4 * Shape::row_bytes, high + i);
        load_words<4>(mine + i * 16 + 8 * Shape::row_bytes, low + i + 4);
        load_words<4>(mine + i * 16 + 12 * Shape::row_bytes, high + i + 4);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Shape::k_words; i += Shape::k_piece) {
        int at = (i * 4 + t * Shape::k_piece) * 4;
        load_words<Shape::k_piece>(from.rows + g * Shape::row_bytes + at, low + i);
        load_words<Shape::k_piece>(from.rows + (g + 8) * Shape::row_bytes + at, high + i);
      }
    }
    if constexpr (Shape::coded) scales[0] = from.scales[Shape::token(g)], scales[1] = from.scales[Shape::token(g) + Shape::far];
  }

  // Gives each lane the pieces of its own rows. Once, after `load` in whole lines.
  __device__ void exchange() {
    if constexpr (kWholeLines) {
      const bool odd = threadIdx.x / 4 % 2;
      auto swap = [&](uint32_t& first, uint32_t& second) {
        const uint32_t theirs = __shfl_xor_sync(~0u, odd ? first : second, 4);
        first = odd ? theirs : first;
        second = odd ? second : theirs;
      };
#pragma unroll
      for (int i = 0; i < Shape::k_words; i += 8)
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          swap(low[i + w], low[i + 4 + w]);
          swap(high[i + w], high[i + 4 + w]);
        }
    }
  }
};

template <int D, KvDtype T, bool kWholeLines = false>
struct ValueTile {
  using Shape = TileShape<D, T, kWholeLines>;
  uint32_t part[Shape::v_chunks][4][Shape::v_words];  // of fragment columns 2t, 2t+1, 2t+8, 2t+9
  uint16_t scales[2];                                 // of fragment rows g, g + 8

  __device__ static int token(int i, int t) { return Shape::token(2 * t + i % 2) + i / 2 * Shape::far; }

  __device__ void load(TileRows from) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int c = 0; c < Shape::v_chunks; ++c) {
      int at = (c * 8 + g) * Shape::v_dims;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int w = 0; w < Shape::v_words; ++w) part[c][i][w] = 0;
        if (D % (Shape::v_dims * 8) == 0 || at < D)
          load_words<Shape::v_words>(from.rows + token(i, t) * Shape::row_bytes + at * Shape::element_bytes, part[c][i]);
      }
    }
    if constexpr (Shape::coded) scales[0] = from.scales[Shape::token(g)], scales[1] = from.scales[Shape::token(g) + Shape::far];
  }

  // Zeros in the place of tokens `count` and later: memory that nothing was written to may hold what is no number, and
  // weights of zero do not hide that. (int8 has only numbers, and fp8 where its bits are shifted into halves.)
  __device__ void keep_first(int count) {
    if constexpr (!Shape::coded || in_order<T>()) {
      int t = threadIdx.x % 4;
#pragma unroll
      for (int c = 0; c < Shape::v_chunks; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int w = 0; w < Shape::v_words; ++w)
            if (token(i, t) >= count) part[c][i][w] = 0;
    }
  }
};

// Eight queries: lane (g, t) holds the B fragments of query g, in the order of the keys' fragments.
template <int D, KvDtype T>
struct QueryTile {
  using Shape = TileShape<D, T>;
  uint32_t part[D / 8];

  __device__ void load(const half* row) {
    int t = threadIdx.x % 4;
    constexpr int kDims = Shape::k_piece * 4 / Shape::element_bytes;  // of a piece
#pragma unroll
    for (int i = 0; i < D / 4; i += kDims)
#pragma unroll
      for (int j = 0; j < kDims; j += 8) {
        uint32_t* to = part + (i + j) / 2;
        load_words<4>(reinterpret_cast<const unsigned char*>(row + i * 4 + t * kDims + j), to);
        if constexpr (Shape::coded && !in_order<T>()) {
#pragma unroll
          for (int w = 0; w < 4; w += 2) {
            uint32_t even = __byte_perm(to[w], to[w + 1], 0x5410), odd = __byte_perm(to[w], to[w + 1], 0x7632);
            to[w] = even, to[w + 1] = odd;
          }
        }
      }
  }
};

// Scores of a tile: s[0], s[1] = fragment row g; s[2], s[3] = row g + 8; queries 2t, 2t+1.
template <int D, KvDtype T>
__device__ inline void score_tile(const KeyTile<D, T>& keys, const QueryTile<D, T>& q, float (&s)[4]) {
  s[0] = s[1] = s[2] = s[3] = 0;
  if constexpr (T == KvDtype::fp16) {
#pragma unroll
    for (int i = 0; i < D / 8; i += 2) {
      uint32_t a[4] = {keys.low[i], keys.high[i], keys.low[i + 1], keys.high[i + 1]};
      mma_16816(s, a, q.part[i], q.part[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
      uint32_t a[4];
      expand_codes<T>(keys.low[i], a[0], a[2]);
      expand_codes<T>(keys.high[i], a[1], a[3]);
      mma_16816(s, a, q.part[2 * i], q.part[2 * i + 1]);
    }
    float low = scale_value(keys.scales[0]) * code_unit<T>(), high = scale_value(keys.scales[1]) * code_unit<T>();
    s[0] *= low, s[1] *= low, s[2] *= high, s[3] *= high;
  }
}

// The same for whole lines, with queries read from shared memory (`row`: of query g), as registers are short.
template <int D>
__device__ inline void score_tile(const KeyTile<D, KvDtype::fp16, true>& keys, uint32_t row, float (&s)[4]) {
  s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
  for (int i = 0; i < D / 8; i += 4) {
    const uint4 q = load_shared16(row + (i * 8 + threadIdx.x % 4 * 8) * 2);
    const uint32_t near[4] = {keys.low[i], keys.high[i], keys.low[i + 1], keys.high[i + 1]};
    const uint32_t far[4] = {keys.low[i + 2], keys.high[i + 2], keys.low[i + 3], keys.high[i + 3]};
    mma_16816(s, near, q.x, q.y);
    mma_16816(s, far, q.z, q.w);
  }
}

// Running softmax of one column pair: maxima in units of log2, and this lane's share of the sums.
template <int D, KvDtype T>
struct SoftmaxState {
  using Shape = TileShape<D, T>;
  float m[2] = {-INFINITY, -INFINITY};
  float l[2] = {0, 0};
  float o[Shape::m_tiles][4] = {};  // over code_unit

  // Folds in scores (log2 units, -inf = masked) of tiles with those values; the weights come out as B fragments.
  template <int kTiles, bool kWholeLines>
  __device__ void fold(float (&s)[kTiles][4], const ValueTile<D, T, kWholeLines> (&v)[kTiles], uint32_t (&weights)[kTiles][2]) {
    float inverse[kTiles][2];
    if constexpr (Shape::coded) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float value = scale_value(v[j].scales[i]);
          float size = __log2f(value);
          s[j][2 * i] += size, s[j][2 * i + 1] += size;
          inverse[j][i] = __fdividef(1, value);
        }
    }
    float scale[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float top = fmaxf(s[0][c], s[0][c + 2]);
#pragma unroll
      for (int j = 1; j < kTiles; ++j) top = fmaxf(top, fmaxf(s[j][c], s[j][c + 2]));
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
      float next = fmaxf(m[c], top);
      // A column with nothing yet: keep exp2 away from inf - inf.
      float base = next == -INFINITY ? 0 : next;
      scale[c] = exp2f(m[c] - base);
      l[c] *= scale[c];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        s[j][c] = exp2f(s[j][c] - base);
        s[j][c + 2] = exp2f(s[j][c + 2] - base);
        if constexpr (Shape::coded) l[c] += s[j][c] * inverse[j][0] + s[j][c + 2] * inverse[j][1];
        else l[c] += s[j][c] + s[j][c + 2];
      }
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
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      weights[j][0] = transpose_8x8(pack_half2(s[j][0], s[j][1]));
      weights[j][1] = transpose_8x8(pack_half2(s[j][2], s[j][3]));
    }
  }

  template <bool kWholeLines>
  __device__ void add_values(const ValueTile<D, T, kWholeLines>& v, const uint32_t (&weights)[2]) {
    constexpr int kPerWord = 2 / Shape::element_bytes;  // m-tiles
#pragma unroll
    for (int c = 0; c < Shape::v_chunks; ++c)
#pragma unroll
      for (int w = 0; w < Shape::v_words; ++w) {
        float(*to)[4] = o + (c * Shape::v_words + w) * kPerWord;
        const auto& from = v.part[c];
        constexpr int kLow = in_order<T>() ? 0x5140 : 0x5410, kHigh = in_order<T>() ? 0x7362 : 0x7632;
        uint32_t near[2] = {__byte_perm(from[0][w], from[1][w], kLow), __byte_perm(from[0][w], from[1][w], kHigh)};
        uint32_t far[2] = {__byte_perm(from[2][w], from[3][w], kLow), __byte_perm(from[2][w], from[3][w], kHigh)};
        if constexpr (Shape::coded) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint32_t a[4];
            expand_codes<T>(near[i], a[0], a[1]);
            expand_codes<T>(far[i], a[2], a[3]);
            mma_16816(to[i], a, weights[0], weights[1]);
          }
        } else {
          uint32_t a[4] = {near[0], near[1], far[0], far[1]};
          mma_16816(to[0], a, weights[0], weights[1]);
        }
      }
  }

  // Sums over the lanes that share a column, after which o / l is the output; call once at the end.
  __device__ void finish() {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) l[c] += __shfl_xor_sync(~0u, l[c], mask);
      if constexpr (code_unit<T>() != 1) l[c] *= 1 / code_unit<T>();
    }
  }
};

// Turns a raw score into log2 units, masked by position.
struct ScoreRule {
  float scale;    // args.scale * log2(e)
  float softcap;  // 0 = off
  int window;

  static ScoreRule of(const AttentionArgs<f16>& args) { return {args.scale * 1.44269504f, args.softcap, args.window}; }

  __device__ float operator()(float raw, int token, int position) const {
    if (token > position || (window > 0 && token <= position - window)) return -INFINITY;
    if (softcap > 0) return softcap * 1.44269504f * tanhf(raw * scale / (softcap * 1.44269504f));
    return raw * scale;
  }
};

// Where a sequence's cached rows of one layer and kv head lie (ops/kv_layout.h, keys as values: [block_size][head_dim]).
struct CacheRows {
  const unsigned char* arena;
  const uint32_t* blocks;  // this sequence's
  int block_size, row_bytes;
  size_t keys, values, key_scales, value_scales;  // bytes inside a block

  __device__ static CacheRows of(const void* arena, const KvLayout& kv, const SequenceBatch& batch, int sequence, int layer,
                                 int head) {
    const int element = kv.dtype == KvDtype::fp16 ? 2 : 1;
    const size_t rows = size_t(kv.block_size) * kv.head_dim * element;
    const size_t scales = kv.dtype == KvDtype::fp16 ? 0 : size_t(kv.block_size) * 2;
    const size_t start = size_t(layer) * 2 * kv.kv_heads * (rows + scales);
    const size_t first_scale = start + 2 * kv.kv_heads * rows + head * scales;
    return {static_cast<const unsigned char*>(arena), batch.blocks + batch.block_starts[sequence], kv.block_size,
            kv.head_dim * element, start + head * rows, start + (kv.kv_heads + head) * rows, first_scale,
            first_scale + kv.kv_heads * scales};
  }

  __device__ TileRows keys_from(uint32_t block, int token) const { return rows(block, token, keys, key_scales); }
  __device__ TileRows values_from(uint32_t block, int token) const { return rows(block, token, values, value_scales); }

 private:
  __device__ TileRows rows(uint32_t block, int token, size_t codes, size_t scales) const {
    const unsigned char* at = arena + size_t(block) * kKvUnitBytes;
    const int inside = token % block_size;
    return {at + codes + size_t(inside) * row_bytes, reinterpret_cast<const uint16_t*>(at + scales) + inside};
  }
};

// A code of ops/kv_codes.h; int8 is kept + 128.
template <KvDtype T>
__device__ inline uint32_t encode(float x) {
  if constexpr (T == KvDtype::int8) return __float_as_uint(fmaxf(-127.0f, fminf(127.0f, x)) + 0x1.8p23f) + 128 & 0xff;
  const uint32_t bits = __float_as_uint(x), size = bits & 0x7fffffff;
  const uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120 << 3);
  const uint32_t small = __float_as_uint(__uint_as_float(size) + 0x1p14f) - __float_as_uint(0x1p14f);
  const uint32_t code = size < 0x3c800000u ? small : normal;
  return (bits >> 24 & 0x80) | (size > 0x43e00000u ? 0x7eu : code);
}

// Writes a row of `head_dim` floats (shared) to where `to` points, as halves or as codes with their scale. One warp.
template <KvDtype T>
__device__ inline void write_row(const float* row, TileRows to, int head_dim) {
  const int lane = threadIdx.x % 32;
  if constexpr (T == KvDtype::fp16) {
    uint32_t* out = reinterpret_cast<uint32_t*>(const_cast<unsigned char*>(to.rows));
    for (int d = lane * 2; d < head_dim; d += 64) out[d / 2] = pack_half2(row[d], row[d + 1]);
  } else {
    float largest = 0;
    for (int d = lane; d < head_dim; d += 32) largest = fmaxf(largest, fabsf(row[d]));
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    const float step = fminf(fmaxf(__fdiv_rn(largest, T == KvDtype::fp8 ? 448.0f : 127.0f), 1e-30f), 1e30f);
    const uint32_t scale = (__float_as_uint(step) + 0xffff) >> 16;
    const float inverse = __frcp_rn(__uint_as_float(scale << 16));
    for (int d = lane * 4; d < head_dim; d += 128) {
      uint32_t word = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) word |= encode<T>(row[d + i] * inverse) << (8 * i);
      *reinterpret_cast<uint32_t*>(const_cast<unsigned char*>(to.rows) + d) = word;
    }
    if (lane == 0) *const_cast<uint16_t*>(to.scales) = uint16_t(scale);
  }
}

}  // namespace edgeshift::cuda
