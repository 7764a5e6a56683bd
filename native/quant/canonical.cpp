#include "quant/canonical.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "quant/block_decode.h"
#include "quant/finite_half.h"
#include "quant/half.h"
#include "quant/row_kernels.h"

namespace edgeshift {

namespace {

// Floats that are rounded at a time: enough groups for all lanes, few enough for the first cache.
constexpr int kRoundedWeights = 8192;

// Codes times a scale, maybe plus a minimum, in blocks of 32.
bool is_linear(BlockType type) {
  switch (type) {
    case BlockType::q4_0:
    case BlockType::q4_1:
    case BlockType::q5_0:
    case BlockType::q5_1:
    case BlockType::q8_0:
    case BlockType::q4_k:
    case BlockType::q5_k: return true;
    default: return false;
  }
}

bool is_finite(f16 value) { return (value.bits & 0x7c00u) != 0x7c00u; }

Status not_finite() { return {Code::invalid_file, "holds a value that is not finite"}; }

bool brings_minimums(BlockType type) {
  return type == BlockType::q4_1 || type == BlockType::q5_1 || type == BlockType::q4_k || type == BlockType::q5_k;
}

f16 half_at(const uint8_t* from) {
  f16 h;
  std::memcpy(&h.bits, from, 2);
  return h;
}

// One group on its way to the canonical arrays; a code is a byte.
struct CodedGroup {
  f16 scale{};
  f16 minimum{};
  uint8_t codes[32];
};

// A block of q4_0 .. q8_0: its codes, scale and minimum, with the offset that the format subtracts from codes.
int read_legacy_block(BlockType type, const uint8_t* b, CodedGroup& out) {
  uint32_t high = 0;
  out.scale = half_at(b);
  if (brings_minimums(type)) out.minimum = half_at(b + 2);
  if (type == BlockType::q8_0) {
    std::memcpy(out.codes, b + 2, 32);
    return 0;
  }
  const uint8_t* body = b + (brings_minimums(type) ? 4 : 2);
  bool five = type == BlockType::q5_0 || type == BlockType::q5_1;
  if (five) std::memcpy(&high, body, 4);
  const uint8_t* nibbles = body + (five ? 4 : 0);
  for (int i = 0; i < 16; ++i) {
    out.codes[i] = uint8_t((nibbles[i] & 15) | (high >> i & 1u) << 4);
    out.codes[i + 16] = uint8_t(nibbles[i] >> 4 | (high >> (i + 16) & 1u) << 4);
  }
  return type == BlockType::q4_0 ? 8 : type == BlockType::q5_0 ? 16 : 0;
}

// Sub-block j of q4_k or q5_k. The products of 11 and 6 bits are rounded to binary16.
void read_k_sub_block(BlockType type, const uint8_t* b, int j, CodedGroup& out) {
  const bool five = type == BlockType::q5_k;
  const SubBlock sub = k_sub_block(b + 4, j);
  out.scale = to_f16(to_float(half_at(b)) * float(sub.scale));
  out.minimum = to_f16(-to_float(half_at(b + 2)) * float(sub.minimum));
  const uint8_t* nibbles = b + (five ? 48 : 16) + j / 2 * 32;
  for (int i = 0; i < 32; i += 8) {
    uint64_t codes, high;
    std::memcpy(&codes, nibbles + i, sizeof codes);
    std::memcpy(&high, b + 16 + i, sizeof high);
    codes = codes >> (j % 2 * 4) & 0x0f0f0f0f0f0f0f0fu;
    if (five) codes |= (high >> j & 0x0101010101010101u) << 4;
    std::memcpy(out.codes + i, &codes, sizeof codes);
  }
}

// Sub-block j of iq4_xs, or an iq4_nl block: a codebook of 8-bit values.
void read_iq4(BlockType type, const uint8_t* b, int j, CodedGroup& out) {
  const uint8_t* nibbles = b + 2;
  out.scale = half_at(b);
  if (type == BlockType::iq4_xs) {
    uint16_t high;
    std::memcpy(&high, b + 2, 2);
    const int scale = (b[4 + j / 2] >> (j % 2 * 4) & 15) | (high >> (2 * j) & 3) << 4;
    out.scale = to_f16(to_float(half_at(b)) * float(scale - 32));
    nibbles = b + 8 + j * 16;
  }
  for (int i = 0; i < 16; ++i) {
    out.codes[i] = uint8_t(kIq4Values[nibbles[i] & 15]);
    out.codes[i + 16] = uint8_t(kIq4Values[nibbles[i] >> 4]);
  }
}

// CodedGroup g of a row of file blocks, kept. int4 codes stay unsigned, so an offset moves into the minimum; int8 codes take
// it in.
void keep_group(BlockType type, Precision target, const uint8_t* row, int g, CodedGroup& out) {
  out.minimum = {};
  const int per_block = block_weights(type) / 32;
  const uint8_t* block = row + size_t(g / per_block) * size_t(block_bytes(type));
  if (type == BlockType::q4_k || type == BlockType::q5_k) return read_k_sub_block(type, block, g % per_block, out);
  if (type == BlockType::iq4_nl || type == BlockType::iq4_xs) return read_iq4(type, block, g % per_block, out);
  int offset = read_legacy_block(type, block, out);
  if (target == Precision::int4) {
    if (offset) out.minimum = to_finite_f16(-float(offset) * to_float(out.scale));
  } else {
    for (uint8_t& code : out.codes) code = uint8_t(code - offset);
  }
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

// Eight bytes' low nibbles to four bytes of neighbours.
uint32_t join_nibbles(uint64_t x) {
  x &= 0x0f0f0f0f0f0f0f0fu;
  x = (x | x >> 4) & 0x00ff00ff00ff00ffu;
  x = (x | x >> 8) & 0x0000ffff0000ffffu;
  return uint32_t(x | x >> 16);
}

// A group's codes; int4: two a byte.
void store_codes(const uint8_t (&codes)[32], Precision precision, uint8_t* to) {
  if (precision == Precision::int8) {
    std::memcpy(to, codes, sizeof codes);
    return;
  }
  for (int i = 0; i < 32; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, codes + i, sizeof eight);
    const uint32_t joined = join_nibbles(eight);
    std::memcpy(to + i / 2, &joined, sizeof joined);
  }
}

// Sixteen bytes of nibbles to the codes of a row: two a byte, in the order of the row.
void copy_nibbles(const uint64_t (&halves)[2], uint8_t* to) {
  const uint32_t joined[] = {join_nibbles(halves[0]), join_nibbles(halves[1]), join_nibbles(halves[0] >> 4), join_nibbles(halves[1] >> 4)};
  std::memcpy(to, joined, sizeof joined);
}

// The same, one a byte, less 8 each where `centred`.
void spread_nibbles(const uint64_t (&halves)[2], bool centred, uint8_t* to) {
  constexpr uint64_t kSigns = 0x8080808080808080u;
  for (int i = 0; i < 4; ++i, to += 8) {
    uint64_t codes = halves[i % 2] >> (i / 2 * 4) & 0x0f0f0f0f0f0f0f0fu;
    // The sign bits keep bytes from borrowing.
    if (centred) codes = ((codes | kSigns) - 0x0808080808080808u) ^ kSigns;
    std::memcpy(to, &codes, sizeof codes);
  }
}

// Blocks whose codes only change places.
bool is_copied(BlockType source, Precision target) {
  if (source == BlockType::q8_0) return target == Precision::int8;
  return target != Precision::fp16 && (source == BlockType::q4_0 || source == BlockType::q4_1);
}

Status copy_row(BlockType source, const uint8_t* data, CanonicalForm form, int k, int row, CanonicalStorage& out) {
  const bool int4 = form.precision == Precision::int4, q4_1 = source == BlockType::q4_1;
  const size_t groups = size_t(k / 32), bytes = size_t(block_bytes(source)), code_bytes = int4 ? 16 : 32;
  uint8_t* to = out.codes.data() + size_t(row) * groups * code_bytes;
  bool finite = true;
  for (size_t g = 0; g < groups; ++g, data += bytes, to += code_bytes) {
    f16 scale = half_at(data), minimum{};
    if (source == BlockType::q8_0) {
      std::memcpy(to, data + 2, 32);
    } else {
      if (q4_1) minimum = half_at(data + 2);
      else if (int4) minimum = to_finite_f16(-8 * to_float(scale));
      uint64_t halves[2];
      std::memcpy(halves, data + (q4_1 ? 4 : 2), 16);
      if (int4) copy_nibbles(halves, to);
      else spread_nibbles(halves, !q4_1, to);
    }
    finite = finite && is_finite(scale) && is_finite(minimum);
    out.scales[size_t(row) * groups + g] = scale;
    if (form.has_minimums) out.minimums[size_t(row) * groups + g] = minimum;
  }
  return finite ? Status() : not_finite();
}

// Codes and parameters of one row whose blocks are kept.
Status keep_row(BlockType source, const uint8_t* data, CanonicalForm form, int k, int row, CanonicalStorage& out) {
  const int groups = k / 32, codes_per_byte = form.precision == Precision::int4 ? 2 : 1;
  uint8_t* to = out.codes.data() + size_t(row) * size_t(k / codes_per_byte);
  CodedGroup group;
  for (int g = 0; g < groups; ++g) {
    const size_t place = size_t(row) * size_t(groups) + size_t(g);
    keep_group(source, form.precision, data, g, group);
    if (!is_finite(group.scale) || !is_finite(group.minimum)) return not_finite();
    out.scales[place] = group.scale;
    if (form.has_minimums) out.minimums[place] = group.minimum;
    store_codes(group.codes, form.precision, to + g * 32 / codes_per_byte);
  }
  return {};
}

// Rounds `count` rows to nearest, the first of which is row `row` of `out`.
Status round_rows(BlockType source, const uint8_t* data, int count, CanonicalForm form, int k, int row, CanonicalStorage& out) {
  const RowKernels& kernels = row_kernels();
  static thread_local std::vector<float> weights;
  FloatRows rows{nullptr, count, k, form.group};
  const size_t padded = size_t(rows.padded()), groups = size_t(rows.groups()), first = size_t(row) * groups;
  weights.resize(size_t(count) * padded);
  rows.weights = weights.data();
  for (int i = 0; i < count; ++i) {
    float* to = weights.data() + size_t(i) * padded;
    ES_RETURN_IF_ERROR(dequantize_rows(source, data + size_t(i) * row_bytes(source, k), 1, k, to));
    ES_RETURN_IF_ERROR(check_values(to, k, form.precision));
    std::fill(to + k, to + padded, 0.0f);
  }
  if (form.precision == Precision::int8) {
    kernels.round_int8(rows, out.codes.data() + size_t(row) * padded, out.scales.data() + first, out.rounding);
  } else {
    kernels.round_int4(rows, out.codes.data() + size_t(row) * padded / 2, out.scales.data() + first, out.minimums.data() + first, out.rounding);
  }
  return {};
}

Status convert_to_half(BlockType source, const uint8_t* data, int k, int row, CanonicalStorage& out) {
  f16* to = out.values.data() + size_t(row) * size_t(k);
  if (source == BlockType::f16) {
    std::memcpy(to, data, size_t(k) * sizeof(f16));
    return check_halves(data, k);
  }
  static thread_local std::vector<float> weights;
  weights.resize(size_t(k));
  ES_RETURN_IF_ERROR(dequantize_rows(source, data, 1, k, weights.data()));
  ES_RETURN_IF_ERROR(check_values(weights.data(), k, Precision::fp16));
  row_kernels().to_halves(weights.data(), k, to);
  return {};
}

}  // namespace

bool fits_exactly(BlockType source, Precision target) {
  switch (target) {
    case Precision::fp16: return true;
    case Precision::int8: return is_linear(source) || source == BlockType::iq4_nl || source == BlockType::iq4_xs;
    case Precision::int4: return source == BlockType::q4_0 || source == BlockType::q4_1 || source == BlockType::q4_k;
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

void prepare(CanonicalStorage& out, CanonicalForm form, int rows, int k) {
  out.rounding = {};
  out.form = form;
  out.n = rows;
  out.k = k;
  const bool half = form.precision == Precision::fp16;
  const size_t n = size_t(rows);
  const size_t groups = half ? 0 : size_t((k + form.group - 1) / form.group);
  const size_t padded = groups * size_t(form.group);
  out.values.resize(half ? n * size_t(k) : 0);
  out.codes.resize(n * (form.precision == Precision::int4 ? padded / 2 : padded));
  out.scales.resize(n * groups);
  out.minimums.assign(form.has_minimums ? n * groups : 0, f16{});
}

Status check_values(const float* values, int64_t count, Precision precision) {
  const uint32_t largest = row_kernels().largest_bits(values, count);
  if (largest >= 0x7f800000u) return not_finite();
  // 65520 would round to infinity.
  if (precision != Precision::fp16 || largest < std::bit_cast<uint32_t>(65520.0f)) return {};
  return {Code::unsupported, "holds " + std::to_string(std::bit_cast<float>(largest)) +
                                 ", which binary16 cannot (the int8 rung can)"};
}

Status check_halves(const uint8_t* halves, int64_t count) {
  uint16_t worst = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, halves + 2 * i, 2);
    bits &= 0x7fffu;
    worst = bits > worst ? bits : worst;
  }
  return worst < 0x7c00u ? Status() : not_finite();
}

Status to_canonical(BlockType source, const void* data, int rows, int k, CanonicalForm form, CanonicalStorage& out) {
  ES_RETURN_IF_ERROR(check_form(source, form, k));
  prepare(out, form, rows, k);
  const bool keeps = fits_exactly(source, form.precision);
  const int at_once = keeps ? 1 : std::clamp(kRoundedWeights / k, 1, 16);
  const uint8_t* from = static_cast<const uint8_t*>(data);
  for (int row = 0; row < rows; row += at_once, from += size_t(at_once) * row_bytes(source, k)) {
    if (form.precision == Precision::fp16) ES_RETURN_IF_ERROR(convert_to_half(source, from, k, row, out));
    else if (is_copied(source, form.precision)) ES_RETURN_IF_ERROR(copy_row(source, from, form, k, row, out));
    else if (keeps) ES_RETURN_IF_ERROR(keep_row(source, from, form, k, row, out));
    else ES_RETURN_IF_ERROR(round_rows(source, from, std::min(at_once, rows - row), form, k, row, out));
  }
  return {};
}

}  // namespace edgeshift
