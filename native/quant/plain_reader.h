// Canonical rows of floats, GGUF blocks and 8-bit floats with a scale.
#pragma once

#include <string>

#include "quant/block_type.h"
#include "quant/weight_reader.h"

namespace edgeshift {

// `data` holds n rows of k values of `type`.
class BlockReader final : public WeightReader {
 public:
  BlockReader(std::string slot, BlockType type, const uint8_t* data, int n, int k)
      : WeightReader(n, k), slot_(std::move(slot)), type_(type), data_(data) {}
  Precision width() const override;
  CanonicalForm form(Precision precision) const override;
  Status read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const override;
  Status dequantize(int begin, int end, float* out) const override;
  std::optional<BlockType> floats() const override {
    return block_weights(type_) == 1 ? std::optional(type_) : std::nullopt;
  }
  const f16* stored_halves(int begin) const override;
  Status check_stored(int begin, int end) const override;
  std::span<const uint8_t> bytes_of(int begin, int end) const override;

 private:
  std::string slot_;
  BlockType type_;
  const uint8_t* data_;
};

// f8_e4m3 codes [n, k] times one scale for each block: of some rows and inputs, a row, or all of the matrix.
class Float8Reader final : public WeightReader {
 public:
  static Result<std::unique_ptr<WeightReader>> open(const WeightSource& source, int n, int k);
  struct Scales {
    std::vector<float> values;  // [ceil(n / rows)][ceil(k / inputs)]
    int rows = 1, inputs = 1;   // of a block
  };
  Float8Reader(std::string slot, const uint8_t* codes, Scales scales, int n, int k)
      : WeightReader(n, k), slot_(std::move(slot)), codes_(codes), scales_(std::move(scales)) {}
  Precision width() const override { return Precision::fp16; }
  CanonicalForm form(Precision precision) const override;
  Status read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const override;
  Status dequantize(int begin, int end, float* out) const override;
  std::span<const uint8_t> bytes_of(int begin, int end) const override;

 private:
  std::string slot_;
  const uint8_t* codes_;
  Scales scales_;
};

}  // namespace edgeshift
