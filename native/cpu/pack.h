// Weights into the CPU's tile layout (cpu/tile.h).
#pragma once

#include <cstddef>
#include <span>

#include "core/status.h"
#include "cpu/thread_pool.h"
#include "ops/packed_matrix.h"
#include "quant/canonical.h"

namespace edgeshift::cpu {

// One weight as a file holds it: `n` rows of `k` weights, row-major blocks.
struct RawMatrix {
  BlockType type = BlockType::f32;
  const void* data = nullptr;
  int n = 0;
  int k = 0;
};

// The common form of several weights that are stacked along n into one matrix (q, k, v; gate, up).
// `group` as in canonical_form: used only where no part brings its own blocks.
CanonicalForm packed_form(std::span<const RawMatrix> parts, Precision precision, int group = 32);

// Bytes of a packed [n, k] matrix, a multiple of 64.
size_t packed_bytes(CanonicalForm form, int n, int k);

// Converts and packs parts stacked along n, in parallel, without a full intermediate copy. `memory` holds
// packed_bytes(form, sum of n, k), aligned to 64. invalid_argument when the parts' k differ.
Status pack(ThreadPool& pool, std::span<const RawMatrix> parts, CanonicalForm form, void* memory, PackedMatrix& out);

// Packs one canonical matrix (checkpoint formats that are canonical already), act-order included.
size_t packed_bytes(const CanonicalMatrix& matrix);
Status pack(ThreadPool& pool, const CanonicalMatrix& matrix, void* memory, PackedMatrix& out);

}  // namespace edgeshift::cpu
