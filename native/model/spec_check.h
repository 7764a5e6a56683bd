// Checks of what callers give, shared by all backends.
#pragma once

#include <cstddef>

#include "core/status.h"
#include "model/backend.h"
#include "model/spec.h"

namespace edgeshift {

// invalid_argument unless the sizes are positive and agree with each other.
Status check_spec(const ModelSpec& spec, const LoadOptions& options);

// What a batch's indices must stay inside.
struct BatchLimits {
  int vocab = 0;
  int max_slots = 0;
  int max_batch_tokens = 0;
  int block_size = 0;
  size_t block_bytes = 0;
  size_t arena_bytes = 0;
};

// Largest number of alternatives that a row may ask for.
inline constexpr int kMaxTop = 20;

// Checks every length and index of a batch (engine/native.ts, StepBatch) against the limits; invalid_argument names the
// array and the place. A slot occurs once, and is sampled by one row at most; so no more than max_slots masks are named, and
// their numbers lie below that.
Status check_batch(const StepBatch& batch, const BatchLimits& limits);

// invalid_argument unless there are as many words as the masks that a checked batch names have.
Status check_masks(const StepBatch& batch, int vocab, size_t words);

}  // namespace edgeshift
