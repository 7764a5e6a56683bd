// Hyperparameters of a decoder-only transformer. Every family is a setting of these fields.
#pragma once

#include <vector>

#include "ops/gated_activation.h"

namespace edgeshift {

struct ModelSpec {
  int vocab = 0;
  int hidden = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  float norm_eps = 0;
  std::vector<float> rope_inv_freq;  // [rotary_dim / 2], scaling applied
  float rope_scale = 1;              // multiplies cos and sin
  bool rope_interleaved = false;
  float attention_scale = 0;
  std::vector<int> windows;  // [layers], 0 = full attention
  Activation activation = Activation::silu;
};

}  // namespace edgeshift
