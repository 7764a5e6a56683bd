// Reads one stored matrix as rows of floats or in canonical form (ops/packed_matrix.h), whatever its file format.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "core/status.h"
#include "quant/canonical.h"
#include "quant/weight_source.h"

namespace edgeshift {

struct AffineMatrix;

// A checked matrix [n, k]. Reading is const and safe on several threads; it converts the rows asked for and nothing else.
class WeightReader {
 public:
  WeightReader(int n, int k) : n_(n), k_(k) {}
  virtual ~WeightReader() = default;
  int n() const { return n_; }
  int k() const { return k_; }

  // The narrowest precision that holds the file's codes as they are; fp16 for floats and for codes whose groups no
  // kernel takes.
  virtual Precision width() const = 0;

  // The form for a rung. Codes are kept where width() fits the precision, otherwise rounded to nearest.
  virtual CanonicalForm form(Precision precision) const = 0;

  // Act-order: position j along k of that precision's form holds input feature order[j]; empty = identity, as wherever codes are
  // not kept.
  virtual std::span<const int32_t> order(Precision) const { return {}; }

  // Rows [begin, end) in a form from form(), which may ask for minimums besides. Reuses the memory of `out`.
  // invalid_file for scales or weights that are not finite, unsupported for values outside fp16 where the form is that.
  virtual Status read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const = 0;

  // Row `begin` and all behind it, where the file itself holds them as binary16 one after another; else null. Values may
  // be anything until check_stored() has seen them: invalid_file where one is not finite.
  virtual const f16* stored_halves(int /*begin*/) const { return nullptr; }
  virtual Status check_stored(int /*begin*/, int /*end*/) const { return Status(); }

  // Rows [begin, end) as floats, inputs in their own order; out[(end - begin), k]. Same errors.
  virtual Status dequantize(int begin, int end, float* out) const = 0;

  // The file's own codes where read() keeps them as they are at this precision, for a backend that can do it itself; null
  // where it does more than that. Lives as long as the reader.
  virtual const AffineMatrix* kept(Precision) const { return nullptr; }

  // The type of the file's floats where bytes_of() are rows of such, of k values each.
  virtual std::optional<BlockType> floats() const { return std::nullopt; }

  // File bytes of rows [begin, end), or of the whole matrix where its rows are not contiguous; for giving pages back.
  virtual std::span<const uint8_t> bytes_of(int begin, int end) const = 0;

 private:
  int n_;
  int k_;
};

// The status with "weight SLOT: " before its message, unless it is ok.
Status named(const std::string& slot, Status status);

// Checks types, shapes and sizes of all tensors and the contents of the group index. invalid_file or unsupported with
// the slot and the reason.
Result<std::unique_ptr<WeightReader>> open_weight(const WeightSource& source, int n, int k);

}  // namespace edgeshift
