#include "cuda/transformer.h"

#include <algorithm>

#include "cuda/attention.h"
#include "cuda/device.cuh"
#include "cuda/embed.h"
#include "cuda/rms_norm.h"
#include "cuda/rope_kv.h"

namespace edgeshift::cuda {
namespace {

NextRead first_bytes(const PackedMatrix& weight, size_t limit) {
  return {weight.data, std::min(weight.bytes, limit) / 16 * 16};
}

// Whether the norm is worth computing in every block of a gemv: with more tokens a kernel of its own is cheaper.
constexpr int kFusedNormTokens = 1;
#ifndef ES_GEMV_MAX
#define ES_GEMV_MAX 4
#endif
constexpr int kGemvBest = ES_GEMV_MAX;

// Rows of each sequence's last token, gathered to the front of `out`.
__global__ void gather_last(const float* residual, const int32_t* starts, int hidden, float* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const float* row = residual + size_t(starts[blockIdx.x + 1] - 1) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) out[size_t(blockIdx.x) * hidden + i] = __ldcg(row + i);
}

// The kernels of one pass; every method enqueues one or two.
class Pass {
 public:
  Pass(const Forward& forward, const Launch& on) : f(forward), w(*forward.workspace), spec(*forward.spec), on(on) {}

  int t() const { return f.batch.t; }
  const LayerWeights& layer(int i) const { return f.weights->layers[i]; }

  Status embed_tokens() {
    EmbedArgs args{f.tokens, t(), &f.weights->embed, w.residual.as<float>()};
    return embed(args, on);
  }

  bool use_gemv(const PackedMatrix& weight, int tokens) const {
    return tokens <= kGemvBest && gemv_fits(weight, tokens, on.device);
  }

  Status product(const FusedMatmulArgs& args) {
    return use_gemv(*args.weight, args.t) ? gemv(args, on) : tiled_matmul(args, w.matmul.as<void>(), on);
  }

  // Norm of `residual` and product: fused for few tokens.
  Status normed_product(float* residual, const float* norm, FusedMatmulArgs args) {
    if (args.t <= kFusedNormTokens && use_gemv(*args.weight, args.t)) {
      args.x = residual;
      args.norm = norm;
      args.eps = spec.norm_eps;
      return gemv(args, on);
    }
    RmsNormArgs<f16> rms{residual, nullptr, norm, w.normed.as<f16>(), args.t, spec.hidden, spec.norm_eps};
    ES_RETURN_IF_ERROR(rms_norm(rms, on));
    args.x = w.normed.as<f16>();
    return product(args);
  }

  RopeKvArgs<f16> rope(int i) {
    RopeKvArgs<f16> args;
    args.qkv = w.qkv.as<f16>();
    args.q = w.q.as<f16>();
    args.batch = &f.batch;
    args.kv = f.kv;
    args.arena = f.arena;
    args.layer = i;
    args.heads = spec.heads;
    int table = spec.layer_ropes.empty() ? 0 : spec.layer_ropes[i];
    if (table >= 0) {
      args.inv_freq = f.weights->inv_freq[table];
      args.rotary_dim = int(spec.ropes[table].inv_freq.size()) * 2;
      args.scale = spec.ropes[table].scale;
    }
    args.interleaved = spec.rope_interleaved;
    args.q_norm = layer(i).q_norm;
    args.k_norm = layer(i).k_norm;
    args.norm_eps = spec.norm_eps;
    return args;
  }

  AttentionArgs<f16> attention(int i) {
    AttentionArgs<f16> args;
    args.q = w.q.as<f16>();
    args.out = w.attended.as<f16>();
    args.batch = &f.batch;
    args.kv = f.kv;
    args.arena = f.arena;
    args.layer = i;
    args.heads = spec.heads;
    args.scale = spec.attention_scale;
    args.window = spec.windows.empty() ? 0 : spec.windows[i];
    args.softcap = spec.attention_softcap;
    return args;
  }

  Status qkv(int i) {
    FusedMatmulArgs args;
    args.weight = &layer(i).qkv;
    args.bias = layer(i).qkv_bias;
    args.out = w.qkv.as<void>();
    args.next = first_bytes(layer(i).o, f.lookahead);
    args.t = t();
    return normed_product(w.residual.as<float>(), layer(i).attention_norm, args);
  }

  Status output(int i) {
    FusedMatmulArgs args;
    args.weight = &layer(i).o;
    args.x = w.attended.as<void>();
    args.out = w.residual.as<void>();
    args.epilogue = Epilogue::add;
    args.next = first_bytes(layer(i).gate_up, f.lookahead);
    args.t = t();
    return product(args);
  }

  Status feed_forward(int i) {
    FusedMatmulArgs up;
    up.weight = &layer(i).gate_up;
    up.out = w.activated.as<void>();
    up.epilogue = Epilogue::gate;
    up.activation = spec.activation;
    up.next = first_bytes(layer(i).down, f.lookahead);
    up.t = t();
    ES_RETURN_IF_ERROR(normed_product(w.residual.as<float>(), layer(i).ffn_norm, up));
    FusedMatmulArgs down;
    down.weight = &layer(i).down;
    down.x = w.activated.as<void>();
    down.out = w.residual.as<void>();
    down.epilogue = Epilogue::add;
    down.next = first_bytes(i + 1 < spec.layers ? layer(i + 1).qkv : f.weights->head, f.lookahead);
    down.t = t();
    return product(down);
  }

  // Logits of `rows` rows of a residual.
  Status head(float* residual, int rows) {
    FusedMatmulArgs args;
    args.weight = &f.weights->head;
    args.out = w.logits.as<void>();
    args.epilogue = Epilogue::logits;
    args.next = first_bytes(layer(0).qkv, f.lookahead);
    args.t = rows;
    return normed_product(residual, f.weights->final_norm, args);
  }

  const Forward& f;
  Workspace& w;
  const ModelSpec& spec;
  const Launch& on;
};

}  // namespace

Status Workspace::allocate(const ModelSpec& spec, const DeviceTraits& device, int tokens, int rows, int splits) {
  size_t t = size_t(tokens), heads = size_t(spec.heads) * spec.head_dim;
  max_splits = splits;
  ES_RETURN_IF_ERROR(residual.allocate(t * spec.hidden * 4));
  ES_RETURN_IF_ERROR(last.allocate(size_t(rows) * spec.hidden * 4));
  ES_RETURN_IF_ERROR(normed.allocate(t * spec.hidden * 2));
  ES_RETURN_IF_ERROR(qkv.allocate(t * (heads + size_t(2) * spec.kv_heads * spec.head_dim) * 2));
  ES_RETURN_IF_ERROR(q.allocate(t * heads * 2));
  ES_RETURN_IF_ERROR(attended.allocate(t * heads * 2));
  ES_RETURN_IF_ERROR(activated.allocate(t * spec.ffn * 2));
  ES_RETURN_IF_ERROR(logits.allocate(size_t(rows) * spec.vocab * 4));
  ES_RETURN_IF_ERROR(attention.allocate(attention_workspace_bytes(rows, spec.heads, spec.head_dim, splits)));
  ES_RETURN_IF_ERROR(matmul.allocate(matmul_workspace_bytes(device)));
  ES_CUDA_RETURN_IF_ERROR(cudaMemset(attention.as<void>(), 0, attention.bytes()));
  ES_CUDA_RETURN_IF_ERROR(cudaMemset(matmul.as<void>(), 0, matmul.bytes()));
  return {};
}

size_t Workspace::bytes() const {
  size_t sum = 0;
  for (const Buffer* b : {&residual, &last, &normed, &qkv, &q, &attended, &activated, &logits, &attention, &matmul}) sum += b->bytes();
  return sum;
}

Status decode_forward(const Forward& forward, int splits, const Launch& on) {
  Pass pass(forward, on);
  ES_RETURN_IF_ERROR(pass.embed_tokens());
  for (int i = 0; i < pass.spec.layers; ++i) {
    ES_RETURN_IF_ERROR(pass.qkv(i));
    NextRead next = first_bytes(pass.layer(i).gate_up, forward.lookahead);
    ES_RETURN_IF_ERROR(decode_attention(pass.rope(i), pass.attention(i), splits, pass.w.attention.as<void>(), next, on));
    ES_RETURN_IF_ERROR(pass.output(i));
    ES_RETURN_IF_ERROR(pass.feed_forward(i));
  }
  return pass.head(pass.w.residual.as<float>(), forward.batch.s);
}

Status prefill_forward(const Forward& forward, const Launch& on) {
  Pass pass(forward, on);
  ES_RETURN_IF_ERROR(pass.embed_tokens());
  for (int i = 0; i < pass.spec.layers; ++i) {
    ES_RETURN_IF_ERROR(pass.qkv(i));
    ES_RETURN_IF_ERROR(rope_kv(pass.rope(i), on));
    ES_RETURN_IF_ERROR(prefill_attention(pass.attention(i), on));
    ES_RETURN_IF_ERROR(pass.output(i));
    ES_RETURN_IF_ERROR(pass.feed_forward(i));
  }
  float* last = pass.w.last.as<float>();
  ES_RETURN_IF_ERROR(launch(on, gather_last, dim3(forward.batch.s), 256, 0, pass.w.residual.as<float>(), forward.batch.starts,
                            pass.spec.hidden, last));
  return pass.head(last, forward.batch.s);
}

int choose_splits(const ModelSpec& spec, const DeviceTraits& device, int sequences, int context, int max_splits) {
  // A block takes 8 tiles of 16 tokens at a time: with fewer per block warps idle.
  int useful = (context + 127) / 128;
  int room = device.multiprocessors / std::max(1, sequences * spec.kv_heads);
  return std::clamp(std::min(useful, room), 1, max_splits);
}

}  // namespace edgeshift::cuda
