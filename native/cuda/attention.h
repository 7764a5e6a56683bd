// Causal attention over the paged cache: split-KV decode with rotary embedding and cache write fused in, and prefill.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "cuda/next_read.h"
#include "cuda/rope_kv.h"
#include "ops/attention.h"

namespace edgeshift::cuda {

// Scratch of decode_attention, for `sequences` of `kv_heads` heads: bytes, zeroed once by the owner; every call leaves the
// counters in it zero.
size_t attention_workspace_bytes(int sequences, int heads, int head_dim, int splits);

// The most splits of a cluster: what every card with clusters takes.
inline constexpr int kClusterSplits = 8;

// Whether the blocks of a sequence's splits are a cluster and meet in its shared memory, on compute capability 9.0. They start
// together: where there are many of them and not much room, that takes longer than it saves (docs/cuda.md).
inline bool splits_meet(const DeviceTraits& device, int sequences, int kv_heads, int splits) {
  const bool room = sequences * kv_heads * splits * 4 <= device.multiprocessors * 3;
  return device.hopper && splits > 1 && (splits <= 3 || (splits <= kClusterSplits && room));
}

// One new token per sequence (batch->t == batch->s). Rotates q and k as rope_kv does (rope.q is not used), writes this step's
// keys and values to the cache, and attends. `splits` blocks share each (sequence, kv head); 1 needs no workspace. The output is
// rows, or with out_tile_bytes above 0 tiles of that many bytes (input_tiles.h).
// unsupported: head_dim not 64, 96, 128 or 256; more than 8 query heads per kv head; block_size not a multiple of 16.
Status decode_attention(const RopeArgs& rope, const AttentionArgs<f16>& args, int splits, void* workspace, size_t out_tile_bytes,
                        NextRead next, const Launch& on);

// Any number of new tokens per sequence, whose keys and values are in the cache.
Status prefill_attention(const AttentionArgs<f16>& args, const Launch& on);

// The same, faster from some 64 tokens per sequence on. unsupported: a cache of codes.
Status wide_attention(const AttentionArgs<f16>& args, const Launch& on);

}  // namespace edgeshift::cuda
