// The paged key-value cache: one layout for every op that touches it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace edgeshift {

// Bytes per unit of a block table entry.
inline constexpr size_t kKvUnitBytes = 256;

// Block b of a model lies at arena + table entry * kKvUnitBytes and holds for every layer
//   keys   [kv_heads][head_dim][block_size]
//   values [kv_heads][block_size][head_dim]
// as fp16, or as codes of one byte, behind which bf16 scales stand (ops/kv_codes.h):
//   of keys [kv_heads][block_size], of values [kv_heads][block_size]
// Keys are transposed so that the scores of neighbouring positions are computed in the lanes of one vector register,
// with no sum across lanes. (The CPU's layout; another backend may order a block differently within the same bytes.)
// Any model's blocks may lie anywhere in the arena: models share it page by page. So what no token has written yet may be
// any bytes.
struct KvLayout {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;  // tokens
  KvDtype dtype = KvDtype::fp16;

  bool scaled() const { return dtype != KvDtype::fp16; }
  size_t element_bytes() const { return scaled() ? 1 : 2; }
  // Of one head's keys or values of a block.
  size_t head_bytes() const { return size_t(block_size) * size_t(head_dim) * element_bytes(); }
  size_t scale_bytes() const { return scaled() ? size_t(block_size) * 2 : 0; }
  size_t layer_bytes() const { return 2 * size_t(kv_heads) * (head_bytes() + scale_bytes()); }

  // Bytes from a block's start.
  size_t key_offset(int layer, int head) const { return size_t(layer) * layer_bytes() + size_t(head) * head_bytes(); }
  size_t value_offset(int layer, int head) const { return key_offset(layer, kv_heads + head); }
  size_t key_scale_offset(int layer, int head) const {
    return key_offset(layer, 2 * kv_heads) + size_t(head) * scale_bytes();
  }
  size_t value_scale_offset(int layer, int head) const { return key_scale_offset(layer, kv_heads + head); }

  // Rounded up to whole units.
  size_t block_bytes() const {
    const size_t bytes = size_t(layers) * layer_bytes();
    return (bytes + kKvUnitBytes - 1) / kKvUnitBytes * kKvUnitBytes;
  }
};

// One step's sequences, flattened. Arrays in the backend's memory.
struct SequenceBatch {
  int s = 0;                              // sequences
  int t = 0;                              // tokens in all
  const int32_t* starts = nullptr;        // [s + 1] prefix sums of token counts
  const int32_t* first_positions = nullptr;  // [s]
  const int32_t* block_starts = nullptr;  // [s + 1] prefix sums into blocks
  const uint32_t* blocks = nullptr;       // block table entries
  int max_count = 0;                      // largest token count of a sequence
  int max_context = 0;                    // largest first_position + count
};

}  // namespace edgeshift
