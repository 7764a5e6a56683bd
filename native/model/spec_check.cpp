#include "model/spec_check.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "core/text.h"
#include "ops/kv_layout.h"

namespace edgeshift {

namespace {

template <class... Parts>
Status bad(const Parts&... parts) {
  return error(Code::invalid_argument, parts...);
}

// Prefix sums: starts at 0, ends at `end`, rises by at least `least` each time.
Status check_starts(const std::vector<int32_t>& starts, size_t count, size_t end, int least, const char* name) {
  if (starts.size() != count + 1) return bad(name, " has ", starts.size(), " entries, wanted ", count + 1);
  if (starts.front() != 0) return bad(name, "[0] is not 0");
  for (size_t i = 0; i < count; ++i) {
    if (int64_t(starts[i + 1]) - starts[i] < least) return bad(name, "[", i + 1, "] does not rise");
  }
  if (size_t(starts.back()) != end) return bad(name, " ends at ", starts.back(), ", not at ", end);
  return Status();
}

Status check_lengths(const StepBatch& b, const BatchLimits& limits) {
  if (b.tokens.empty()) return bad("the batch has no tokens");
  if (b.tokens.size() > size_t(limits.max_batch_tokens)) {
    return bad("the batch has ", b.tokens.size(), " tokens, more than max_batch_tokens ", limits.max_batch_tokens);
  }
  if (b.slots.empty() || b.slots.size() > b.tokens.size()) return bad("slots has ", b.slots.size(), " entries");
  if (b.first_positions.size() != b.slots.size()) return bad("first_positions and slots differ in length");
  const size_t rows = b.row_tokens.size();
  if (b.row_seqs.size() != rows || b.row_targets.size() != rows || b.row_top.size() != rows) {
    return bad("row_tokens, row_seqs, row_targets and row_top differ in length");
  }
  if (!b.row_masks.empty() && b.row_masks.size() != rows) return bad("row_masks has ", b.row_masks.size(), " entries, wanted ", rows);
  ES_RETURN_IF_ERROR(check_starts(b.seq_starts, b.slots.size(), b.tokens.size(), 1, "seq_starts"));
  return check_starts(b.block_starts, b.slots.size(), b.blocks.size(), 0, "block_starts");
}

Status check_sequences(const StepBatch& b, const BatchLimits& limits) {
  std::unordered_set<int32_t> seen;
  for (size_t i = 0; i < b.slots.size(); ++i) {
    const int32_t slot = b.slots[i];
    if (slot < 0 || slot >= limits.max_slots) return bad("slots[", i, "] = ", slot, " is not below ", limits.max_slots);
    if (!seen.insert(slot).second) return bad("slot ", slot, " occurs twice");
    if (b.first_positions[i] < 0) return bad("first_positions[", i, "] is negative");
    const int64_t end = int64_t(b.first_positions[i]) + b.seq_starts[i + 1] - b.seq_starts[i];
    const int64_t covered = int64_t(b.block_starts[i + 1] - b.block_starts[i]) * limits.block_size;
    if (end > INT32_MAX || end > covered) {
      return bad("sequence ", i, " reaches position ", end - 1, ", but its blocks cover ", covered, " positions");
    }
  }
  return Status();
}

Status check_indices(const StepBatch& b, const BatchLimits& limits) {
  for (size_t i = 0; i < b.tokens.size(); ++i) {
    if (b.tokens[i] < -1 || b.tokens[i] >= limits.vocab) {
      return bad("tokens[", i, "] = ", b.tokens[i], " is outside the vocabulary of ", limits.vocab);
    }
  }
  for (size_t i = 0; i < b.blocks.size(); ++i) {
    if (uint64_t(b.blocks[i]) * kKvUnitBytes + limits.block_bytes > limits.arena_bytes) {
      return bad("blocks[", i, "] = ", b.blocks[i], " is outside the KV arena");
    }
  }
  return Status();
}

Status check_rows(const StepBatch& b, const BatchLimits& limits) {
  std::vector<bool> sampled(b.slots.size());
  for (size_t i = 0; i < b.row_tokens.size(); ++i) {
    const int32_t token = b.row_tokens[i], seq = b.row_seqs[i], target = b.row_targets[i], top = b.row_top[i];
    if (token < 0 || size_t(token) >= b.tokens.size()) return bad("row_tokens[", i, "] = ", token, " is out of range");
    if (seq < 0 || size_t(seq) >= b.slots.size()) return bad("row_seqs[", i, "] = ", seq, " is out of range");
    if (target < -1 || target >= limits.vocab) {
      return bad("row_targets[", i, "] = ", target, " is outside the vocabulary of ", limits.vocab);
    }
    if (top < -1 || top > kMaxTop) return bad("row_top[", i, "] = ", top, " is not in -1..", kMaxTop);
    if (target != -1) continue;
    if (sampled[size_t(seq)]) return bad("sequence ", seq, " is sampled by two rows");
    sampled[size_t(seq)] = true;
  }
  return Status();
}

Status check_row_masks(const StepBatch& b, const BatchLimits& limits) {
  const int end = std::min(int(b.row_masks.size()), limits.max_slots);
  for (size_t i = 0; i < b.row_masks.size(); ++i) {
    const int32_t mask = b.row_masks[i];
    if (mask < -1 || mask >= end) return bad("row_masks[", i, "] = ", mask, " is not in -1..", end - 1);
    if (mask != -1 && b.row_targets[i] != -1) return bad("row_masks[", i, "] = ", mask, " is of a row that is scored");
  }
  return Status();
}

}  // namespace

Status check_spec(const ModelSpec& spec, const LoadOptions& options) {
  if (spec.vocab < 1 || spec.hidden < 1 || spec.layers < 1 || spec.heads < 1 || spec.kv_heads < 1 ||
      spec.head_dim < 1 || spec.ffn < 1) {
    return bad("the model has a size that is not positive");
  }
  if (spec.heads % spec.kv_heads != 0) {
    return bad("the number of heads ", spec.heads, " is not a multiple of the number of kv heads ", spec.kv_heads);
  }
  if (int64_t(spec.heads) * spec.head_dim > INT32_MAX / 4) return bad("heads * head_dim is absurd");
  for (const RopeTable& rope : spec.ropes) {
    if (rope.inv_freq.size() * 2 > size_t(spec.head_dim)) return bad("a rotary table is longer than head_dim / 2");
  }
  if (spec.layer_ropes.size() != size_t(spec.layers)) return bad("layer_ropes has ", spec.layer_ropes.size(), " entries");
  for (int rope : spec.layer_ropes) {
    if (rope < -1 || rope >= int(spec.ropes.size())) return bad("layer_ropes names table ", rope);
  }
  if (spec.windows.size() != size_t(spec.layers)) return bad("windows has ", spec.windows.size(), " entries");
  for (int window : spec.windows) {
    if (window < 0) return bad("windows has a negative entry");
  }
  if (!(spec.norm_eps >= 0) || !std::isfinite(spec.attention_scale)) return bad("norm_eps or attention_scale is bad");
  if (!(spec.attention_softcap >= 0) || !(spec.final_softcap >= 0) || !std::isfinite(spec.embedding_scale) ||
      !std::isfinite(spec.norm_offset)) {
    return bad("a soft cap, the embedding's scale or the norms' offset is bad");
  }
  if (options.max_slots < 1 || options.max_batch_tokens < 1 || options.block_size < 1) {
    return bad("max_slots, max_batch_tokens and block_size must be positive");
  }
  return Status();
}

Status check_batch(const StepBatch& batch, const BatchLimits& limits) {
  ES_RETURN_IF_ERROR(check_lengths(batch, limits));
  ES_RETURN_IF_ERROR(check_sequences(batch, limits));
  ES_RETURN_IF_ERROR(check_indices(batch, limits));
  ES_RETURN_IF_ERROR(check_rows(batch, limits));
  return check_row_masks(batch, limits);
}

Status check_masks(const StepBatch& batch, int vocab, size_t words) {
  const size_t wanted = size_t(mask_count(batch)) * size_t(mask_words(vocab));
  if (words != wanted) return bad("the masks have ", words, " words, wanted ", wanted);
  return Status();
}

}  // namespace edgeshift
