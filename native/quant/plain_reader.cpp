#include "quant/plain_reader.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/text.h"
#include "quant/affine_reader.h"
#include "quant/half.h"

namespace edgeshift {

namespace {

// OCP 8-bit floating point, E4M3: bias 7, no infinity, 0x7f and 0xff are NaN.
std::array<float, 256> float8_table() {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float value = exponent ? std::ldexp(1.0f + float(mantissa) / 8, exponent - 7) : std::ldexp(float(mantissa), -9);
    if ((code & 127) == 127) value = NAN;
    table[size_t(code)] = code & 128 ? -value : value;
  }
  return table;
}

// The block that shares a scale where there are `count` scales; none of 0 rows when they don't fit the matrix.
Float8Reader::Scales scale_blocks(const Storage& storage, size_t count, int n, int k) {
  Float8Reader::Scales scales;
  scales.rows = storage.block_rows, scales.inputs = storage.block_inputs;
  if (scales.rows < 1 || scales.inputs < 1) {
    scales.rows = count == 1 ? n : 1;
    scales.inputs = k;
  }
  const size_t down = size_t((int64_t(n) + scales.rows - 1) / scales.rows);
  const size_t across = size_t((int64_t(k) + scales.inputs - 1) / scales.inputs);
  if (count != down * across) scales.rows = 0;
  return scales;
}

Result<std::unique_ptr<WeightReader>> open_plain(const WeightSource& source, int n, int k) {
  const TensorBytes& values = source.values;
  if (!values.data) return error(Code::invalid_file, "weight ", source.slot, ": values are missing");
  Result<BlockType> type = parse_block_type(values.type);
  if (!type.ok()) return error(type.status().code(), "weight ", source.slot, ": ", type.status().message());
  if (k % block_weights(type.value()) != 0) {
    return error(Code::invalid_file, "weight ", source.slot, " has rows of ", k, " values, not whole blocks of ",
                 values.type);
  }
  const size_t bytes = size_t(n) * row_bytes(type.value(), k);
  if (bytes != values.bytes) {
    return error(Code::invalid_file, "weight ", source.slot, " has ", values.bytes, " bytes, its shape needs ", bytes);
  }
  return std::unique_ptr<WeightReader>(std::make_unique<BlockReader>(source.slot, type.value(), values.data, n, k));
}

}  // namespace

Precision BlockReader::width() const { return native_width(type_); }

CanonicalForm BlockReader::form(Precision precision) const { return canonical_form(type_, precision, k()); }

Status BlockReader::read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const {
  const uint8_t* data = bytes_of(begin, end).data();
  return named(slot_, to_canonical(type_, data, end - begin, k(), form, out));
}

Status BlockReader::dequantize(int begin, int end, float* out) const {
  ES_RETURN_IF_ERROR(dequantize_rows(type_, bytes_of(begin, end).data(), end - begin, k(), out));
  return named(slot_, check_values(out, int64_t(end - begin) * k(), Precision::int8));
}

const f16* BlockReader::stored_halves(int begin) const {
  const uint8_t* row = data_ + size_t(begin) * row_bytes(type_, k());
  const bool aligned = reinterpret_cast<uintptr_t>(row) % alignof(f16) == 0;
  return type_ == BlockType::f16 && aligned ? reinterpret_cast<const f16*>(row) : nullptr;
}

Status BlockReader::check_stored(int begin, int end) const {
  return named(slot_, check_halves(bytes_of(begin, end).data(), int64_t(end - begin) * k()));
}

std::span<const uint8_t> BlockReader::bytes_of(int begin, int end) const {
  const size_t row = row_bytes(type_, k());
  return {data_ + size_t(begin) * row, size_t(end - begin) * row};
}

Result<std::unique_ptr<WeightReader>> Float8Reader::open(const WeightSource& source, int n, int k) {
  auto bad = [&](const auto&... parts) { return error(Code::invalid_file, "weight ", source.slot, ": ", parts...); };
  const TensorBytes& codes = source.codes;
  if (!codes.data || codes.type != "f8_e4m3" || codes.bytes != size_t(n) * size_t(k)) {
    return bad("codes are not ", n, " by ", k, " of type f8_e4m3");
  }
  const TensorBytes& scales = source.scales;
  Result<BlockType> type = parse_block_type(scales.type);
  if (!scales.data || !type.ok() || block_weights(type.value()) != 1) return bad("scales are not floats");
  const size_t count = scales.bytes / size_t(block_bytes(type.value()));
  Scales grid = scale_blocks(source.storage, count, n, k);
  if (grid.rows == 0 || scales.bytes != count * size_t(block_bytes(type.value()))) {
    return bad("there are ", count, " scales for ", n, " rows");
  }
  grid.values.resize(count);
  std::vector<float>& values = grid.values;
  if (Status status = dequantize_rows(type.value(), scales.data, 1, int64_t(count), values.data()); !status.ok()) {
    return status;
  }
  if (!check_values(values.data(), int64_t(count), Precision::int8).ok()) {
    return bad("the scales hold a value that is not finite");
  }
  return std::unique_ptr<WeightReader>(
      std::make_unique<Float8Reader>(source.slot, codes.data, std::move(grid), n, k));
}

CanonicalForm Float8Reader::form(Precision precision) const { return canonical_form(BlockType::f32, precision, k()); }

Status Float8Reader::read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const {
  static thread_local std::vector<float> rows;
  rows.resize(size_t(end - begin) * size_t(k()));
  ES_RETURN_IF_ERROR(dequantize(begin, end, rows.data()));
  return named(slot_, to_canonical(BlockType::f32, rows.data(), end - begin, k(), form, out));
}

Status Float8Reader::dequantize(int begin, int end, float* out) const {
  static const std::array<float, 256> table = float8_table();
  const uint8_t* codes = bytes_of(begin, end).data();
  const size_t across = scales_.values.size() / size_t((int64_t(n()) + scales_.rows - 1) / scales_.rows);
  for (int row = begin; row < end; ++row) {
    const float* scale = scales_.values.data() + size_t(row / scales_.rows) * across;
    for (int i = 0; i < k(); ++scale) {
      const int stop = int(std::min<int64_t>(k(), int64_t(i) + scales_.inputs));
      for (; i < stop; ++i) *out++ = table[*codes++] * *scale;
    }
  }
  return named(slot_, check_values(out - int64_t(end - begin) * k(), int64_t(end - begin) * k(), Precision::int8));
}

std::span<const uint8_t> Float8Reader::bytes_of(int begin, int end) const {
  return {codes_ + size_t(begin) * size_t(k()), size_t(end - begin) * size_t(k())};
}

Status named(const std::string& slot, Status status) {
  if (status.ok()) return status;
  return error(status.code(), "weight ", slot, ": ", status.message());
}

Result<std::unique_ptr<WeightReader>> open_weight(const WeightSource& source, int n, int k) {
  if (n < 1 || k < 1) return error(Code::invalid_argument, "weight ", source.slot, " is empty");
  if (source.storage.method == Method::plain) return open_plain(source, n, k);
  if (source.storage.method == Method::float_quantized) return Float8Reader::open(source, n, k);
  Result<AffineMatrix> matrix = open_affine(source, n, k);
  if (!matrix.ok()) return matrix.status();
  return std::unique_ptr<WeightReader>(std::make_unique<AffineReader>(std::move(matrix.value())));
}

}  // namespace edgeshift
