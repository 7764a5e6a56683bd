// The gate of a gated feed-forward layer.
#pragma once

namespace edgeshift {

enum class Activation { silu, gelu_tanh };

// out[i, j] = activation(gate_up[i, j]) * gate_up[i, ffn + j].
template <class Act>
struct GatedActivationArgs {
  const Act* gate_up = nullptr;  // [t, 2 * ffn]
  Act* out = nullptr;            // [t, ffn]
  int t = 0;
  int ffn = 0;
  Activation activation = Activation::silu;
};

}  // namespace edgeshift
