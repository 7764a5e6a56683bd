// The CPU backend's ops: arguments in ops/*.h, activations in float.
//
// Every op is one parallel region (matmul of many quantized rows two; small ops run on the caller) and batch invariant:
// what it computes for a token, row or sequence depends on that one's inputs alone, bit for bit, not on the rest of the
// batch, how a prefill is cut into chunks, or the number of threads. Results differ between instruction sets within
// rounding.
// Errors: invalid_argument for shapes outside an op's limits, out_of_memory when scratch memory cannot grow.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/status.h"
#include "cpu/pack.h"
#include "cpu/thread_pool.h"
#include "ops/attention.h"
#include "ops/embed.h"
#include "ops/gated_activation.h"
#include "ops/matmul.h"
#include "ops/rms_norm.h"
#include "ops/rope_kv.h"
#include "ops/sample.h"

namespace edgeshift::cpu {

// Scratch (ThreadPool::scratch) that a product of up to t rows of k quantized inputs needs, so that an owner can lend it.
size_t matmul_scratch_bytes(int t, int k, int threads);

Status embed(ThreadPool& pool, const EmbedArgs& args);

Status rms_norm(ThreadPool& pool, const RmsNormArgs<float>& args);

// Accumulates in float, in an order fixed by k. x is quantized to int8 per 32 inputs for int8 and int4 weights.
// y may not overlap x.
Status matmul(ThreadPool& pool, const MatmulArgs<float>& args);

// The rotary frequencies of one sequence.
struct SequenceRope {
  const float* inv_freq = nullptr;  // [rotary_dim / 2]
  float scale = 1;                  // multiplies cos and sin
};

// cos_sin[t, rotary_dim] = cos then sin (rotary_dim / 2 each) of position * inv_freq, times scale, for every token of
// the batch: computed once a step, used by all layers that share the table. `ropes`: [batch.s].
Status rope_table(ThreadPool& pool, const SequenceBatch& batch, const SequenceRope* ropes, int rotary_dim,
                  float* cos_sin);

// args.inv_freq and args.scale are not read: the angles come from the step's rope_table. Cache values saturate at the
// largest finite fp16; coded ones have a scale that none exceeds.
Status rope_kv(ThreadPool& pool, const RopeKvArgs<float>& args, const float* cos_sin);

// head_dim: a multiple of 16, at most 256; block_size: a multiple of 16.
Status attention(ThreadPool& pool, const AttentionArgs<float>& args);

Status gated_activation(ThreadPool& pool, const GatedActivationArgs<float>& args);

// Samples or scores rows of logits (ops/sample.h), rows in parallel.
Status sample(ThreadPool& pool, const SampleArgs& args);

}  // namespace edgeshift::cpu
