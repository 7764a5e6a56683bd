#include "quant/affine_matrix.h"

#include <cmath>
#include <cstring>

#include "core/checked.h"
#include "core/text.h"
#include "quant/group_order.h"
#include "quant/half.h"

namespace edgeshift {

namespace {

template <class T>
T read_at(const uint8_t* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * int64_t(sizeof(T)), sizeof(T));
  return value;
}

int element_bytes(const std::string& type) {
  if (type == "i8") return 1;
  if (type == "f16" || type == "bf16" || type == "i16") return 2;
  return type == "i32" || type == "f32" ? 4 : 0;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (int64_t d : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(d);
  return out + "]";
}

struct Checker {
  const WeightSource& source;

  template <class... Parts>
  Status bad(const Parts&... parts) const {
    return error(Code::invalid_file, "weight ", source.slot, ": ", parts...);
  }

  Status tensor(const TensorBytes& t, const char* name, std::initializer_list<const char*> types,
                const std::vector<int64_t>& shape) const {
    if (!t.data) return bad(name, " is missing");
    bool known = false;
    for (const char* type : types) known = known || t.type == type;
    if (!known) return bad(name, " has type ", quoted(t.type), ", not ", *types.begin());
    if (t.shape != shape) return bad(name, " has shape ", shape_text(t.shape), ", not ", shape_text(shape));
    uint64_t bytes = uint64_t(element_bytes(t.type));
    bool fits = true;
    for (int64_t d : shape) fits = fits && d >= 0 && checked_mul(bytes, uint64_t(d), bytes);
    if (!fits || bytes != t.bytes) return bad(name, " has ", t.bytes, " bytes, its shape needs ", bytes);
    return Status();
  }

  Status scales(const std::vector<int64_t>& shape) const {
    return tensor(source.scales, "scales", {"f16", "bf16", "f32"}, shape);
  }
  Status codes(const char* type, const std::vector<int64_t>& shape) const {
    return tensor(source.codes, "codes", {type}, shape);
  }
  Status zeros(const char* type, const std::vector<int64_t>& shape) const {
    return tensor(source.zero_points, "zero points", {type}, shape);
  }
  // Codes are packed into words of 32 bits along this length.
  Status whole_words(const char* name, int64_t length, int bits) const {
    if (length * bits % 32 == 0) return Status();
    return bad(name, " ", length, " at ", bits, " bits are not whole 32-bit words");
  }
};

Status check_gptq(const Checker& c, const AffineMatrix& m) {
  if (m.bits != 2 && m.bits != 3 && m.bits != 4 && m.bits != 8) {
    return error(Code::unsupported, "weight ", m.source.slot, ": GPTQ with ", m.bits, " bits");
  }
  ES_RETURN_IF_ERROR(c.whole_words("inputs", m.k, m.bits));
  ES_RETURN_IF_ERROR(c.whole_words("outputs", m.n, m.bits));
  ES_RETURN_IF_ERROR(c.codes("i32", {int64_t(m.k) * m.bits / 32, m.n}));
  ES_RETURN_IF_ERROR(c.scales({m.groups, m.n}));
  return c.zeros("i32", {m.groups, int64_t(m.n) * m.bits / 32});
}

// AutoAWQ pads the groups of its gemv layouts to whole words, for groups below 128 to 2 or 4 of them.
int64_t gemv_zero_words(const AffineMatrix& m) {
  const int64_t unit = m.group >= 128 ? 1 : m.group == 64 ? 2 : 4;
  const int64_t words = (m.groups + 7) / 8;
  return (words + unit - 1) / unit * unit;
}

Status check_awq(const Checker& c, const AffineMatrix& m) {
  // AutoAWQ writes 4 bits only, GPTQModel 8 bits too, as gemm.
  const bool gemm = m.source.storage.version == AwqVersion::gemm;
  if (m.bits != 4 && !(gemm && m.bits == 8)) {
    return error(Code::unsupported, "weight ", m.source.slot, ": AWQ with ", m.bits, " bits (4 are, and 8 of version gemm)");
  }
  if (gemm) {
    const int64_t words = int64_t(m.n) * m.bits / 32;
    ES_RETURN_IF_ERROR(c.whole_words("outputs", m.n, m.bits));
    ES_RETURN_IF_ERROR(c.codes("i32", {m.k, words}));
    ES_RETURN_IF_ERROR(c.scales({m.groups, m.n}));
    return c.zeros("i32", {m.groups, words});
  }
  const int64_t words = gemv_zero_words(m);
  if (m.source.storage.version == AwqVersion::gemv) {
    ES_RETURN_IF_ERROR(c.whole_words("inputs", m.k, 4));
    ES_RETURN_IF_ERROR(c.codes("i32", {m.n, m.k / 8}));
    ES_RETURN_IF_ERROR(c.scales({m.n, 8 * words}));
    return c.zeros("i32", {m.n, words});
  }
  if (m.n % 4 != 0 || m.k % 64 != 0) return c.bad("gemv_fast needs outputs in fours and inputs in 64s");
  ES_RETURN_IF_ERROR(c.codes("i16", {m.n / 4, m.k}));
  ES_RETURN_IF_ERROR(c.scales({8 * words, m.n}));
  return c.tensor(m.source.zero_points, "zero points", {"f16"}, {8 * words, m.n});
}

Status check_pack_quantized(const Checker& c, const AffineMatrix& m) {
  if (m.bits != 4 && m.bits != 8) {
    return error(Code::unsupported, "weight ", m.source.slot, ": pack-quantized with ", m.bits, " bits");
  }
  const int64_t per_word = 32 / m.bits;
  ES_RETURN_IF_ERROR(c.codes("i32", {m.n, (m.k + per_word - 1) / per_word}));
  ES_RETURN_IF_ERROR(c.scales({m.n, m.groups}));
  if (m.source.storage.symmetric) return Status();
  return c.zeros("i32", {(m.n + per_word - 1) / per_word, m.groups});
}

Status check_int_quantized(const Checker& c, const AffineMatrix& m) {
  ES_RETURN_IF_ERROR(c.codes("i8", {m.n, m.k}));
  const std::vector<int64_t>& shape = m.source.scales.shape;
  const bool one = m.groups == 1 && shape.size() == 1 && (shape[0] == 1 || shape[0] == m.n);
  ES_RETURN_IF_ERROR(c.scales(one ? shape : std::vector<int64_t>{m.n, m.groups}));
  return m.source.zero_points.data ? c.zeros("i8", {m.n, m.groups}) : Status();
}

Status check_layout(const AffineMatrix& m) {
  const Checker c{m.source};
  switch (m.source.storage.method) {
    case Method::gptq: return check_gptq(c, m);
    case Method::awq: return check_awq(c, m);
    case Method::pack_quantized: return check_pack_quantized(c, m);
    case Method::int_quantized: return check_int_quantized(c, m);
    default: return error(Code::invalid_argument, "weight ", m.source.slot, " holds no integer codes");
  }
}

// The middle code, for methods without zero points.
int middle(int bits) { return 1 << (bits - 1); }

// AutoGPTQ and GPTQModel store version 1 zero points with this subtracted from each 32-bit word, with borrows between
// codes. With 3 bits their constants do not follow the packing: older files, which have 1 less in each code, are
// recognized where they are symmetric.
constexpr uint32_t kThreeBits[] = {0x24924924u, 0x92492492u, 0x49249249u};
constexpr uint32_t kThrees[] = {0xdb6db6dbu, 0xb6db6db6u, 0x6db6db6du};  // every code 3
constexpr uint32_t kFours[] = {0x24924924u, 0x49249249u, 0x92492492u};

uint32_t minus_one_constant(int bits, int64_t word) {
  switch (bits) {
    case 2: return 0x55555555u;
    case 3: return kThreeBits[word % 3];
    case 4: return 0x11111111u;
    default: return 0x01010101u;
  }
}

// Whether the words are 3-bit codes of 3 throughout: the symmetric zero point 4, 1 subtracted from each code.
bool all_threes(const uint8_t* zeros, int64_t rows, int64_t words) {
  for (int64_t i = 0; i < rows * words; ++i) {
    if (read_at<uint32_t>(zeros, i) != kThrees[i % words % 3]) return false;
  }
  return true;
}

uint32_t gptq_zero_word(const AffineMatrix& m, int64_t group, int64_t word) {
  const int64_t words = int64_t(m.n) * m.bits / 32;
  const uint8_t* row = m.source.zero_points.data + group * words * 4;
  const uint32_t stored = read_at<uint32_t>(row, word);
  if (!m.source.storage.zero_points_minus_one) return stored;
  if (m.minus_one_by_code) return kFours[word % 3];
  return stored + minus_one_constant(m.bits, word);
}

int gptq_zero(const AffineMatrix& m, int row, int group) {
  const int64_t bit = int64_t(row) * m.bits;
  uint64_t both = gptq_zero_word(m, group, bit / 32);
  if (bit % 32 + m.bits > 32) both |= uint64_t(gptq_zero_word(m, group, bit / 32 + 1)) << 32;
  return int(both >> (bit % 32) & ((1u << m.bits) - 1));
}

// Where output 8c + j of an AWQ gemm word is: nibble kAwqPlace[j], the inverse of the order 0, 2, 4, 6, 1, 3, 5, 7.
constexpr int kAwqPlace[] = {0, 4, 1, 5, 2, 6, 3, 7};

int awq_zero(const AffineMatrix& m, int row, int group) {
  const uint8_t* data = m.source.zero_points.data;
  if (m.source.storage.version == AwqVersion::gemm) {
    if (m.bits == 8) return read_at<uint8_t>(data, int64_t(group) * m.n + row);
    const uint32_t word = read_at<uint32_t>(data, int64_t(group) * (m.n / 8) + row / 8);
    return int(word >> (4 * kAwqPlace[row % 8]) & 15);
  }
  if (m.source.storage.version == AwqVersion::gemv_fast) return 0;
  return int(read_at<uint32_t>(data, row * gemv_zero_words(m) + group / 8) >> (4 * (group % 8)) & 15);
}

int zero_point(const AffineMatrix& m, int row, int group) {
  switch (m.source.storage.method) {
    case Method::gptq: return gptq_zero(m, row, group);
    case Method::awq: return awq_zero(m, row, group);
    case Method::pack_quantized: {
      if (m.source.storage.symmetric) return middle(m.bits);
      const int per_word = 32 / m.bits;
      const uint32_t word = read_at<uint32_t>(m.source.zero_points.data, int64_t(row / per_word) * m.groups + group);
      return int(word >> (m.bits * (row % per_word)) & ((1u << m.bits) - 1));
    }
    default:
      if (!m.source.zero_points.data) return middle(8);
      return read_at<int8_t>(m.source.zero_points.data, int64_t(row) * m.groups + group) + 128;
  }
}

float read_float(const TensorBytes& t, int64_t index) {
  if (t.type == "f16") return to_float(f16{read_at<uint16_t>(t.data, index)});
  if (t.type == "bf16") return bf16_to_float(read_at<uint16_t>(t.data, index));
  return read_at<float>(t.data, index);
}

// Index of (row, group) in the scales.
int64_t scale_index(const AffineMatrix& m, int row, int group) {
  const Storage& s = m.source.storage;
  const bool by_group = s.method == Method::gptq || (s.method == Method::awq && s.version != AwqVersion::gemv);
  if (by_group) return int64_t(group) * m.n + row;
  if (m.source.scales.shape.size() == 1) return m.source.scales.shape[0] == 1 ? 0 : row;
  return int64_t(row) * m.source.scales.shape[1] + group;
}

}  // namespace

Result<AffineMatrix> open_affine(const WeightSource& source, int n, int k) {
  AffineMatrix m;
  m.source = source;
  m.n = n;
  m.k = k;
  m.bits = source.storage.method == Method::int_quantized ? 8 : source.storage.bits;
  const int size = source.storage.group_size;
  if (size < 0) return error(Code::invalid_file, "weight ", source.slot, ": group size ", size);
  m.group = size == 0 || size > k ? k : size;
  m.groups = (k + m.group - 1) / m.group;
  m.stores_minimums = source.storage.method == Method::awq && source.storage.version == AwqVersion::gemv_fast;
  if (Status status = check_layout(m); !status.ok()) return status;
  if (m.source.storage.method == Method::gptq && m.bits == 3 && source.storage.zero_points_minus_one) {
    m.minus_one_by_code = all_threes(source.zero_points.data, m.groups, int64_t(n) * 3 / 32);
  }
  if (!source.group_index.data) return m;
  const Checker checker{source};
  Status status = checker.tensor(source.group_index, "group index", {"i32"}, {k});
  if (!status.ok()) return status;
  Result<GroupOrder> order = read_group_order(source.group_index.data, k, m.group, m.groups);
  if (!order.ok()) return error(Code::invalid_file, "weight ", source.slot, ": ", order.status().message());
  m.group_of = std::move(order.value().group_of);
  m.order = std::move(order.value().order);
  m.regular = order.value().regular;
  return m;
}

Status read_parameters(const AffineMatrix& m, int begin, int end, AffineParameters& out) {
  const size_t count = size_t(end - begin) * size_t(m.groups);
  out.scales.resize(count);
  out.zero_points.resize(count);
  out.minimums.resize(m.stores_minimums ? count : 0);
  bool finite = true;
  size_t at = 0;
  for (int row = begin; row < end; ++row) {
    for (int g = 0; g < m.groups; ++g, ++at) {
      const int64_t index = scale_index(m, row, g);
      out.scales[at] = read_float(m.source.scales, index);
      finite = finite && std::isfinite(out.scales[at]);
      out.zero_points[at] = zero_point(m, row, g);
      if (!m.stores_minimums) continue;
      out.minimums[at] = read_float(m.source.zero_points, index);
      finite = finite && std::isfinite(out.minimums[at]);
    }
  }
  if (finite) return Status();
  return error(Code::invalid_file, "weight ", m.source.slot, ": the scales hold a value that is not finite");
}

bool is_symmetric(const AffineMatrix& m) {
  if (m.stores_minimums) return false;
  if (m.source.storage.method == Method::pack_quantized && m.source.storage.symmetric) return true;
  if (m.source.storage.method == Method::int_quantized && !m.source.zero_points.data) return true;
  for (int row = 0; row < m.n; ++row) {
    for (int g = 0; g < m.groups; ++g) {
      if (zero_point(m, row, g) != middle(m.bits)) return false;
    }
  }
  return true;
}

}  // namespace edgeshift
