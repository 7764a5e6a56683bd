// The forward pass of a decoder-only transformer on the device: which kernels run, in which order, on which buffers.
#pragma once

#include <optional>
#include <vector>

#include "core/dtype.h"
#include "cuda/buffer.h"
#include "cuda/launch.h"
#include "cuda/matmul.h"
#include "cuda/rope_kv.h"
#include "model/spec.h"
#include "ops/kv_layout.h"
#include "ops/packed_matrix.h"

namespace edgeshift::cuda {

// Device pointers of one layer. gate_up is packed in RowOrder::gate_up, the others plain.
struct LayerWeights {
  PackedMatrix qkv, o, gate_up, down;
  const float* attention_norm = nullptr;  // [hidden]
  const float* ffn_norm = nullptr;        // [hidden]
  const float* qkv_bias = nullptr;        // [(heads + 2 kv_heads) * head_dim] or null
  const float* q_norm = nullptr;          // [head_dim] or null
  const float* k_norm = nullptr;
  const float* o_bias = nullptr;               // [hidden] or null
  const float* gate_up_bias = nullptr;         // [2 ffn] in the order of gate_up's rows, or null
  const float* down_bias = nullptr;            // [hidden] or null
  const float* post_attention_norm = nullptr;  // [hidden], set when spec.post_norms
  const float* post_ffn_norm = nullptr;
};

struct TransformerWeights {
  PackedMatrix embed, head;
  const float* final_norm = nullptr;
  float head_norm_eps = 0;             // of q_norm and k_norm
  std::vector<const float*> inv_freq;  // of spec.ropes, [rotary_dim / 2] each
  std::vector<LayerWeights> layers;
};

// Activations of up to `tokens` tokens and logits of up to `rows` rows, owned.
class Workspace {
 public:
  Status allocate(const ModelSpec& spec, const DeviceTraits& device, int tokens, int rows, int max_splits);
  // Room for the quantized matrices of a prefill of `tokens` tokens as f16 (WideScratch); without it they are turned later.
  Status allocate_widened(const TransformerWeights& weights, const DeviceTraits& device, int tokens);
  size_t bytes() const;

  Buffer residual;   // float [tokens, hidden]
  Buffer last;       // float [rows, hidden]
  Buffer normed;     // f16 [tokens, hidden]
  Buffer qkv;        // f16 [tokens, (heads + 2 kv_heads) * head_dim]
  Buffer q;          // f16 [tokens, heads * head_dim]
  Buffer attended;   // f16 [tokens, heads * head_dim]
  Buffer activated;  // f16 [tokens, ffn]
  Buffer logits;     // float [rows, vocab]
  Buffer delta;      // float [tokens, hidden], only for models with post norms
  Buffer permuted;   // widest input of all tokens: in a matrix's act-order, or in tiles (input_tiles.h)
  Buffer attention;  // scratch of decode_attention
  Buffer matmul;     // scratch of tiled_matmul
  Buffer widened;    // WideScratch
  int max_splits = 1;
};

// One pass over a batch: token ids to logits of each sequence's last token.
struct Forward {
  const ModelSpec* spec = nullptr;
  const TransformerWeights* weights = nullptr;
  Workspace* workspace = nullptr;
  const KvLayout* kv = nullptr;
  void* arena = nullptr;
  const int32_t* tokens = nullptr;  // [t] device; below 0: of last_tokens (cuda/embed.h)
  SequenceBatch batch;
  bool head = true;      // false: no logits yet, logits_of() follows
  std::optional<size_t> lookahead = {};  // bytes of the next weights that a kernel asks L2 for; none given: what is best
  const int32_t* last_tokens = nullptr;  // [slots] device
  SequenceRopes ropes;                   // offset 0
};

// Enqueues a step with one token per sequence. `splits` blocks share each sequence's cache.
Status decode_forward(const Forward& pass, int splits, const Launch& on);

// Enqueues a step with any number of tokens per sequence; logits of the last token of each sequence.
Status prefill_forward(const Forward& pass, const Launch& on);

// Enqueues the logits of `count` tokens of the batch, up to the workspace's rows; `rows` [count] (device) are their places.
Status logits_of(const Forward& pass, const int32_t* rows, int count, const Launch& on);

// unsupported when this build has no kernels for the current device.
Status check_kernels();

// Splits that fill the device for `sequences` sequences of up to `context` tokens.
int choose_splits(const ModelSpec& spec, const DeviceTraits& device, int sequences, int context, int max_splits);

}  // namespace edgeshift::cuda
