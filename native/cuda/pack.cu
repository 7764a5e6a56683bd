#include "cuda/pack.h"

#include "cuda/check.h"

namespace edgeshift::cuda {
namespace {

// Everything the kernels need of a CanonicalMatrix and its layout.
struct PackJob {
  CanonicalMatrix source;
  StripLayout layout;
  RowOrder order;
  unsigned char* out;
  int padded_k;  // of the source
};

__device__ int logical_row(const PackJob& job, int strip, int row) {
  if (job.order == RowOrder::plain) return strip * kStripRows + row;
  return row < 8 ? strip * 8 + row : job.source.n / 2 + strip * 8 + row - 8;
}

// Code of one weight as the layout stores it; padding becomes 0 (its scale or its input is 0).
__device__ unsigned stored_code(const PackJob& job, int row, int k) {
  const CanonicalMatrix& m = job.source;
  if (row >= m.n || k >= m.k) return 0;
  if (m.precision == Precision::fp16) return m.values[size_t(row) * m.k + k].bits;
  size_t at = size_t(row) * job.padded_k + k;
  if (m.precision == Precision::int8) return static_cast<const unsigned char*>(m.codes)[at] ^ 0x80;
  return static_cast<const unsigned char*>(m.codes)[at / 2] >> (at % 2 * 4) & 15;
}

// One thread writes one 32-bit word of codes.
__global__ void pack_codes(PackJob job, size_t words) {
  size_t index = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  if (index >= words) return;
  const StripLayout& layout = job.layout;
  int words_per_chunk = layout.code_bytes / 4;
  int strip = int(index / (size_t(words_per_chunk) * layout.chunks));
  int word = int(index % (size_t(words_per_chunk) * layout.chunks));
  int chunk = word / words_per_chunk, quad = word / 128, lane = word % 128 / 4, part = word % 4;
  int g = lane / 4, t = lane % 4;
  unsigned value = 0;
  auto code = [&](int tile, int step, int reg, int half) {
    int k = tile * kTileInputs + step / 2 * 32 + t * 8 + step % 2 * 4 + (reg / 2) * 2 + half;
    return stored_code(job, logical_row(job, strip, g + (reg % 2) * 8), k);
  };
  if (job.source.precision == Precision::int4) {
    for (int i = 0; i < 8; ++i) value |= code(quad, part, i % 2 * 2 + i % 4 / 2, i / 4) << (i * 4);
  } else if (job.source.precision == Precision::int8) {
    for (int i = 0; i < 4; ++i) value |= code(quad / 2, quad % 2 * 2 + part / 2, part % 2 * 2 + i / 2, i % 2) << (i * 8);
  } else {
    for (int i = 0; i < 2; ++i) value |= code(quad / 4, quad % 4, part, i) << (i * 16);
  }
  unsigned char* out = job.out + strip * layout.strip_bytes() + size_t(chunk) * layout.chunk_bytes();
  reinterpret_cast<unsigned*>(out)[word % words_per_chunk] = value;
}

// One thread writes scale and minimum of one row for `flush` inputs.
__global__ void pack_scales(PackJob job, size_t count) {
  size_t index = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  if (index >= count) return;
  const CanonicalMatrix& m = job.source;
  const StripLayout& layout = job.layout;
  int strip = int(index / (size_t(layout.flushes()) * kStripRows));
  int flush = int(index / kStripRows % layout.flushes());
  int row = int(index % kStripRows);
  int logical = logical_row(job, strip, row);
  int groups = job.padded_k / m.group;
  int group = flush * layout.flush / m.group;
  f16 scale{0}, minimum{0};
  if (logical < m.n && group < groups) {
    scale = m.scales[size_t(logical) * groups + group];
    if (m.minimums) minimum = m.minimums[size_t(logical) * groups + group];
  }
  int per_chunk = layout.chunk / layout.flush;
  unsigned char* scales = job.out + strip * layout.strip_bytes() + size_t(flush / per_chunk) * layout.chunk_bytes() +
                          layout.code_bytes + flush % per_chunk * 64;
  f16* pair = reinterpret_cast<f16*>(scales) + (row % 8 * 2 + row / 8) * 2;
  pair[0] = scale;
  pair[1] = minimum;
}

}  // namespace

size_t packed_bytes(const CanonicalMatrix& source) {
  return strip_layout(source.precision, source.n, source.k, source.group).bytes();
}

Status pack(const CanonicalMatrix& source, RowOrder order, void* data, PackedMatrix& out, cudaStream_t stream) {
  bool quantized = source.precision != Precision::fp16;
  if (source.n < 1 || source.k < 1 || (quantized && (source.group < 32 || source.group % 32 != 0)))
    return {Code::invalid_argument, "cuda pack: shape and group do not fit"};
  if (source.precision == Precision::int4 && !source.minimums)
    return {Code::invalid_argument, "cuda pack: int4 needs minimums"};
  if (source.permutation) return {Code::invalid_argument, "cuda pack: the order of the inputs stays with the caller"};
  if (order == RowOrder::gate_up && source.n % kStripRows != 0)
    return {Code::unsupported, "cuda pack: gate_up rows must be a multiple of 16"};
  PackJob job{source, strip_layout(source.precision, source.n, source.k, source.group), order,
              static_cast<unsigned char*>(data), source.padded_k()};
  const StripLayout& layout = job.layout;
  size_t words = size_t(layout.code_bytes) / 4 * layout.chunks * layout.strips;
  pack_codes<<<unsigned((words + 255) / 256), 256, 0, stream>>>(job, words);
  if (quantized) {
    size_t count = size_t(layout.flushes()) * kStripRows * layout.strips;
    pack_scales<<<unsigned((count + 255) / 256), 256, 0, stream>>>(job, count);
  }
  ES_CUDA_RETURN_IF_ERROR(cudaGetLastError());
  describe_packed(source, data, out);
  return {};
}

void describe_packed(const CanonicalMatrix& shape, void* data, PackedMatrix& out) {
  out = {shape.precision, shape.n, shape.k, shape.group, shape.minimums != nullptr, nullptr, data, packed_bytes(shape)};
}

}  // namespace edgeshift::cuda
