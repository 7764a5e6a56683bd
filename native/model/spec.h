// Hyperparameters of a decoder-only transformer. Every family is a setting of these fields.
#pragma once

#include <vector>

#include "ops/gated_activation.h"

namespace edgeshift {

// Rotary frequencies, context scaling applied.
struct RopeTable {
  std::vector<float> inv_freq;  // [rotary_dim / 2]
  float scale = 1;              // multiplies cos and sin
};

struct ModelSpec {
  int vocab = 0;
  int hidden = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  float norm_eps = 0;
  std::vector<RopeTable> ropes;
  std::vector<int> layer_ropes;  // [layers] index into ropes, -1 = the layer does not rotate
  bool rope_interleaved = false;
  float attention_scale = 0;
  std::vector<int> windows;  // [layers], 0 = full attention
  Activation activation = Activation::silu;
  float norm_offset = 0;      // added to every norm weight (Gemma stores w - 1)
  float embedding_scale = 1;  // multiplies the embedding's output
  float attention_softcap = 0;  // scores become c * tanh(score / c); 0 = off
  float final_softcap = 0;      // the same for logits
  bool post_norms = false;      // norms on the outputs of attention and feed-forward, before the residual
};

}  // namespace edgeshift
