// Causal attention of new tokens over the paged cache, prefill and decode in one batch.
#pragma once

#include "ops/kv_layout.h"

namespace edgeshift {

// Token at position p attends to positions max(0, p - window + 1) .. p (window 0: from 0), whose keys and values are
// in the cache (this step's included). Query head h reads kv head h / (heads / kv_heads).
template <class Act>
struct AttentionArgs {
  const Act* q = nullptr;  // [t, heads, head_dim]
  Act* out = nullptr;      // [t, heads, head_dim]
  const SequenceBatch* batch = nullptr;
  const KvLayout* kv = nullptr;
  const void* arena = nullptr;
  int layer = 0;
  int heads = 0;
  float scale = 1;
  int window = 0;
  float softcap = 0;  // scores become softcap * tanh(score / softcap); 0 = off
};

}  // namespace edgeshift
