#include "model/head_padding.h"

#include <algorithm>

namespace edgeshift {

namespace {

Result<std::vector<float>> dequantize(const CheckedWeight& weight) {
  std::vector<float> values(size_t(weight.rows) * size_t(weight.columns));
  Status status = dequantize_rows(weight.type, weight.source->data, weight.rows, weight.columns, values.data());
  if (!status.ok()) return status;
  return values;
}

// Moves `count` stretches of `from` values to a distance of `to`, zeros between.
std::vector<float> spread(const std::vector<float>& values, size_t count, size_t from, size_t to) {
  std::vector<float> out(count * to);
  for (size_t i = 0; i < count; ++i) std::copy_n(values.begin() + long(i * from), from, out.begin() + long(i * to));
  return out;
}

}  // namespace

Result<std::vector<float>> pad_head_rows(const CheckedWeight& weight, int heads, int padded) {
  Result<std::vector<float>> values = dequantize(weight);
  if (!values.ok()) return values;
  const size_t columns = size_t(weight.columns);
  return spread(values.value(), size_t(heads), size_t(weight.rows / heads) * columns, size_t(padded) * columns);
}

Result<std::vector<float>> pad_head_columns(const CheckedWeight& weight, int heads, int padded) {
  Result<std::vector<float>> values = dequantize(weight);
  if (!values.ok()) return values;
  const size_t stretches = size_t(weight.rows) * size_t(heads);
  return spread(values.value(), stretches, size_t(weight.columns / heads), size_t(padded));
}

}  // namespace edgeshift
