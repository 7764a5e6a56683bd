#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/matmul_kernels.h"
#include "cpu/ops.h"

namespace edgeshift::cpu {

namespace {

// x of this many bytes stays in a core's L2 cache while a tile's weights pass over it.
constexpr int64_t kRowBlockBytes = 384 << 10;
// Below this many values quantizing on the caller is cheaper than waking the workers.
constexpr int64_t kSerialValues = 8192;

int64_t bundled(int64_t t) { return (t + kRowBundle - 1) / kRowBundle * kRowBundle; }

QuantizedRows carve(void* memory, int64_t t, int64_t padded_k) {
  int64_t blocks = padded_k / 32;
  char* p = static_cast<char*>(memory);
  QuantizedRows rows;
  rows.high = reinterpret_cast<int8_t*>(p);
  p += t * padded_k;
  rows.low = reinterpret_cast<int8_t*>(p);
  p += t * padded_k;
  rows.scales = reinterpret_cast<float*>(p);
  p += t * blocks * 4;
  rows.sums = reinterpret_cast<float*>(p);
  p += t * blocks * 4;
  rows.offsets = reinterpret_cast<int32_t*>(p);
  return rows;
}

// Act-order: quantization groups follow the weight's order of inputs.
void gather(const float* x, const int32_t* permutation, int k, float* out) {
  for (int i = 0; i < k; ++i) out[i] = x[permutation[i]];
}

size_t quantized_bytes(int64_t t, int64_t padded_k) { return size_t(bundled(t) * (2 * padded_k + padded_k / 32 * 12)); }

}  // namespace

// The codes, and a row of inputs in another order for each thread.
size_t matmul_scratch_bytes(int t, int k, int threads) {
  return round_up_64(quantized_bytes(t, (int64_t(k) + 31) / 32 * 32)) + size_t(k) * sizeof(float) * size_t(threads);
}

namespace {

Status quantize_rows(ThreadPool& pool, const MatmulArgs<float>& args, int padded_k, QuantizedRows& rows) {
  const PackedMatrix& w = *args.weight;
  size_t bytes = round_up_64(quantized_bytes(args.t, padded_k));
  Result<void*> scratch = pool.scratch(matmul_scratch_bytes(args.t, w.k, pool.threads()));
  if (!scratch.ok()) return scratch.status();
  rows = carve(scratch.value(), bundled(args.t), padded_k);
  float* gathered = reinterpret_cast<float*>(static_cast<char*>(scratch.value()) + bytes);
  QuantizeKernel quantize = ES_KERNELS(pool.isa(), matmul).quantize;
  int64_t chunk = std::max<int64_t>(1, kSerialValues / w.k);
  pool.for_ranges(args.t, chunk, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const float* x = args.x + i * w.k;
      float* order = gathered + int64_t(worker) * w.k;
      if (w.permutation) gather(x, w.permutation, w.k, order);
      quantize(w.permutation ? order : x, w.k, padded_k, rows, int(i));
    }
  });
  return {};
}

// A sixth of a worker's share: few enough for streaming, small enough to even out.
int64_t tile_chunk(int64_t tiles, int threads) { return std::clamp<int64_t>(tiles / (threads * 6), 1, 64); }

}  // namespace


Status matmul(ThreadPool& pool, const MatmulArgs<float>& args) {
  const PackedMatrix& w = *args.weight;
  if (args.t <= 0) return {};
  const MatmulKernels& kernels = ES_KERNELS(pool.isa(), matmul);
  MatmulKernelArgs job;
  job.weight = &w;
  job.tile = tile_layout(w);
  job.x = args.x;
  job.bias = args.bias;
  job.y = args.y;
  job.y_stride = args.y_stride ? args.y_stride : w.n;
  MatmulKernel kernel = w.precision == Precision::fp16 ? kernels.fp16 : w.precision == Precision::int8 ? kernels.int8 : kernels.int4;
  int64_t row_bytes = w.precision == Precision::fp16 ? int64_t(w.k) * 4 : int64_t(job.tile.padded_k) * 2;
  if (w.precision != Precision::fp16) ES_RETURN_IF_ERROR(quantize_rows(pool, args, job.tile.padded_k, job.xq));
  else if (w.permutation) return {Code::unsupported, "act-order has no meaning for fp16 weights"};
  int rows = int(std::clamp<int64_t>(kRowBlockBytes / row_bytes / kRowBundle * kRowBundle, 16, 512));
  int64_t tiles = tile_count(w.n);
  for (int begin = 0; begin < args.t; begin += rows) {
    job.row_begin = begin;
    job.row_end = std::min(args.t, begin + rows);
    pool.for_ranges(tiles, tile_chunk(tiles, pool.threads()), [&](int64_t first, int64_t last, int) { kernel(job, first, last); });
  }
  return {};
}

}  // namespace edgeshift::cpu
