// The slice kernel: f16 weights and 9 to 16 tokens at memory bandwidth.
//
// As in gemv (gemv_kernel.cuh) the warps of a block share strips of 16 rows and each keeps a private ring of weight chunks
// in flight. Here a warp keeps to one slice of 256 inputs for all its strips, so that the slice of the activations stays in
// its registers as B fragments: 16 tokens need no room in shared memory, and no barrier stands between the wait for the
// kernel before and the first product. Matrices of more slices than a block has warps are cut into parts: a block takes one
// part, and the last block of some strips to arrive sums their parts in order.
#include <algorithm>

#include "cuda/gemv_kernel.cuh"

namespace edgeshift::cuda {
namespace {

using Format = GemvFormat<Precision::fp16, 64, 64>;

constexpr int kSliceInputs = 256;
constexpr int kChunks = kSliceInputs / Format::chunk;
constexpr int kColumns = 2;  // of 8 tokens
constexpr int kTokens = 8 * kColumns;
constexpr int kSlots = 5;
constexpr int kRing = kSlots * Format::slot;
constexpr int kMostBatch = 4, kMostBatches = 32;
constexpr size_t kRingBytes = size_t(kGemvWarps) * kRing;

struct SliceParams {
  GemvParams product;
  int slices;       // of the whole k
  int parts;        // blocks that share a strip
  int part_slices;  // of a part, at most a block's warps
  int batch;        // strips between two barriers
  float* partials;  // [parts][strips][t][16]
  int* counters;    // [columns of blocks][kMostBatches], zero between calls
};

// Rings and two buffers of the partial sums of `batch` strips.
size_t shared_bytes(int batch, int t) { return kRingBytes + size_t(2) * batch * kGemvWarps * t * kStripRows * 4; }

using SliceInputs = uint4[kColumns][kSliceInputs / 32];

// The warp's slice as B fragments; tokens past the last repeat it.
__device__ inline void load_slice(const GemvParams& p, int slice, SliceInputs& x) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const half* row = static_cast<const half*>(p.x) + size_t(min(c * 8 + g, p.t - 1)) * p.k;
#pragma unroll
    for (int j = 0; j < kSliceInputs / 32; ++j) {
      int at = slice * kSliceInputs + j * 32 + t * 8;
      x[c][j] = at < p.k ? __ldcg(reinterpret_cast<const uint4*>(row + at)) : uint4{0, 0, 0, 0};
    }
  }
}

// Adds chunk kChunk of the slice to `total` ([column][row g: tokens 2t, 2t + 1; row g + 8]). `from` is the slot plus 16 lane.
template <int kChunk>
__device__ inline void add_slice_chunk(const unsigned char* from, const SliceInputs& x, float (&total)[kColumns][4]) {
  float acc[kColumns][4] = {};
#pragma unroll
  for (int step = 0; step < Format::chunk / 16; ++step) {
    const uint4 codes = *reinterpret_cast<const uint4*>(from + step * 512);
    const uint32_t a[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const uint4& b = x[c][kChunk * (Format::chunk / 32) + step / 2];
      if (step % 2 == 0) mma_16816(acc[c], a, b.x, b.y);
      else mma_16816(acc[c], a, b.z, b.w);
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) total[c][i] += acc[c][i];
}

__global__ void __launch_bounds__(kGemvThreads, 1) slice_kernel(const __grid_constant__ SliceParams s) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ bool last;
  const GemvParams& p = s.product;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tokens = p.t;
  const int part = int(blockIdx.x) % s.parts, column = int(blockIdx.x) / s.parts, columns = int(gridDim.x) / s.parts;
  const int warps = min(s.part_slices, s.slices - part * s.part_slices), slice = part * s.part_slices + warp;
  const bool works = warp < warps;
  float* partials = reinterpret_cast<float*>(shared + kRingBytes);

  // The ring's writing end, in units of 16 bytes.
  const int per_strip = works ? min(kChunks, p.chunks - slice * kChunks) : 0;
  const uint32_t strip_units = uint32_t(p.strip_bytes / 16), strip_step = strip_units * columns;
  uint32_t strip_source = column * strip_units + slice * (kChunks * Format::slot / 16) + lane, source = strip_source;
  int in_strip = per_strip, to_fetch = per_strip * ((p.strips - column + columns - 1) / columns);
  const unsigned char* ring = shared + warp * kRing + lane * 16;
  auto fetch = [&](int slot) {
    if (to_fetch > 0) {
      const unsigned char* from = p.weight + size_t(source) * 16;
      uint32_t to = shared_address(ring) + slot * Format::slot;
#pragma unroll
      for (int q = 0; q < Format::quads; ++q) copy_async16(to + q * 512, from + q * 512);
      --to_fetch;
      source += Format::slot / 16;
      if (--in_strip == 0) {
        in_strip = per_strip;
        strip_source += strip_step;
        source = strip_source;
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) fetch(slot);
  wait_for_previous_kernel();
  let_next_kernel_start();
  SliceInputs x;
  if (works) load_slice(p, slice, x);

  const int g = lane / 4, t = lane % 4;
  const int strip_floats = tokens * kStripRows, buffer_floats = s.batch * kGemvWarps * strip_floats;
  int slot = 0, held = 0, buffer = 0, batches = 0;
  auto next_chunk = [&](auto chunk, float(&total)[kColumns][4]) {
    constexpr int kChunk = decltype(chunk)::value;
    if (kChunk >= per_strip) return;
    wait_copies<kSlots - 1>();
    __syncwarp();
    add_slice_chunk<kChunk>(ring + slot * Format::slot, x, total);
    __syncwarp();
    fetch(slot);
    slot = slot + 1 == kSlots ? 0 : slot + 1;
  };
  for (int strip = column; strip < p.strips; strip += columns) {
    const bool ends = strip + columns >= p.strips;
    if (ends && threadIdx.x == kGemvThreads - 1) prefetch_share(p.next);
    if (works) {
      float total[kColumns][4] = {};
      next_chunk(std::integral_constant<int, 0>{}, total);
      next_chunk(std::integral_constant<int, 1>{}, total);
      next_chunk(std::integral_constant<int, 2>{}, total);
      next_chunk(std::integral_constant<int, 3>{}, total);
      float* partial = partials + buffer + (held * kGemvWarps + warp) * strip_floats + g;
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (int token = c * 8 + 2 * t + i; token < tokens) {
            partial[token * kStripRows] = total[c][i];
            partial[token * kStripRows + 8] = total[c][i + 2];
          }
    }
    if (++held < s.batch && !ends) continue;
    // Strips `first`, first + columns, ..., strip are done.
    __syncthreads();
    const int first = strip - (held - 1) * columns, values = held * strip_floats;
    auto each = [&](auto&& use) {
      // Whole warps: the epilogue exchanges values.
      for (int i = threadIdx.x; i < (values + 31) / 32 * 32; i += kGemvThreads) {
        int index = i / strip_floats;
        use(i < values, index, first + index * columns, i - index * strip_floats);
      }
    };
    auto sum_warps = [&](int index, int within) {
      const float* from = partials + buffer + index * kGemvWarps * strip_floats + within;
      float y = 0;
      for (int w = 0; w < warps; ++w) y += from[w * strip_floats];
      return y;
    };
    if (s.parts == 1) {
      each([&](bool valid, int index, int at, int within) {
        finish_value(p, valid, at, within, valid ? sum_warps(index, within) : 0);
      });
    } else {
      each([&](bool valid, int index, int at, int within) {
        if (valid) __stcg(s.partials + (size_t(part) * p.strips + at) * strip_floats + within, sum_warps(index, within));
      });
      __threadfence();
      __syncthreads();
      int* counter = s.counters + column * kMostBatches + batches;
      if (threadIdx.x == 0) last = atomicAdd(counter, 1) == s.parts - 1;
      __syncthreads();
      if (last) {
        __threadfence();
        if (threadIdx.x == 0) *counter = 0;
        each([&](bool valid, int, int at, int within) {
          float y = 0;
          if (valid)
            for (int other = 0; other < s.parts; ++other)
              y += __ldcg(s.partials + (size_t(other) * p.strips + at) * strip_floats + within);
          finish_value(p, valid, at, within, y);
        });
      }
    }
    buffer = buffer_floats - buffer;
    held = 0;
    ++batches;
  }
}

// How a matrix is cut: its inputs into slices and those into parts, its strips over columns of blocks in rounds.
struct SliceCut {
  SliceCut(const PackedMatrix& w, const DeviceTraits& device) {
    const int strips = strip_layout(w.precision, w.n, w.k, w.group).strips;
    slices = (w.k + kSliceInputs - 1) / kSliceInputs;
    parts = (slices + kGemvWarps - 1) / kGemvWarps;
    columns = std::min(strips, std::max(1, device.multiprocessors / parts));
    rounds = (strips + columns - 1) / columns;
  }
  // Parts of sums meet by a counter for each batch of rounds.
  bool counters_suffice() const { return parts == 1 || (rounds <= kMostBatches && columns * kMostBatches <= kMatmulCounters); }

  int slices, parts, columns, rounds;
};

}  // namespace

bool slices_fit(const PackedMatrix& weight, int t, const DeviceTraits& device) {
  return weight.precision == Precision::fp16 && t > kGemvTokens && t <= kTokens && weight.k % 8 == 0 &&
         shared_bytes(1, t) <= size_t(device.shared_bytes) && SliceCut(weight, device).counters_suffice();
}

Status slice_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on) {
  const PackedMatrix& w = *args.weight;
  if (args.norm) return {Code::invalid_argument, "cuda slice_matmul: no norm"};
  if (w.permutation) return {Code::invalid_argument, "cuda slice_matmul: inputs in act-order are gathered by the caller"};
  if (!slices_fit(w, args.t, on.device)) return {Code::unsupported, "cuda slice_matmul: f16 weights, 9 to 16 tokens"};
  const StripLayout layout = strip_layout(w.precision, w.n, w.k, w.group);
  SliceParams params{};
  params.product = gemv_params(args, layout);
  const SliceCut cut(w, on.device);
  params.slices = cut.slices;
  params.parts = cut.parts;
  params.part_slices = (params.slices + params.parts - 1) / params.parts;
  params.counters = static_cast<int*>(workspace);
  params.partials = reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + size_t(kMatmulCounters) * 4);
  params.batch = 1;
  while (params.batch < std::min(cut.rounds, kMostBatch) && shared_bytes(params.batch + 1, args.t) <= size_t(on.device.shared_bytes)) ++params.batch;
  const size_t shared = shared_bytes(params.batch, args.t);
  ES_RETURN_IF_ERROR(allow_shared(slice_kernel, shared));
  return launch(on, slice_kernel, dim3(cut.columns * params.parts), kGemvThreads, shared, params);
}

}  // namespace edgeshift::cuda
