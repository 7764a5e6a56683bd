#include "cuda/stored.h"

#include <cuda_fp16.h>

#include "cuda/device.cuh"
#include "quant/affine_matrix.h"
#include "quant/finite_half.h"

namespace edgeshift::cuda {
namespace {

constexpr int kThreads = 256;

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Nibble of output 8c + j in a word of AWQ's gemm layout (quant/affine_codes.cpp).
__device__ int awq_shift(int row) { return ((row & 1) * 4 + (row % 8) / 2) * 4; }

__device__ uint32_t code_at(const StoredCodes& m, int row, int input) {
  const int per_word = 32 / m.bits;
  const uint32_t mask = (1u << m.bits) - 1;
  if (m.interleaved) return m.codes[int64_t(input) * (m.n / 8) + row / 8] >> awq_shift(row) & mask;
  const int64_t words = m.k / per_word;
  const int64_t at = m.method == Method::gptq ? int64_t(input / per_word) * m.n + row : row * words + input / per_word;
  return m.codes[at] >> input % per_word * m.bits & mask;
}

__device__ int zero_at(const StoredCodes& m, int row, int group) {
  const int per_word = 32 / m.bits;
  const uint32_t mask = (1u << m.bits) - 1;
  if (!m.zeros) return 1 << (m.bits - 1);
  if (m.method == Method::gptq) {
    const uint32_t word = m.zeros[int64_t(group) * (m.n / per_word) + row / per_word];
    const uint32_t ones = !m.minus_one ? 0u : m.bits == 4 ? 0x11111111u : 0x01010101u;
    return int((word + ones) >> row % per_word * m.bits & mask);
  }
  if (m.interleaved) return int(m.zeros[int64_t(group) * (m.n / 8) + row / 8] >> awq_shift(row) & mask);
  if (m.method == Method::awq) return int(m.zeros[row * m.row_zeros + group / 8] >> group % 8 * 4 & mask);
  return int(m.zeros[int64_t(row / per_word) * m.groups + group] >> row % per_word * m.bits & mask);
}

__device__ float scale_at(const StoredCodes& m, int row, int group) {
  const int64_t at = m.row_scales > 0 ? row * m.row_scales + group : int64_t(group) * m.n + row;
  if (m.scale_type == BlockType::f32) return static_cast<const float*>(m.scales)[at];
  const unsigned short bits = static_cast<const unsigned short*>(m.scales)[at];
  return m.scale_type == BlockType::f16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t(bits) << 16);
}

// One thread writes the codes of one 32-bit word of a row. Neighbours take the next row where the file's words lie so.
__global__ void convert_codes(const __grid_constant__ StoredCodes m, uint32_t* out) {
  const int per_word = 32 / m.bits, words = m.k / per_word;
  const int64_t index = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (index >= int64_t(m.n) * words) return;
  const bool by_row = m.method == Method::gptq || m.interleaved;
  const int row = int(by_row ? index % m.n : index / words), word = int(by_row ? index / m.n : index % words);
  uint32_t value = 0;
  for (int i = 0; i < per_word; ++i) {
    const int place = word * per_word + i;
    value |= code_at(m, row, m.order ? m.order[place] : place) << i * m.bits;
  }
  // 8-bit codes are kept signed.
  out[int64_t(row) * words + word] = m.bits == 8 ? value ^ 0x80808080u : value;
}

__device__ bool fits_half(float value) { return fabsf(value) <= kLargestHalf; }

// One thread writes scale and minimum of one group, as AffineReader does.
__global__ void convert_parameters(const __grid_constant__ StoredCodes m, unsigned short* scales, unsigned short* minimums, int32_t* bad) {
  const int64_t index = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (index >= int64_t(m.n) * m.groups) return;
  const int row = int(index % m.n), group = int(index / m.n);
  const float scale = scale_at(m, row, group);
  const float minimum = float((m.bits == 8 ? 128 : 0) - zero_at(m, row, group)) * scale;
  if (!fits_half(scale) || !fits_half(minimum)) *bad = 1;
  const int64_t at = int64_t(row) * m.groups + group;
  scales[at] = __half_as_ushort(__float2half_rn(scale));
  if (minimums) minimums[at] = __half_as_ushort(__float2half_rn(minimum));
}

// `out` may be `in`.
__global__ void convert_halves(const unsigned short* in, bool brain, size_t count, unsigned short* out, int32_t* bad) {
  const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  const float value = brain ? __uint_as_float(uint32_t(in[i]) << 16) : __half2float(__ushort_as_half(in[i]));
  if (!fits_half(value)) *bad = 1;
  if (brain) out[i] = __half_as_ushort(__float2half_rn(value));
}

std::optional<BlockType> float_type(const std::string& name) {
  Result<BlockType> type = parse_block_type(name);
  if (!type.ok() || block_weights(type.value()) != 1) return std::nullopt;
  return type.value();
}

std::optional<StoredPlan> plan_codes(const AffineMatrix& m, CanonicalForm form) {
  const Storage& s = m.source.storage;
  const bool rows = s.method == Method::pack_quantized || (s.method == Method::awq && s.version == AwqVersion::gemv);
  const bool words = s.method == Method::gptq || (s.method == Method::awq && s.version == AwqVersion::gemm);
  const int bits = form.precision == Precision::int4 ? 4 : 8;
  const std::optional<BlockType> scale_type = float_type(m.source.scales.type);
  if ((!rows && !words) || m.bits != bits || form.group != m.group || m.k % m.group != 0 || m.k % (32 / bits) != 0 || !scale_type) return std::nullopt;
  StoredPlan plan;
  plan.codes = {s.method, s.method == Method::awq && words, s.zero_points_minus_one, bits, m.n, m.k, m.group, m.groups, *scale_type};
  if (rows) plan.codes.row_scales = m.source.scales.shape[1];
  const TensorBytes& zeros = m.source.zero_points;
  const bool has_zeros = !(s.method == Method::pack_quantized && s.symmetric);
  if (has_zeros && s.method == Method::awq && rows) plan.codes.row_zeros = zeros.shape[1];
  plan.main = {m.source.codes.data, m.source.codes.bytes};
  plan.scales = {m.source.scales.data, m.source.scales.bytes};
  if (has_zeros) plan.zeros = {zeros.data, zeros.bytes};
  plan.order = m.order;
  return plan;
}

}  // namespace

std::array<std::span<const uint8_t>, 4> StoredPlan::tensors() const {
  return {main, scales, zeros, {reinterpret_cast<const uint8_t*>(order.data()), order.size_bytes()}};
}

size_t StoredPlan::bytes() const {
  size_t sum = 0;
  for (const std::span<const uint8_t> tensor : tensors()) sum += aligned(tensor.size());
  return sum;
}

std::optional<StoredPlan> plan_stored(const WeightReader& reader, CanonicalForm form) {
  if (form.precision == Precision::fp16) {
    const std::optional<BlockType> floats = reader.floats();
    if (floats != BlockType::f16 && floats != BlockType::bf16) return std::nullopt;
    StoredPlan plan;
    plan.is_floats = true;
    plan.floats = *floats;
    plan.main = reader.bytes_of(0, reader.n());
    return plan;
  }
  const AffineMatrix* kept = reader.kept(form.precision);
  return kept ? plan_codes(*kept, form) : std::nullopt;
}

Status convert_stored(const StoredPlan& plan, const char* raw, const CanonicalRows& out, int32_t* bad, const Launch& on) {
  auto blocks = [](size_t count) { return dim3(unsigned((count + kThreads - 1) / kThreads)); };
  if (plan.is_floats) {
    const size_t count = plan.main.size() / 2;
    return launch(on, convert_halves, blocks(count), kThreads, 0, reinterpret_cast<const unsigned short*>(raw), plan.floats == BlockType::bf16, count,
                  static_cast<unsigned short*>(out.codes), bad);
  }
  StoredCodes m = plan.codes;
  m.codes = reinterpret_cast<const uint32_t*>(raw);
  m.scales = raw += aligned(plan.main.size());
  raw += aligned(plan.scales.size());
  if (!plan.zeros.empty()) m.zeros = reinterpret_cast<const uint32_t*>(raw);
  raw += aligned(plan.zeros.size());
  if (!plan.order.empty()) m.order = reinterpret_cast<const int32_t*>(raw);
  const size_t words = size_t(m.n) * size_t(m.k) * size_t(m.bits) / 32;
  ES_RETURN_IF_ERROR(launch(on, convert_codes, blocks(words), kThreads, 0, m, static_cast<uint32_t*>(out.codes)));
  return launch(on, convert_parameters, blocks(size_t(m.n) * size_t(m.groups)), kThreads, 0, m, reinterpret_cast<unsigned short*>(out.scales),
                reinterpret_cast<unsigned short*>(out.minimums), bad);
}

}  // namespace edgeshift::cuda
