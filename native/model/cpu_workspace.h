// Memory for the intermediate results of one step.
#pragma once

#include <cstddef>
#include <span>

#include "core/status.h"
#include "cpu/buffer.h"
#include "model/spec.h"

namespace edgeshift {

// Sized once by the largest batch. Those of attention, feed-forward and head share memory: they never live at
// once.
struct CpuWorkspace {
  float* residual = nullptr;  // [t, hidden]
  float* normed = nullptr;    // [t, hidden]
  float* delta = nullptr;     // [t, hidden]
  float* cos_sin = nullptr;   // [t, rotary_dim] for each of the spec's rotary tables, one after another
  float* qkv = nullptr;       // [t, (heads + 2 * kv_heads) * head_dim]
  float* q = nullptr;         // [t, heads * head_dim]
  float* attended = nullptr;  // [t, heads * head_dim]
  float* gate_up = nullptr;   // [t, 2 * ffn]
  float* gated = nullptr;     // [t, ffn]
  float* gathered = nullptr;  // [2 * logit_rows, hidden]
  float* logits = nullptr;    // [logit_rows, vocab]
  int logit_rows = 0;         // rows that go through the head at a time
  std::span<std::byte> scratch;  // what products need beside these (cpu/ops.h)

  cpu::Buffer memory;

  // out_of_memory when the system refuses, invalid_argument when the sizes overflow.
  static Result<CpuWorkspace> create(const ModelSpec& spec, int max_batch_tokens, size_t scratch_bytes);
};

}  // namespace edgeshift
