// The inner kernels of attention.
//
// Positions are cut at absolute multiples: chunks of 64 (one pass of online softmax; Milakov and Gimelshein 2018) and
// spans of 256. Within a span the chunks are folded in order into a fresh state, and span states are merged in order.
// Prefill and decode use the same cuts and the same code, whether spans are computed by one thread or by several, so a
// query's result depends on its own context alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace edgeshift::cpu {

inline constexpr int kChunk = 64;
inline constexpr int kSpan = 256;

// Unnormalized softmax-weighted values of some rows: out = sum p v, sum = sum p, p = exp(score - top).
struct AttentionState {
  float* top = nullptr;  // [rows], -infinity when empty
  float* sum = nullptr;  // [rows]
  float* out = nullptr;  // [rows, head_dim]
};

// The rows (tokens x query heads of one kv head) of one tile against one span of positions.
// Row r is token r / group, query head r % group of the kv head.
struct AttentionSpan {
  const float* q = nullptr;  // row 0
  int64_t token_stride = 0;  // floats between tokens of q
  int rows = 0;
  int group = 0;
  int head_dim = 0;
  int first_position = 0;  // of token 0
  int begin = 0;           // the span's positions [begin, end), begin a multiple of kSpan
  int end = 0;             // at most the last token's position + 1
  int window = 0;
  float scale = 1;
  float softcap = 0;
  const char* keys = nullptr;    // arena + offset of this layer's keys of this kv head within a block
  const char* values = nullptr;  // likewise
  const char* key_scales = nullptr;    // of coded keys and values, likewise
  const char* value_scales = nullptr;
  const uint32_t* blocks = nullptr;
  int block_size = 0;
};

struct AttentionKernels {
  // Fills `state` from this span alone; by KvDtype.
  void (*span[3])(const AttentionSpan& span, AttentionState state);
  // into = into merged with next.
  void (*merge)(AttentionState into, AttentionState next, int rows, int head_dim);
  // to[i] = out[i] / sum for one row.
  void (*finish)(const float* out, float sum, float* to, int head_dim);
};

extern const AttentionKernels attention_scalar;
extern const AttentionKernels attention_avx2;
extern const AttentionKernels attention_avx512;

}  // namespace edgeshift::cpu
