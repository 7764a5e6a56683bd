// How (code - zero) * scale becomes q * scale + minimum with binary16 parameters:
//   up to 4 bits at int8: q = code - zero, no minimum: exact
//   up to 4 bits at int4: q = code, minimum = -zero * scale, rounded to binary16: exact for zero points that are powers
//     of two (all symmetric files), otherwise off by at most 2^-12 of zero * scale, under 0.004 of a code's step
//   8 bits at int8: q = code - 128, minimum = (128 - zero) * scale, rounded: off by at most 0.032 of a step, and no
//     minimum at all when every zero point is 128
// bf16 and float scales are rounded to binary16; below 2^-14 they keep 2^-25 of absolute precision.
#include "quant/affine_reader.h"

#include <algorithm>
#include <cmath>

#include "core/text.h"
#include "quant/finite_half.h"
#include "quant/half.h"

namespace edgeshift {

namespace {

// Scratch of one thread.
struct Scratch {
  std::vector<uint8_t> codes;
  std::vector<float> floats;
  AffineParameters parameters;
};

Scratch& scratch() {
  static thread_local Scratch s;
  return s;
}

int code_offset(const AffineMatrix& m, Precision precision, int zero) {
  if (precision == Precision::int4 || m.stores_minimums) return 0;
  return m.bits == 8 ? 128 : zero;
}

float minimum_of(const AffineMatrix& m, const AffineParameters& p, size_t at, int offset) {
  if (m.stores_minimums) return p.minimums[at];
  return float(offset - p.zero_points[at]) * p.scales[at];
}

void put_code(Precision precision, int code, int place, uint8_t* row) {
  if (precision == Precision::int8) row[place] = uint8_t(int8_t(code));
  else row[place / 2] = uint8_t(row[place / 2] | code << (place % 2 * 4));
}

}  // namespace

AffineReader::AffineReader(AffineMatrix matrix)
    : WeightReader(matrix.n, matrix.k), m_(std::move(matrix)), symmetric_(m_.bits == 8 && is_symmetric(m_)) {}

Precision AffineReader::width() const {
  const bool whole = m_.group == m_.k || m_.group % 32 == 0;
  if (!m_.regular || !whole) return Precision::fp16;
  return m_.bits <= 4 ? Precision::int4 : Precision::int8;
}

// Precision's order is fp16, int8, int4: a larger value is narrower.
CanonicalForm AffineReader::form(Precision precision) const {
  if (!keeps(precision)) return canonical_form(BlockType::f32, precision, m_.k);
  const bool minimums = precision == Precision::int4 || m_.stores_minimums || (m_.bits == 8 && !symmetric_);
  return {precision, (m_.group + 31) / 32 * 32, minimums};
}

std::span<const int32_t> AffineReader::order(Precision precision) const {
  if (keeps(precision)) return m_.order;
  return {};
}

Status AffineReader::read(int begin, int end, CanonicalForm form, CanonicalStorage& out) const {
  if (keeps(form.precision)) return keep(begin, end, form, out);
  std::vector<float>& rows = scratch().floats;
  rows.resize(size_t(end - begin) * size_t(m_.k));
  ES_RETURN_IF_ERROR(dequantize(begin, end, rows.data()));
  return named(m_.source.slot, to_canonical(BlockType::f32, rows.data(), end - begin, m_.k, form, out));
}

Status AffineReader::keep(int begin, int end, CanonicalForm form, CanonicalStorage& out) const {
  Scratch& s = scratch();
  s.codes.resize(size_t(end - begin) * size_t(m_.k));
  read_codes(m_, begin, end, s.codes.data());
  ES_RETURN_IF_ERROR(read_parameters(m_, begin, end, s.parameters));
  prepare(out, form, end - begin, m_.k);
  std::ranges::fill(out.codes, uint8_t(0));
  const int per_byte = form.precision == Precision::int4 ? 2 : 1;
  const size_t row_bytes = size_t(m_.groups) * size_t(form.group) / size_t(per_byte);
  const int32_t* order = m_.order.empty() ? nullptr : m_.order.data();
  for (int row = 0; row < end - begin; ++row) {
    const uint8_t* codes = s.codes.data() + size_t(row) * size_t(m_.k);
    uint8_t* to = out.codes.data() + size_t(row) * row_bytes;
    for (int g = 0; g < m_.groups; ++g) {
      const size_t at = size_t(row) * size_t(m_.groups) + size_t(g);
      const int offset = code_offset(m_, form.precision, s.parameters.zero_points[at]);
      const float minimum = minimum_of(m_, s.parameters, at, offset);
      if (std::fabs(s.parameters.scales[at]) > kLargestHalf || std::fabs(minimum) > kLargestHalf) {
        return error(Code::unsupported, "weight ", m_.source.slot, ": a scale or zero point is outside binary16");
      }
      out.scales[at] = to_f16(s.parameters.scales[at]);
      if (form.has_minimums) out.minimums[at] = to_f16(minimum);
      const int last = std::min(m_.k, (g + 1) * m_.group);
      for (int i = g * m_.group; i < last; ++i) put_code(form.precision, codes[order ? order[i] : i] - offset, i, to);
    }
  }
  return Status();
}

Status AffineReader::dequantize(int begin, int end, float* out) const {
  Scratch& s = scratch();
  s.codes.resize(size_t(end - begin) * size_t(m_.k));
  read_codes(m_, begin, end, s.codes.data());
  ES_RETURN_IF_ERROR(read_parameters(m_, begin, end, s.parameters));
  const AffineParameters& p = s.parameters;
  for (int row = 0; row < end - begin; ++row) {
    const size_t first = size_t(row) * size_t(m_.groups), from = size_t(row) * size_t(m_.k);
    for (int i = 0; i < m_.k; ++i) {
      const size_t at = first + size_t(m_.group_of_input(i));
      const float product = float(int(s.codes[from + size_t(i)]) - p.zero_points[at]) * p.scales[at];
      out[from + size_t(i)] = m_.stores_minimums ? product + p.minimums[at] : product;
    }
  }
  return Status();
}

// GPTQ and AWQ gemm keep a row's codes all over the tensor.
std::span<const uint8_t> AffineReader::bytes_of(int begin, int end) const {
  const TensorBytes& codes = m_.source.codes;
  const Storage& s = m_.source.storage;
  const bool by_row = s.method == Method::pack_quantized || s.method == Method::int_quantized;
  if (!by_row) return {codes.data, codes.bytes};
  const size_t row = codes.bytes / size_t(m_.n);
  return {codes.data + size_t(begin) * row, size_t(end - begin) * row};
}

}  // namespace edgeshift
