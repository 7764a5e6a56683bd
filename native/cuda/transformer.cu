#include "cuda/transformer.h"

#include <algorithm>
#include <utility>

#include "cuda/attention.h"
#include "cuda/device.cuh"
#include "cuda/embed.h"
#include "cuda/input_tiles.h"
#include "cuda/rms_norm.h"
#include "cuda/rope_kv.h"

namespace edgeshift::cuda {
namespace {

// Bytes of a matrix that the kernel before asks L2 for, by measurement (docs/cuda.md): the wider the weights, the less of the time
// is spent between kernels.
size_t best_lookahead(Precision precision) {
  return precision == Precision::int4 ? 3 << 20 : precision == Precision::int8 ? 1 << 20 : 0;
}

NextRead first_bytes(const PackedMatrix& weight, std::optional<size_t> most) {
  return {weight.data, std::min(weight.bytes, most.value_or(best_lookahead(weight.precision))) / 16 * 16};
}

// Whether the norm is worth computing in every block of a gemv: with more tokens a kernel of its own is cheaper.
constexpr int kFusedNormTokens = 1;
// From this many new tokens of a sequence on, keys and values go through shared memory.
constexpr int kWideAttentionTokens = 64;
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

// The named rows, gathered to the front of `out`.
__global__ void gather_rows(const float* residual, const int32_t* rows, int hidden, float* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const float* row = residual + size_t(rows[blockIdx.x]) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) out[size_t(blockIdx.x) * hidden + i] = __ldcg(row + i);
}

// Inputs in the order that an act-order matrix keeps its columns in. Grid (t, k / 256).
__global__ void permute_inputs(const f16* x, const int32_t* order, int k, f16* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  int i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= k) return;
  const unsigned short* row = reinterpret_cast<const unsigned short*>(x) + size_t(blockIdx.x) * k;
  out[size_t(blockIdx.x) * k + i].bits = __ldcg(row + order[i]);
}

// residual += delta / sqrt(mean(delta^2) + eps) * weight, one block of 256 threads per token.
__global__ void add_normed(const float* delta, const float* weight, int hidden, float eps, float* residual) {
  __shared__ float squares[8];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const float* row = delta + size_t(blockIdx.x) * hidden;
  float sum = 0;
  for (int i = threadIdx.x; i < hidden; i += 256) {
    float v = __ldcg(row + i);
    sum += v * v;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (float part : squares) sum += part;
  float inverse = rsqrtf(sum / hidden + eps);
  float* out = residual + size_t(blockIdx.x) * hidden;
  for (int i = threadIdx.x; i < hidden; i += 256)
    __stcg(out + i, __ldcg(out + i) + __ldcg(row + i) * inverse * weight[i]);
}

// The kernels of one pass; every method enqueues one or two.
class Pass {
 public:
  Pass(const Forward& forward, const Launch& on) : f(forward), w(*forward.workspace), spec(*forward.spec), on(on) {}

  int t() const { return f.batch.t; }
  const LayerWeights& layer(int i) const { return f.weights->layers[i]; }

  Status embed_tokens() {
    EmbedArgs args{f.tokens, t(), &f.weights->embed, w.residual.as<float>(), spec.embedding_scale};
    return embed(args, f.last_tokens, on);
  }

  bool use_gemv(const PackedMatrix& weight, int tokens) const {
    return tokens <= kGemvBest && gemv_fits(weight, tokens, on.device);
  }

  // Many tokens: inputs go to tiles first, in act-order where the matrix wants it.
  Status wide_product(FusedMatmulArgs args) {
    PackedMatrix sorted = *args.weight;
    const int tiles = input_tiles(strip_layout(sorted.precision, sorted.n, sorted.k, sorted.group));
    ES_RETURN_IF_ERROR(tile_inputs(static_cast<const f16*>(args.x), sorted.permutation, args.t, sorted.k, tiles,
                                   w.permuted.as<void>(), on));
    sorted.permutation = nullptr;
    args.weight = &sorted;
    args.x = w.permuted.as<void>();
    return wide_matmul(args, {w.matmul.as<void>(), w.widened.as<void>(), w.widened.bytes()}, on);
  }

  // Bytes of a tile where the inputs of `weight` are written in tiles, for stream_matmul, or 0: rows.
  size_t tiles_for(const PackedMatrix& weight, int tokens) const {
    return !weight.permutation && stream_fits(weight, tokens, on.device) ? input_tile_bytes(tokens) : 0;
  }

  Status product(const FusedMatmulArgs& given) {
    if (given.x_tile_bytes > 0) return stream_matmul(given, w.matmul.as<void>(), on);
    if (wide_fits(*given.weight, given.t, on.device)) return wide_product(given);
    FusedMatmulArgs args = given;
    PackedMatrix sorted = *given.weight;
    if (sorted.permutation) {
      f16* permuted = w.permuted.as<f16>();
      ES_RETURN_IF_ERROR(launch(on, permute_inputs, dim3(args.t, (sorted.k + 255) / 256), 256, 0,
                                static_cast<const f16*>(args.x), sorted.permutation, sorted.k, permuted));
      sorted.permutation = nullptr;
      args.weight = &sorted;
      args.x = permuted;
    }
    if (slices_fit(*args.weight, args.t, on.device)) return slice_matmul(args, w.matmul.as<void>(), on);
    return use_gemv(*args.weight, args.t) ? gemv(args, on) : tiled_matmul(args, w.matmul.as<void>(), on);
  }

  // Adds a product to the residual stream, normalised first where the model says so. With `norm_follows` its parts may be left to
  // the next normed_product of that stream.
  Status product_to_residual(FusedMatmulArgs args, const float* post_norm, bool norm_follows) {
    args.out = post_norm ? w.delta.as<void>() : w.residual.as<void>();
    args.epilogue = post_norm ? Epilogue::logits : Epilogue::add;
    if (norm_follows && !post_norm && !args.bias && args.x_tile_bytes > 0) return stream_matmul_parts(args, w.matmul.as<void>(), parts, on);
    ES_RETURN_IF_ERROR(product(args));
    if (!post_norm) return {};
    return launch(on, add_normed, dim3(args.t), 256, 0, static_cast<const float*>(w.delta.as<float>()), post_norm, spec.hidden, spec.norm_eps,
                  w.residual.as<float>());
  }

  // Norm of `residual` and product: fused for few tokens.
  Status normed_product(float* residual, const float* norm, FusedMatmulArgs args) {
    if (args.t <= kFusedNormTokens && !args.weight->permutation && use_gemv(*args.weight, args.t)) {
      args.x = residual;
      args.norm = norm;
      args.eps = spec.norm_eps;
      return gemv(args, on);
    }
    RmsNormArgs<f16> rms{residual, nullptr, norm, w.normed.as<f16>(), args.t, spec.hidden, spec.norm_eps};
    args.x_tile_bytes = tiles_for(*args.weight, args.t);
    ES_RETURN_IF_ERROR(rms_norm(rms, std::exchange(parts, {}), args.x_tile_bytes, on));
    args.x = w.normed.as<f16>();
    return product(args);
  }

  RopeArgs rope(int i) {
    RopeArgs args;
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
      args.own = f.ropes;
      for (int before = 0; before < table; ++before) args.own.offset += int(spec.ropes[before].inv_freq.size()) + 1;
    }
    args.interleaved = spec.rope_interleaved;
    args.q_norm = layer(i).q_norm;
    args.k_norm = layer(i).k_norm;
    args.norm_eps = f.weights->head_norm_eps;
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

  Status attend(int i) {
    const AttentionArgs<f16> args = attention(i);
    const bool wide = f.batch.max_count >= kWideAttentionTokens && f.kv->dtype == KvDtype::fp16;
    return wide ? wide_attention(args, on) : prefill_attention(args, on);
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

  // Of attended rows, or of tiles of x_tile_bytes.
  Status output(int i, size_t x_tile_bytes) {
    FusedMatmulArgs args;
    args.weight = &layer(i).o;
    args.x = w.attended.as<void>();
    args.x_tile_bytes = x_tile_bytes;
    args.bias = layer(i).o_bias;
    args.next = first_bytes(layer(i).gate_up, f.lookahead);
    args.t = t();
    return product_to_residual(args, layer(i).post_attention_norm, true);
  }

  Status feed_forward(int i) {
    FusedMatmulArgs up;
    up.weight = &layer(i).gate_up;
    up.bias = layer(i).gate_up_bias;
    up.out = w.activated.as<void>();
    up.epilogue = Epilogue::gate;
    up.activation = spec.activation;
    up.next = first_bytes(layer(i).down, f.lookahead);
    up.t = t();
    if (tiles_for(*up.weight, up.t) > 0) up.out_tile_bytes = tiles_for(layer(i).down, up.t);
    ES_RETURN_IF_ERROR(normed_product(w.residual.as<float>(), layer(i).ffn_norm, up));
    FusedMatmulArgs down;
    down.weight = &layer(i).down;
    down.x = w.activated.as<void>();
    down.x_tile_bytes = up.out_tile_bytes;
    down.bias = layer(i).down_bias;
    down.next = first_bytes(i + 1 < spec.layers ? layer(i + 1).qkv : f.weights->head, f.lookahead);
    down.t = t();
    // Behind the last layer rows may be gathered first.
    return product_to_residual(down, layer(i).post_ffn_norm, i + 1 < spec.layers);
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
  OutputParts parts;  // of the last product, which the residual stream lacks
};

}  // namespace

Status Workspace::allocate(const ModelSpec& spec, const DeviceTraits& device, int tokens, int rows, int splits) {
  size_t t = size_t(tokens), heads = size_t(spec.heads) * spec.head_dim, padded = padded_tokens(tokens);
  max_splits = splits;
  ES_RETURN_IF_ERROR(residual.allocate(t * spec.hidden * 4));
  ES_RETURN_IF_ERROR(last.allocate(size_t(rows) * spec.hidden * 4));
  ES_RETURN_IF_ERROR(normed.allocate(padded * spec.hidden * 2));
  ES_RETURN_IF_ERROR(qkv.allocate(t * (heads + size_t(2) * spec.kv_heads * spec.head_dim) * 2));
  ES_RETURN_IF_ERROR(q.allocate(t * heads * 2));
  ES_RETURN_IF_ERROR(attended.allocate(padded * heads * 2));
  ES_RETURN_IF_ERROR(activated.allocate(padded * spec.ffn * 2));
  ES_RETURN_IF_ERROR(logits.allocate(size_t(rows) * spec.vocab * 4));
  if (spec.post_norms) ES_RETURN_IF_ERROR(delta.allocate(t * spec.hidden * 4));
  ES_RETURN_IF_ERROR(permuted.allocate(tiled_input_bytes(tokens, std::max({spec.hidden, int(heads), spec.ffn}))));
  ES_RETURN_IF_ERROR(attention.allocate(attention_workspace_bytes(rows, spec.heads, spec.head_dim, splits)));
  ES_RETURN_IF_ERROR(matmul.allocate(matmul_workspace_bytes(device)));
  ES_CUDA_RETURN_IF_ERROR(cudaMemset(attention.as<void>(), 0, attention.bytes()));
  ES_CUDA_RETURN_IF_ERROR(cudaMemset(matmul.as<void>(), 0, matmul.bytes()));
  // Steps run on a stream that does not wait for this one.
  return to_status(cudaStreamSynchronize(nullptr), "workspace");
}

Status Workspace::allocate_widened(const TransformerWeights& weights, const DeviceTraits& device, int tokens) {
  size_t most = 0;
  for (const LayerWeights& layer : weights.layers)
    for (const PackedMatrix* m : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      if (wide_fits(*m, tokens, device)) most = std::max(most, widened_bytes(*m, device));
  return most > 0 ? widened.allocate(most) : Status();
}

size_t Workspace::bytes() const {
  size_t sum = 0;
  for (const Buffer* b : {&residual, &last, &normed, &qkv, &q, &attended, &activated, &logits, &delta, &permuted,
                          &attention, &matmul, &widened}) {
    sum += b->bytes();
  }
  return sum;
}

Status decode_forward(const Forward& forward, int splits, const Launch& on) {
  Pass pass(forward, on);
  ES_RETURN_IF_ERROR(pass.embed_tokens());
  for (int i = 0; i < pass.spec.layers; ++i) {
    ES_RETURN_IF_ERROR(pass.qkv(i));
    NextRead next = first_bytes(pass.layer(i).gate_up, forward.lookahead);
    const size_t tile_bytes = pass.tiles_for(pass.layer(i).o, pass.t());
    ES_RETURN_IF_ERROR(decode_attention(pass.rope(i), pass.attention(i), splits, pass.w.attention.as<void>(), tile_bytes, next, on));
    ES_RETURN_IF_ERROR(pass.output(i, tile_bytes));
    ES_RETURN_IF_ERROR(pass.feed_forward(i));
  }
  return forward.head ? pass.head(pass.w.residual.as<float>(), forward.batch.s) : Status();
}

Status prefill_forward(const Forward& forward, const Launch& on) {
  Pass pass(forward, on);
  ES_RETURN_IF_ERROR(pass.embed_tokens());
  for (int i = 0; i < pass.spec.layers; ++i) {
    ES_RETURN_IF_ERROR(pass.qkv(i));
    ES_RETURN_IF_ERROR(rope_kv(pass.rope(i), on));
    ES_RETURN_IF_ERROR(pass.attend(i));
    ES_RETURN_IF_ERROR(pass.output(i, 0));
    ES_RETURN_IF_ERROR(pass.feed_forward(i));
  }
  if (!forward.head) return {};
  float* last = pass.w.last.as<float>();
  ES_RETURN_IF_ERROR(launch(on, gather_last, dim3(forward.batch.s), 256, 0, pass.w.residual.as<float>(), forward.batch.starts,
                            pass.spec.hidden, last));
  return pass.head(last, forward.batch.s);
}

Status logits_of(const Forward& forward, const int32_t* rows, int count, const Launch& on) {
  Pass pass(forward, on);
  float* last = pass.w.last.as<float>();
  ES_RETURN_IF_ERROR(launch(on, gather_rows, dim3(count), 256, 0, pass.w.residual.as<float>(), rows, pass.spec.hidden, last));
  return pass.head(last, count);
}

Status check_kernels() {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, gather_rows) == cudaSuccess) return {};
  cudaGetLastError();
  return {Code::unsupported, "this build has no kernels for this GPU's architecture (EDGESHIFT_CUDA_ARCHITECTURES)"};
}

int choose_splits(const ModelSpec& spec, const DeviceTraits& device, int sequences, int context, int max_splits) {
  // A block takes 8 tiles of 16 tokens at a time. Half of its warps idle below 128 tokens a split, but more multiprocessors
  // read: 2% faster at batch 1.
  int useful = (context + 63) / 64;
  int room = device.multiprocessors / std::max(1, sequences * spec.kv_heads);
  const int splits = std::clamp(std::min(useful, room), 1, max_splits);
  // Three meet faster than more that do not, unless a block's warps take another turn of tiles.
  const auto turns = [&](int count) { return (context + count * 128 - 1) / (count * 128); };
  const bool apart = splits > 3 && !splits_meet(device, sequences, spec.kv_heads, splits) && splits_meet(device, sequences, spec.kv_heads, 3);
  return apart && turns(3) == turns(splits) ? 3 : splits;
}

}  // namespace edgeshift::cuda
