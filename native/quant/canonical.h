// From file blocks to the canonical form of a rung (ops/packed_matrix.h).
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"
#include "ops/packed_matrix.h"
#include "quant/block_type.h"
#include "quant/row_kernels.h"

namespace edgeshift {

// The parameters of a canonical matrix that its packed size depends on.
struct CanonicalForm {
  Precision precision = Precision::fp16;
  int group = 0;              // 0 for fp16
  bool has_minimums = false;  // always true for int4
};

// The form that a source gets: one that fits the target's width keeps its own blocks of 32, everything else is rounded
// to nearest in groups of `group` (a multiple of 32, or 0 = all of k).
CanonicalForm canonical_form(BlockType source, Precision target, int k, int group = 32);

// True when to_canonical loses nothing but the rounding of products (scales of k types, fp16 weights) to binary16.
bool fits_exactly(BlockType source, Precision target);

// Owner of a canonical matrix's arrays. Rows are padded with zero codes to whole groups.
struct CanonicalStorage {
  CanonicalForm form;
  int n = 0;
  int k = 0;
  std::vector<f16> values;
  std::vector<uint8_t> codes;
  std::vector<f16> scales;
  std::vector<f16> minimums;
  RoundingSums rounding;  // of the rows that were rounded to nearest; nothing where codes were kept

  CanonicalMatrix view() const;
};

// Sizes the arrays of `out` for `rows` rows of k in a form; only minimums are zeroed.
void prepare(CanonicalStorage& out, CanonicalForm form, int rows, int k);

// invalid_file where a value is not finite; unsupported where the precision is fp16 and one lies outside binary16 (bf16
// and float checkpoints can hold such; the int8 rung takes them).
Status check_values(const float* values, int64_t count, Precision precision);

// Of binary16 values at any address: invalid_file where one is not finite.
Status check_halves(const uint8_t* halves, int64_t count);

// Converts `rows` whole rows of file blocks. `form` comes from canonical_form, or asks for more: with a q4_0 source and
// minimums the codes stay exact and the minimum is -8 * scale. Reuses the vectors of `out`. invalid_argument when k is
// not a whole number of blocks or the form does not suit it; else as check_values.
Status to_canonical(BlockType source, const void* data, int rows, int k, CanonicalForm form, CanonicalStorage& out);

}  // namespace edgeshift
