// A variant's weights in the CPU's layout.
#pragma once

#include <deque>
#include <vector>

#include "core/status.h"
#include "cpu/buffer.h"
#include "cpu/thread_pool.h"
#include "model/backend.h"
#include "model/spec.h"
#include "ops/packed_matrix.h"

namespace edgeshift {

// A matrix [n, k] as one packed matrix or several along n: parts that differ in width, groups or act-order.
using Stack = std::vector<PackedMatrix>;

// Vectors are null where the model has none.
struct CpuLayer {
  Stack qkv;      // [(heads + 2 * kv_heads) * head_dim, hidden]
  Stack o;        // [hidden, heads * head_dim]
  Stack gate_up;  // [2 * ffn, hidden], gate first
  Stack down;     // [hidden, ffn]
  const float* attn_norm = nullptr;
  const float* ffn_norm = nullptr;
  const float* post_attn_norm = nullptr;
  const float* post_ffn_norm = nullptr;
  const float* q_norm = nullptr;    // [head_dim]
  const float* k_norm = nullptr;
  const float* qkv_bias = nullptr;  // [(heads + 2 * kv_heads) * head_dim]
  const float* o_bias = nullptr;
  const float* gate_up_bias = nullptr;
  const float* down_bias = nullptr;
};

// Owns all memory that the matrices and vectors point into.
struct CpuWeights {
  PackedMatrix embed;  // [vocab, hidden]
  PackedMatrix head;   // [vocab, hidden]; the same memory as embed when they are tied
  const float* final_norm = nullptr;
  std::vector<CpuLayer> layers;

  cpu::Buffer matrices;
  std::deque<std::vector<float>> vectors;

  size_t bytes() const;
};

// Checks, converts and packs all weights, in parallel on `pool`. Nothing is kept on error. Heads are padded
// (model/head_padding.h): where shapes above say head_dim, the result has the padded one.
//
// Precision per matrix. At fp16 all are. At int8 and int4 a matrix whose file keeps it in that width or a narrower one
// (WeightReader::width) is kept exactly; narrower ones are widened unless some matrix of a layer has the rung's own
// width. A wider one stays in its width where some matrix of a layer is kept: the file is then made for that rung, and
// its fp16 head or 8-bit down projections are its maker's choice. Otherwise the rung is derived from a wider file: every matrix is rounded to nearest, but at int4 the embedding and
// the head to 8 bits (their rounding costs more quality than their bytes are worth, as every 4-bit file format finds).
Result<CpuWeights> load_cpu_weights(cpu::ThreadPool& pool, const ModelSpec& spec,
                                    const std::vector<WeightSource>& sources, const LoadOptions& options);

}  // namespace edgeshift
