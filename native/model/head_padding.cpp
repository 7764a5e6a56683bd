#include "model/head_padding.h"

#include <algorithm>
#include <vector>


namespace edgeshift {

namespace {

// Floats that come from another reader.
class PaddedReader : public WeightReader {
 public:
  PaddedReader(std::unique_ptr<WeightReader> inner, int n, int k) : WeightReader(n, k), inner_(std::move(inner)) {}
  Precision width() const override { return Precision::fp16; }
  CanonicalForm form(Precision precision) const override { return canonical_form(BlockType::f32, precision, k()); }
  Status read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const override {
    std::vector<float> rows(size_t(end - begin) * size_t(k()));
    ES_RETURN_IF_ERROR(dequantize(begin, end, rows.data()));
    return named("of padded heads", to_canonical(BlockType::f32, rows.data(), end - begin, k(), form, out));
  }
  // Given back as a whole.
  std::span<const uint8_t> bytes_of(int, int) const override { return inner_->bytes_of(0, inner_->n()); }

 protected:
  const std::unique_ptr<WeightReader> inner_;
};

class PaddedRows final : public PaddedReader {
 public:
  PaddedRows(std::unique_ptr<WeightReader> inner, int heads, int padded, int k)
      : PaddedReader(std::move(inner), heads * padded, k), padded_(padded), head_dim_(inner_->n() / heads) {}
  Status dequantize(int begin, int end, float* out) const override {
    for (int row = begin; row < end; ++row, out += k()) {
      const int head = row / padded_, inside = row % padded_;
      std::fill_n(out, k(), 0.0f);
      if (inside >= head_dim_) continue;
      const int from = head * head_dim_ + inside;
      ES_RETURN_IF_ERROR(inner_->dequantize(from, from + 1, out));
    }
    return Status();
  }

 private:
  const int padded_;
  const int head_dim_;
};

class PaddedColumns final : public PaddedReader {
 public:
  PaddedColumns(std::unique_ptr<WeightReader> inner, int heads, int padded, int n)
      : PaddedReader(std::move(inner), n, heads * padded), heads_(heads), padded_(padded) {}
  Status dequantize(int begin, int end, float* out) const override {
    const int head_dim = inner_->k() / heads_;
    std::vector<float> row(size_t(inner_->k()));
    for (int i = begin; i < end; ++i, out += k()) {
      ES_RETURN_IF_ERROR(inner_->dequantize(i, i + 1, row.data()));
      std::fill_n(out, k(), 0.0f);
      for (int h = 0; h < heads_; ++h) std::copy_n(row.data() + h * head_dim, head_dim, out + h * padded_);
    }
    return Status();
  }

 private:
  const int heads_;
  const int padded_;
};

}  // namespace

std::unique_ptr<WeightReader> pad_head_rows(std::unique_ptr<WeightReader> weight, int heads, int padded) {
  const int k = weight->k();
  return std::make_unique<PaddedRows>(std::move(weight), heads, padded, k);
}

std::unique_ptr<WeightReader> pad_head_columns(std::unique_ptr<WeightReader> weight, int heads, int padded) {
  const int n = weight->n();
  return std::make_unique<PaddedColumns>(std::move(weight), heads, padded, n);
}

}  // namespace edgeshift
