#include "cuda/embed.h"

#include "cuda/strip_read.cuh"

namespace edgeshift::cuda {
namespace {

struct EmbedParams {
  const int32_t* tokens;
  const int32_t* last_tokens;
  const unsigned char* table;
  StripLayout layout;
  Precision precision;
  int vocab, hidden;
  float* out;
  float scale;
};

// Grid (t, hidden / 256): one thread per element; a row is a few KB, latency decides.
__global__ void embed_kernel(const __grid_constant__ EmbedParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  int token = __ldcg(p.tokens + blockIdx.x);
  if (token < 0 && p.last_tokens) token = __ldcg(p.last_tokens - 1 - token);
  int k = blockIdx.y * blockDim.x + threadIdx.x;
  if (k >= p.hidden) return;
  bool known = token >= 0 && token < p.vocab;
  p.out[size_t(blockIdx.x) * p.hidden + k] = known ? strip_weight(p.table, p.layout, p.precision, token, k) * p.scale : 0;
}

}  // namespace

Status embed(const EmbedArgs& args, const int32_t* last_tokens, const Launch& on) {
  const PackedMatrix& w = *args.table;
  if (args.t < 1) return {Code::invalid_argument, "cuda embed: no tokens"};
  EmbedParams params{args.tokens, last_tokens, static_cast<const unsigned char*>(w.data), strip_layout(w.precision, w.n, w.k, w.group),
                     w.precision, w.n, w.k, args.out, args.scale};
  return launch(on, embed_kernel, dim3(args.t, (w.k + 255) / 256), 256, 0, params);
}

}  // namespace edgeshift::cuda
