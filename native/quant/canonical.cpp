#include "quant/canonical.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "quant/half.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace edgeshift {

namespace {

constexpr float kLargestHalf = 65504.0f;

f16 to_finite_f16(float value) { return to_f16(std::clamp(value, -kLargestHalf, kLargestHalf)); }

// Nearest integer in [low, high]; NaN becomes low.
int round_code(float value, int low, int high) {
  float rounded = std::nearbyint(value);
  if (!(rounded > float(low))) return low;
  return rounded > float(high) ? high : int(rounded);
}

bool brings_minimums(BlockType type) { return type == BlockType::q4_1 || type == BlockType::q5_1; }

// One group on its way to the canonical arrays.
struct Group {
  f16 scale{};
  f16 minimum{};
  int* codes;  // [group]
};

// The block's own codes, scale and minimum, with the offset that the format subtracts from codes.
int read_block(BlockType type, const uint8_t* b, Group& out) {
  uint32_t high = 0;
  std::memcpy(&out.scale.bits, b, 2);
  if (brings_minimums(type)) std::memcpy(&out.minimum.bits, b + 2, 2);
  if (type == BlockType::q8_0) {
    for (int i = 0; i < 32; ++i) out.codes[i] = int8_t(b[2 + i]);
    return 0;
  }
  const uint8_t* body = b + (brings_minimums(type) ? 4 : 2);
  bool five = type == BlockType::q5_0 || type == BlockType::q5_1;
  if (five) std::memcpy(&high, body, 4);
  const uint8_t* nibbles = body + (five ? 4 : 0);
  for (int i = 0; i < 16; ++i) {
    out.codes[i] = (nibbles[i] & 15) | int(high >> i & 1u) << 4;
    out.codes[i + 16] = (nibbles[i] >> 4) | int(high >> (i + 16) & 1u) << 4;
  }
  return type == BlockType::q4_0 ? 8 : type == BlockType::q5_0 ? 16 : 0;
}

// A file block kept exactly. int4 codes stay unsigned, so an offset moves into the minimum; int8 codes take it in.
void keep_block(BlockType type, Precision target, const uint8_t* b, Group& out) {
  out.minimum = {};
  int offset = read_block(type, b, out);
  if (target == Precision::int4) {
    if (offset) out.minimum = to_finite_f16(-float(offset) * to_float(out.scale));
  } else {
    for (int i = 0; i < 32; ++i) out.codes[i] -= offset;
  }
}

// Symmetric, 8 bits.
void round_symmetric(const float* w, int count, Group& out) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(w[i]));
  out.scale = to_finite_f16(largest / 127.0f);
  out.minimum = {};
  float scale = to_float(out.scale);
  float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int i = 0; i < count; ++i) out.codes[i] = round_code(w[i] * inverse, -127, 127);
}

struct Line {
  float scale = 0;
  float minimum = 0;
};

// Squared error of coding w with the line, and the least squares line for those codes.
float fit_line(const float* w, int count, Line line, Line& better) {
  float inverse = line.scale > 0 ? 1.0f / line.scale : 0.0f;
  double sum_q = 0, sum_qq = 0, sum_w = 0, sum_qw = 0, error = 0;
  for (int i = 0; i < count; ++i) {
    int q = round_code((w[i] - line.minimum) * inverse, 0, 15);
    double miss = double(w[i]) - (double(q) * line.scale + line.minimum);
    error += miss * miss;
    sum_q += q;
    sum_qq += q * q;
    sum_w += w[i];
    sum_qw += q * double(w[i]);
  }
  double spread = count * sum_qq - sum_q * sum_q;
  better = line;
  if (spread > 0) {
    better.scale = float((count * sum_qw - sum_q * sum_w) / spread);
    better.minimum = float((sum_w - double(better.scale) * sum_q) / count);
  }
  return float(error);
}

Line rounded(Line line) { return {to_float(to_finite_f16(line.scale)), to_float(to_finite_f16(line.minimum))}; }

// Asymmetric, 4 bits: of a few ranges around the weights, each refined by least squares, the one with the least error.
void round_asymmetric(const float* w, int count, Group& out) {
  float low = w[0], high = w[0];
  for (int i = 1; i < count; ++i) {
    low = std::min(low, w[i]);
    high = std::max(high, w[i]);
  }
  Line best;
  float best_error = INFINITY;
  for (float shrink : {1.0f, 0.92f, 0.84f}) {
    float cut = (1.0f - shrink) * (high - low) / 2;
    Line line = rounded({(high - low - 2 * cut) / 15.0f, low + cut});
    for (int i = 0; i < 2; ++i) {
      Line better;
      float error = fit_line(w, count, line, better);
      if (error < best_error) {
        best_error = error;
        best = line;
      }
      line = rounded(better);
    }
  }
  out.scale = to_f16(best.scale);
  out.minimum = to_f16(best.minimum);
  float inverse = best.scale > 0 ? 1.0f / best.scale : 0.0f;
  for (int i = 0; i < count; ++i) out.codes[i] = round_code((w[i] - best.minimum) * inverse, 0, 15);
}

Status check_form(BlockType source, CanonicalForm form, int k) {
  if (k <= 0 || k % block_weights(source) != 0) {
    return {Code::invalid_argument, "rows of " + std::to_string(k) + " weights are not whole blocks of " + std::to_string(block_weights(source))};
  }
  if (form.precision == Precision::fp16) return {};
  bool keeps = fits_exactly(source, form.precision);
  if (form.group <= 0 || form.group % 32 != 0 || (keeps && form.group != 32)) {
    return {Code::invalid_argument, "group size " + std::to_string(form.group) + " does not suit the weight"};
  }
  if (!form.has_minimums && (form.precision == Precision::int4 || (keeps && brings_minimums(source)))) {
    return {Code::invalid_argument, "the weight needs minimums"};
  }
  return {};
}

// A group's codes to bytes. int4: two codes a byte; `count` is even unless it ends the row.
void store_codes(const int* codes, int count, Precision precision, uint8_t* to) {
  if (precision == Precision::int8) {
    for (int i = 0; i < count; ++i) to[i] = uint8_t(int8_t(codes[i]));
    return;
  }
  for (int i = 0; i + 1 < count; i += 2) to[i / 2] = uint8_t(codes[i] | codes[i + 1] << 4);
  if (count % 2) to[count / 2] = uint8_t(codes[count - 1]);
}

// Codes and parameters of one row.
void convert_row(BlockType source, const uint8_t* data, CanonicalForm form, int k, int row, CanonicalStorage& out) {
  int groups = (k + form.group - 1) / form.group;
  int padded = groups * form.group;
  bool keeps = fits_exactly(source, form.precision);
  static thread_local std::vector<float> row_weights;
  static thread_local std::vector<int> group_codes;
  row_weights.assign(keeps ? 0 : size_t(padded), 0.0f);
  group_codes.resize(size_t(form.group));
  // Thread-local variables are slow to reach: once a row.
  float* weights = row_weights.data();
  int* codes = group_codes.data();
  if (!keeps) (void)dequantize_rows(source, data, 1, k, weights);
  int codes_per_byte = form.precision == Precision::int4 ? 2 : 1;
  uint8_t* to = out.codes.data() + size_t(row) * size_t(padded / codes_per_byte);
  for (int g = 0; g < groups; ++g) {
    Group group{{}, {}, codes};
    int count = std::min(form.group, k - g * form.group);
    if (keeps) keep_block(source, form.precision, data + size_t(g) * size_t(block_bytes(source)), group);
    else if (form.precision == Precision::int4) round_asymmetric(weights + g * form.group, count, group);
    else round_symmetric(weights + g * form.group, count, group);
    size_t place = size_t(row) * size_t(groups) + size_t(g);
    out.scales[place] = group.scale;
    if (form.has_minimums) out.minimums[place] = group.minimum;
    store_codes(codes, count, form.precision, to + g * form.group / codes_per_byte);
  }
}

#ifdef __x86_64__
// The processor's conversion rounds as to_f16 does.
__attribute__((target("avx,f16c"))) void halves_f16c(const float* from, int count, f16* to) {
  const __m256 limit = _mm256_set1_ps(kLargestHalf);
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    // The weight as second operand: NaN stays.
    __m256 v = _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), limit), _mm256_min_ps(limit, _mm256_loadu_ps(from + i)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < count; ++i) to[i] = to_finite_f16(from[i]);
}
#endif

void to_halves(const float* from, int count, f16* to) {
#ifdef __x86_64__
  static const bool fast = __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  if (fast) return halves_f16c(from, count, to);
#endif
  for (int i = 0; i < count; ++i) to[i] = to_finite_f16(from[i]);
}

void convert_to_half(BlockType source, const uint8_t* data, int k, int row, CanonicalStorage& out) {
  static thread_local std::vector<float> weights;
  weights.resize(size_t(k));
  (void)dequantize_rows(source, data, 1, k, weights.data());
  to_halves(weights.data(), k, out.values.data() + size_t(row) * size_t(k));
}

void resize(CanonicalStorage& out) {
  bool half = out.form.precision == Precision::fp16;
  size_t n = size_t(out.n);
  size_t groups = half ? 0 : size_t((out.k + out.form.group - 1) / out.form.group);
  size_t padded = groups * size_t(out.form.group);
  out.values.resize(half ? n * size_t(out.k) : 0);
  out.codes.assign(n * (out.form.precision == Precision::int4 ? padded / 2 : padded), 0);
  out.scales.resize(n * groups);
  out.minimums.resize(out.form.has_minimums ? n * groups : 0);
}

}  // namespace

bool fits_exactly(BlockType source, Precision target) {
  switch (target) {
    case Precision::fp16: return true;
    case Precision::int8: return block_weights(source) == 32;
    case Precision::int4: return source == BlockType::q4_0 || source == BlockType::q4_1;
  }
  return false;
}

CanonicalForm canonical_form(BlockType source, Precision target, int k, int group) {
  if (target == Precision::fp16) return {target, 0, false};
  int whole = (k + 31) / 32 * 32;
  bool keeps = fits_exactly(source, target);
  int size = keeps ? 32 : group <= 0 ? whole : std::min((group + 31) / 32 * 32, whole);
  return {target, size, target == Precision::int4 || (keeps && brings_minimums(source))};
}

CanonicalMatrix CanonicalStorage::view() const {
  CanonicalMatrix m;
  m.precision = form.precision;
  m.n = n;
  m.k = k;
  m.group = form.group;
  m.values = values.empty() ? nullptr : values.data();
  m.codes = codes.empty() ? nullptr : codes.data();
  m.scales = scales.empty() ? nullptr : scales.data();
  m.minimums = minimums.empty() ? nullptr : minimums.data();
  return m;
}

Status to_canonical(BlockType source, const void* data, int rows, int k, CanonicalForm form, CanonicalStorage& out) {
  ES_RETURN_IF_ERROR(check_form(source, form, k));
  out.form = form;
  out.n = rows;
  out.k = k;
  resize(out);
  const uint8_t* from = static_cast<const uint8_t*>(data);
  for (int row = 0; row < rows; ++row, from += row_bytes(source, k)) {
    if (form.precision == Precision::fp16) convert_to_half(source, from, k, row, out);
    else convert_row(source, from, form, k, row, out);
  }
  return {};
}

}  // namespace edgeshift
