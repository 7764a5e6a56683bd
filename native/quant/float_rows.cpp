#include "quant/float_rows.h"

#include <bit>
#include <cmath>

#include "core/text.h"

namespace edgeshift {

namespace {

// Largest magnitude as bits, which order like magnitudes; infinities and NaN are at and above 0x7f800000.
uint32_t largest_bits(const float* values, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

}  // namespace

void prepare(CanonicalStorage& out, CanonicalForm form, int rows, int k) {
  out.form = form;
  out.n = rows;
  out.k = k;
  const bool half = form.precision == Precision::fp16;
  const size_t n = size_t(rows);
  const size_t groups = half ? 0 : size_t((k + form.group - 1) / form.group);
  const size_t padded = groups * size_t(form.group);
  out.values.resize(half ? n * size_t(k) : 0);
  out.codes.assign(n * (form.precision == Precision::int4 ? padded / 2 : padded), 0);
  out.scales.resize(n * groups);
  out.minimums.assign(form.has_minimums ? n * groups : 0, f16{});
}

Status check_rows(const std::string& slot, const float* rows, int64_t count, Precision precision) {
  const uint32_t largest = largest_bits(rows, count);
  if (largest >= 0x7f800000u) return error(Code::invalid_file, "weight ", slot, ": holds a value that is not finite");
  // 65520 would round to infinity.
  if (precision == Precision::fp16 && largest >= std::bit_cast<uint32_t>(65520.0f)) {
    return error(Code::unsupported, "weight ", slot, ": holds ", std::bit_cast<float>(largest),
                 ", which binary16 cannot (the int8 rung can)");
  }
  return Status();
}

Status round_rows(const std::string& slot, const float* values, int rows, int k, CanonicalForm form,
                  CanonicalStorage& out) {
  ES_RETURN_IF_ERROR(check_rows(slot, values, int64_t(rows) * k, form.precision));
  return to_canonical(BlockType::f32, values, rows, k, form, out);
}

}  // namespace edgeshift
