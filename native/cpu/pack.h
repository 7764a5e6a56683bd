// Weights into the CPU's tile layout (cpu/tile.h).
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "core/status.h"
#include "cpu/thread_pool.h"
#include "ops/packed_matrix.h"
#include "quant/weight_reader.h"

namespace edgeshift::cpu {

// Matrices to be stacked along n: equal k and, where the form keeps codes, equal order of inputs.
using Parts = std::span<const WeightReader* const>;

// The common form of parts whose own forms differ in minimums only.
CanonicalForm packed_form(Parts parts, Precision precision);

// Whether one packed matrix can hold both at a precision without changing the codes of either.
bool can_stack(const WeightReader& a, const WeightReader& b, Precision precision_of_a, Precision precision_of_b);

// Bytes of a packed [n, k] matrix, a multiple of 64; with_order: act-order's permutation included.
size_t packed_bytes(CanonicalForm form, int n, int k, bool with_order = false);

// Called with a stretch of the file that is not read again, from any worker.
using DoneReading = std::function<void(std::span<const uint8_t>)>;

// Converts and packs parts stacked along n, in parallel, with staging for some rows per worker. `memory` holds
// packed_bytes(form, sum of n, k, order), aligned to 64. Adds what rounding took to `rounding`. invalid_argument when the
// parts' k differ; else what the parts' read gives.
Status pack(ThreadPool& pool, Parts parts, CanonicalForm form, void* memory, PackedMatrix& out, RoundingSums& rounding,
            const DoneReading& done = {});

// Describes in `out` what pack() left in `memory` at another time; `order` as the parts' (empty at fp16).
void describe_packed(CanonicalForm form, int n, int k, std::span<const int32_t> order, void* memory, PackedMatrix& out);

// Packs one canonical matrix, act-order included.
size_t packed_bytes(const CanonicalMatrix& matrix);
Status pack(ThreadPool& pool, const CanonicalMatrix& matrix, void* memory, PackedMatrix& out);

}  // namespace edgeshift::cpu
