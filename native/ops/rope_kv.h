// Splits a fused qkv row, applies q/k norm and rotary embedding (Su et al. 2021), and writes keys and values to the cache.
#pragma once

#include "ops/kv_layout.h"

namespace edgeshift {

template <class Act>
struct RopeKvArgs {
  const Act* qkv = nullptr;  // [t, (heads + 2 * kv_heads) * head_dim], biases already added
  Act* q = nullptr;          // [t, heads, head_dim], rotated
  const SequenceBatch* batch = nullptr;
  const KvLayout* kv = nullptr;
  void* arena = nullptr;
  int layer = 0;
  int heads = 0;
  const float* inv_freq = nullptr;  // [rotary_dim / 2]
  int rotary_dim = 0;
  float scale = 1;                // multiplies cos and sin
  bool interleaved = false;       // pairs (2i, 2i+1) instead of (i, i + rotary_dim / 2)
  const float* q_norm = nullptr;  // [head_dim] or null: RMS norm per head before the rotation
  const float* k_norm = nullptr;
  float norm_eps = 0;
};

}  // namespace edgeshift
