// The paged key-value cache: one layout for every op that touches it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeshift {

// Bytes per unit of a block table entry.
inline constexpr size_t kKvUnitBytes = 256;

// Block b of a model lies at arena + table entry * kKvUnitBytes and holds, for every layer, fp16 elements
//   keys   [kv_heads][head_dim][block_size]
//   values [kv_heads][block_size][head_dim]
// Keys are transposed so that the scores of neighbouring positions are computed in the lanes of one vector register,
// with no sum across lanes. (The CPU's layout; another backend may order a block differently within the same bytes.)
// Any model's blocks may lie anywhere in the arena: models share it page by page.
struct KvLayout {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;  // tokens

  size_t head_elements() const { return size_t(block_size) * head_dim; }
  // Elements from a layer's start to a head's keys or values.
  size_t key_offset(int head) const { return size_t(head) * head_elements(); }
  size_t value_offset(int head) const { return size_t(kv_heads + head) * head_elements(); }
  size_t layer_elements() const { return 2 * size_t(kv_heads) * head_elements(); }
  // Rounded up to whole units.
  size_t block_bytes() const {
    size_t bytes = size_t(layers) * layer_elements() * 2;
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
