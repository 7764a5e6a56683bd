// Canonical rows of affine matrices.
#pragma once

#include "quant/affine_matrix.h"
#include "quant/weight_reader.h"

namespace edgeshift {

// Codes of up to 4 bits are kept at int4 and int8, codes of 8 bits at int8; see form_of in the .cpp for what is exact.
class AffineReader final : public WeightReader {
 public:
  explicit AffineReader(AffineMatrix matrix);
  Precision width() const override;
  CanonicalForm form(Precision precision) const override;
  std::span<const int32_t> order(Precision precision) const override;
  Status read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const override;
  Status dequantize(int begin, int end, float* out) const override;
  const AffineMatrix* kept(Precision precision) const override { return keeps(precision) ? &m_ : nullptr; }
  std::span<const uint8_t> bytes_of(int begin, int end) const override;

 private:
  bool keeps(Precision precision) const { return precision != Precision::fp16 && int(width()) >= int(precision); }
  Status keep(int begin, int end, CanonicalForm form, CanonicalStorage& out) const;

  AffineMatrix m_;
  bool symmetric_ = false;
};

}  // namespace edgeshift
