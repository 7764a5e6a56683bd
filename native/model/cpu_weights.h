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

struct CpuLayer {
  PackedMatrix qkv;      // [(heads + 2 * kv_heads) * head_dim, hidden]
  PackedMatrix o;        // [hidden, heads * head_dim]
  PackedMatrix gate_up;  // [2 * ffn, hidden], gate first
  PackedMatrix down;     // [hidden, ffn]
  const float* attn_norm = nullptr;
  const float* ffn_norm = nullptr;
  const float* qkv_bias = nullptr;  // [(heads + 2 * kv_heads) * head_dim] or null
  const float* q_norm = nullptr;    // [head_dim] or null
  const float* k_norm = nullptr;
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
// Precision per matrix: fp16 and int8 as asked. int4 keeps the embedding and the head in 8 bits unless the file has
// them in 4: their rounding costs more quality than their bytes are worth, as every 4-bit file format finds.
Result<CpuWeights> load_cpu_weights(cpu::ThreadPool& pool, const ModelSpec& spec,
                                    const std::vector<WeightSource>& sources, Precision precision);

}  // namespace edgeshift
