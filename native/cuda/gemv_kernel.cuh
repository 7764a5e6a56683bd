// The GEMV kernel; instantiated per precision in gemv_{int4,int8,fp16}.cu.
//
// Every weight byte crosses the memory bus once, so time = bytes / bandwidth plus what each dependency costs. The design
// serves those two terms:
// - One block of 16 warps per multiprocessor walks over strips of 16 rows (persistent). The warps share a strip: warp w
//   takes chunks w, w + 16, ... of k and the partial sums meet in shared memory, one barrier per strip.
// - Each warp keeps a private ring of chunks in flight with cp.async (4 to 5 KB per warp, 70-80 KB per
//   multiprocessor: several times bandwidth x latency). The ring does not stop at strip borders.
// - Weights do not depend on the kernel before: with programmatic dependent launch the ring is filled while that kernel still
//   runs, and two of these blocks fit on a multiprocessor so that it can. In its last strip a block asks L2 for the
//   first bytes of the next matrix, so that memory stays busy while the dependency resolves.
// - Dot products run on the tensor cores (weights as A, up to 8 tokens as B): codes go in raw, offset by a constant, and
//   scale and minimum are applied per group in fp32: y += scale * (sum code x - offset sum x) + minimum * sum x.
//   int4 codes of fragment pair 1 come out of the word as 16 q, so those inputs are staged as x / 16.
#pragma once

#include "cuda/device.cuh"
#include "cuda/matmul.h"

namespace edgeshift::cuda {

inline constexpr int kGemvTokens = 8;
inline constexpr int kGemvWarps = 16;
inline constexpr int kGemvThreads = 32 * kGemvWarps;
#ifndef ES_GEMV_RING_BYTES
#define ES_GEMV_RING_BYTES 5120
#endif

// Slots of a warp's ring.
constexpr int gemv_slots(int slot_bytes) { return ES_GEMV_RING_BYTES / slot_bytes > 2 ? ES_GEMV_RING_BYTES / slot_bytes : 2; }

// Compile-time shape of a ring slot: one chunk of one strip.
template <Precision kPrecision, int kFlushInputs, int kChunkInputs>
struct GemvFormat {
  static constexpr Precision precision = kPrecision;
  static constexpr bool quantized = kPrecision != Precision::fp16;
  static constexpr int flush = kFlushInputs;
  static constexpr int chunk = kChunkInputs;
  static constexpr int quads = chunk / kTileInputs * (kPrecision == Precision::int4 ? 1 : kPrecision == Precision::int8 ? 2 : 4);
  static constexpr int code_bytes = quads * 512;
  static constexpr int flushes = chunk / flush;
  static constexpr int scale_bytes = quantized ? 64 * flushes : 0;
  static constexpr int slot = code_bytes + scale_bytes;
  static constexpr int slots = gemv_slots(slot);
  static constexpr int ring = slot * slots;
};

struct GemvParams {
  const unsigned char* weight;
  size_t strip_bytes;
  int strips, chunks;
  int n, k, t;
  const void* x;
  const float* norm;
  float eps;
  const float* bias;
  void* out;
  Epilogue epilogue;
  Activation activation;
  NextRead next;
};

inline GemvParams gemv_params(const FusedMatmulArgs& args, const StripLayout& layout) {
  const PackedMatrix& w = *args.weight;
  return {static_cast<const unsigned char*>(w.data), layout.strip_bytes(), layout.strips, layout.chunks, w.n, w.k, args.t,
          args.x, args.norm, args.eps, args.bias, args.out, args.epilogue, args.activation, args.next};
}

// Shared memory: rings, activations [t][k padded + 32] (rows half a bank cycle apart), group sums [flushes][2][8], partials [2][16 warps][t][16], squares.
template <class Format>
struct GemvShared {
  static __host__ __device__ int stride(int chunks) { return chunks * Format::chunk + 32; }
  static __host__ __device__ size_t sums_at(int chunks, int t) { return size_t(Format::ring) * kGemvWarps + size_t(2) * stride(chunks) * t; }
  static __host__ __device__ size_t partials_at(int chunks, int t) {
    return sums_at(chunks, t) + (Format::quantized ? size_t(64) * chunks * Format::flushes : 0);
  }
  static __host__ __device__ size_t squares_at(int chunks, int t) { return partials_at(chunks, t) + size_t(128) * kGemvWarps * t; }
  static __host__ __device__ size_t bytes(int chunks, int t) { return squares_at(chunks, t) + 4 * kGemvWarps * kGemvTokens; }
};

// Eight consecutive values of an activation row, as they stand in memory.
struct Eight {
  float v[8];
};

// Written by the kernel before, perhaps on another multiprocessor while this block was resident: read past L1.
__device__ inline Eight load_float8(const float* p) {
  float4 a = __ldcg(reinterpret_cast<const float4*>(p)), b = __ldcg(reinterpret_cast<const float4*>(p) + 1);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ inline float sum_of_squares(const Eight& e) {
  float s = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) s += e.v[i] * e.v[i];
  return s;
}

// Sums of eight inputs, of those for codes of the lower and of the upper fragments; int4's upper ones become sixteenths.
template <class Format>
__device__ inline float2 add_eight(uint4& bits) {
  if (Format::precision == Precision::int4) {
    const half2 sixteenth = __float2half2_rn(1.0f / 16);
    bits.y = as_bits(__hmul2(as_half2(bits.y), sixteenth));
    bits.w = as_bits(__hmul2(as_half2(bits.w), sixteenth));
  }
  float2 a = __half22float2(as_half2(bits.x)), b = __half22float2(as_half2(bits.y));
  float2 c = __half22float2(as_half2(bits.z)), d = __half22float2(as_half2(bits.w));
  return {(a.x + a.y) + (c.x + c.y), (b.x + b.y) + (d.x + d.y)};
}

// Keeps a group's sums: the start value of the sums of codes, and the sum of inputs.
template <class Format>
__device__ inline void keep_sums(float first, float second, float* group) {
  constexpr bool kFour = Format::precision == Precision::int4;
  group[0] = -(kFour ? kInt4Offset : kInt8Offset) * (first + second);
  group[8] = first + (kFour ? 16 : 1) * second;
}

// Writes vector `v` of row `row` to shared memory as f16, and for its group the start value of the sums of codes and
// the sum of inputs.
template <class Format>
__device__ inline void stage_vector(uint4 bits, int row, int v, half* xs, int stride, float* sums) {
  if constexpr (Format::quantized) {
    constexpr int kLanes = Format::flush / 8;
    int lane = threadIdx.x % 32;
    unsigned mask = ((1ull << kLanes) - 1) << (lane / kLanes * kLanes);
    auto [first, second] = add_eight<Format>(bits);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      first += __shfl_xor_sync(mask, first, step);
      second += __shfl_xor_sync(mask, second, step);
    }
    if (lane % kLanes == 0) keep_sums<Format>(first, second, sums + v / kLanes * 16 + row);
  }
  *reinterpret_cast<uint4*>(xs + size_t(row) * stride + v * 8) = bits;
}

// Four rows at once, from `first` on: the lanes of a group halve the rows between them as they add, so that each sum travels once.
// The order of additions is that of stage_vector.
template <class Format>
__device__ inline void stage_four(uint4 (&bits)[4], int first_row, int tokens, int v, half* xs, int stride, float* sums) {
  if constexpr (Format::quantized) {
    constexpr int kLanes = Format::flush / 8;
    const int lane = threadIdx.x % 32;
    const unsigned mask = ((1ull << kLanes) - 1) << (lane / kLanes * kLanes);
    float first[4], second[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 sum = add_eight<Format>(bits[i]);
      first[i] = sum.x, second[i] = sum.y;
    }
    const bool upper = lane & kLanes / 2, odd = lane & kLanes / 4;
    auto halve = [&](float& kept, float other, bool swaps, int step) {
      const float sent = swaps ? kept : other;
      kept = (swaps ? other : kept) + __shfl_xor_sync(mask, sent, step);
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      halve(first[i], first[i + 2], upper, kLanes / 2);
      halve(second[i], second[i + 2], upper, kLanes / 2);
    }
    halve(first[0], first[1], odd, kLanes / 4);
    halve(second[0], second[1], odd, kLanes / 4);
#pragma unroll
    for (int step = kLanes / 8; step > 0; step /= 2) {
      first[0] += __shfl_xor_sync(mask, first[0], step);
      second[0] += __shfl_xor_sync(mask, second[0], step);
    }
    const int row = first_row + 2 * upper + odd;
    if (lane % (kLanes / 4) == 0 && row < tokens) keep_sums<Format>(first[0], second[0], sums + v / kLanes * 16 + row);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (first_row + i < tokens) *reinterpret_cast<uint4*>(xs + size_t(first_row + i) * stride + v * 8) = bits[i];
}

__device__ inline uint4 normalised(const Eight& e, const Eight& weight, float inverse) {
  uint4 bits;
  bits.x = pack_half2(e.v[0] * inverse * weight.v[0], e.v[1] * inverse * weight.v[1]);
  bits.y = pack_half2(e.v[2] * inverse * weight.v[2], e.v[3] * inverse * weight.v[3]);
  bits.z = pack_half2(e.v[4] * inverse * weight.v[4], e.v[5] * inverse * weight.v[5]);
  bits.w = pack_half2(e.v[6] * inverse * weight.v[6], e.v[7] * inverse * weight.v[7]);
  return bits;
}

// Activations to shared memory, normalised when a norm is given; without one kRows rows travel at a time.
template <class Format, int kRows>
__device__ void stage_activations(const GemvParams& p, int tokens, half* xs, float* sums, float* squares) {
  int vectors = p.k / 8, padded = p.chunks * Format::chunk / 8;
  int stride = GemvShared<Format>::stride(p.chunks);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint4 zero = {0, 0, 0, 0};
  if (!p.norm) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    // Several rows at a time, so that one's way hides behind the others'.
    for (int first = 0; first < tokens; first += kRows)
      for (int v = threadIdx.x; v < padded; v += kGemvThreads) {
        const uint4* x = reinterpret_cast<const uint4*>(static_cast<const half*>(p.x) + size_t(first) * p.k) + v;
        uint4 bits[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) bits[i] = v < vectors && first + i < tokens ? __ldcg(x + size_t(i) * vectors) : zero;
        if constexpr (kRows == 4) stage_four<Format>(bits, first, tokens, v, xs, stride, sums);
        else stage_vector<Format>(bits[0], first, v, xs, stride, sums);
      }
    __syncthreads();
    return;
  }
  const float* x = static_cast<const float*>(p.x);
  // Norm weights are cold: fetch this thread's before the wait.
  int first = threadIdx.x;
  Eight weight = {}, held = {};
  if (first < vectors) weight = load_float8(p.norm + first * 8);
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int row = 0; row < tokens; ++row) {
    float s = 0;
    for (int v = threadIdx.x; v < vectors; v += kGemvThreads) {
      Eight e = load_float8(x + size_t(row) * p.k + v * 8);
      s += sum_of_squares(e);
      if (v == first) held = e;
    }
    s = warp_sum(s);
    if (lane == 0) squares[row * kGemvWarps + warp] = s;
  }
  __syncthreads();
  for (int row = 0; row < tokens; ++row) {
    float s = lane < kGemvWarps ? squares[row * kGemvWarps + lane] : 0;
    float inverse = rsqrtf(warp_sum(s) / p.k + p.eps);
    for (int v = threadIdx.x; v < padded; v += kGemvThreads) {
      uint4 bits = zero;
      if (v < vectors) {
        Eight e = v == first && tokens == 1 ? held : load_float8(x + size_t(row) * p.k + v * 8);
        bits = normalised(e, v == first ? weight : load_float8(p.norm + v * 8), inverse);
      }
      stage_vector<Format>(bits, row, v, xs, stride, sums);
    }
  }
  __syncthreads();
}

// Adds a chunk's products to `total`: [0], [1] = row g, tokens 2t, 2t+1; [2], [3] = row g + 8. `from` is the slot plus
// 16 lane, `scales` the slot's scales plus 8 g. kOne: only token 0 counts, so odd columns are left out.
template <class Format, bool kOne>
__device__ inline void add_chunk(const unsigned char* from, const unsigned char* scales, const half* x, const float* sums,
                                 float (&total)[4]) {
  constexpr int kFlushSteps = Format::flush / 16, kQuadSteps = Format::chunk / 16 / Format::quads;
  constexpr bool kFour = Format::precision == Precision::int4, kEight = Format::precision == Precision::int8;
  // Two chains of products, so that one's latency hides behind the other.
  float acc[2][4] = {};
  uint4 pair, codes;
#pragma unroll
  for (int step = 0; step < Format::chunk / 16; ++step) {
    if (Format::quantized && step % kFlushSteps == 0) {
      float2 start;
      if (kOne) start.x = start.y = sums[step / kFlushSteps * 16];
      else start = *reinterpret_cast<const float2*>(sums + step / kFlushSteps * 16);
      acc[0][0] = acc[0][2] = start.x;
      acc[0][1] = acc[0][3] = start.y;
      acc[1][0] = acc[1][1] = acc[1][2] = acc[1][3] = 0;
    }
    if (step % kQuadSteps == 0) codes = *reinterpret_cast<const uint4*>(from + step / kQuadSteps * 512);
    // 16 bytes hold the B operands of two steps.
    if (step % 2 == 0) pair = *reinterpret_cast<const uint4*>(x + step / 2 * 32);
    uint32_t a[4];
    if constexpr (kFour) {
      expand_int4(step % 4 == 0 ? codes.x : step % 4 == 1 ? codes.y : step % 4 == 2 ? codes.z : codes.w, a);
    } else if constexpr (kEight) {
      if (step % 2 == 0) expand_int8(codes.x, codes.y, a);
      else expand_int8(codes.z, codes.w, a);
    } else {
      a[0] = codes.x, a[1] = codes.y, a[2] = codes.z, a[3] = codes.w;
    }
    if (step % 2 == 0) mma_16816(acc[0], a, pair.x, pair.y);
    else mma_16816(acc[1], a, pair.z, pair.w);
    if (Format::quantized && step % kFlushSteps == kFlushSteps - 1) {
      uint2 scale = *reinterpret_cast<const uint2*>(scales + step / kFlushSteps * 64);
      float2 upper = __half22float2(as_half2(scale.x)), lower = __half22float2(as_half2(scale.y));
      float2 sum;
      if (kOne) sum.x = sums[step / kFlushSteps * 16 + 8];
      else sum = *reinterpret_cast<const float2*>(sums + step / kFlushSteps * 16 + 8);
      total[0] = fmaf(upper.y, sum.x, fmaf(upper.x, acc[0][0] + acc[1][0], total[0]));
      total[2] = fmaf(lower.y, sum.x, fmaf(lower.x, acc[0][2] + acc[1][2], total[2]));
      if (!kOne) {
        total[1] = fmaf(upper.y, sum.y, fmaf(upper.x, acc[0][1] + acc[1][1], total[1]));
        total[3] = fmaf(lower.y, sum.y, fmaf(lower.x, acc[0][3] + acc[1][3], total[3]));
      }
    }
  }
  if (!Format::quantized)
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] += acc[0][i] + acc[1][i];
}

// Applies the epilogue to y of row within % 16 and token within / 16 of a strip. Whole warps call it with consecutive
// `within`, because the gate exchanges values; y counts where `valid`.
__device__ inline void finish_value(const GemvParams& p, bool valid, int strip, int within, float y) {
  int token = within / kStripRows, row = within % kStripRows;
  int n = strip * kStripRows + row;
  if (p.bias && n < p.n) y += p.bias[n];
  float other = __shfl_down_sync(~0u, y, 8);
  if (!valid) return;
  if (p.epilogue == Epilogue::gate) {
    int at = strip * 8 + row;
    if (row >= 8) return;
    float gate = activate(p.activation, y);
    static_cast<half*>(p.out)[size_t(token) * (p.n / 2) + at] = to_half(gate * other);
    return;
  }
  if (n >= p.n) return;
  size_t at = size_t(token) * p.n + n;
  if (p.epilogue == Epilogue::store) {
    static_cast<half*>(p.out)[at] = to_half(y);
  } else if (p.epilogue == Epilogue::add) {
    float* out = static_cast<float*>(p.out) + at;
    __stcg(out, __ldcg(out) + y);
  } else {
    static_cast<float*>(p.out)[at] = y;
  }
}

template <class Format, bool kOne>
__global__ void __launch_bounds__(kGemvThreads, 2) gemv_kernel(const __grid_constant__ GemvParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  using Shared = GemvShared<Format>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tokens = kOne ? 1 : p.t;
  half* xs = reinterpret_cast<half*>(shared + size_t(Format::ring) * kGemvWarps);
  float* sums = reinterpret_cast<float*>(shared + Shared::sums_at(p.chunks, tokens));
  float* partials = reinterpret_cast<float*>(shared + Shared::partials_at(p.chunks, tokens));
  float* squares = reinterpret_cast<float*>(shared + Shared::squares_at(p.chunks, tokens));

  // The ring's writing end: this lane's source in units of 16 bytes, and the chunks left of its warp in the strip and in
  // all strips.
  const int per_strip = (p.chunks - warp + kGemvWarps - 1) / kGemvWarps;
  const uint32_t strip_units = uint32_t(p.strip_bytes / 16), strip_step = strip_units * gridDim.x;
  uint32_t strip_source = blockIdx.x * strip_units + warp * (Format::slot / 16) + lane, source = strip_source;
  int in_strip = per_strip;
  int to_fetch = per_strip * ((p.strips - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x));
  const unsigned char* ring = shared + warp * Format::ring + lane * 16;
  auto fetch = [&](int slot) {
    if (to_fetch > 0) {
      const unsigned char* from = p.weight + size_t(source) * 16;
      uint32_t to = shared_address(ring) + slot * Format::slot;
#pragma unroll
      for (int q = 0; q < Format::quads; ++q) copy_async16(to + q * 512, from + q * 512);
      if (Format::quantized && lane < Format::scale_bytes / 16) copy_async16(to + Format::code_bytes, from + Format::code_bytes);
      --to_fetch;
      source += kGemvWarps * Format::slot / 16;
      if (--in_strip == 0) {
        in_strip = per_strip;
        strip_source += strip_step;
        source = strip_source;
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int slot = 0; slot < Format::slots; ++slot) fetch(slot);
  stage_activations<Format, kOne ? 1 : 4>(p, tokens, xs, sums, squares);

  const int g = lane / 4, t = lane % 4;
  const half* x = xs + t * 8 + warp * Format::chunk + (kOne ? 0 : size_t(min(g, tokens - 1)) * Shared::stride(p.chunks));
  const float* group_sums = sums + warp * Format::flushes * 16 + (kOne ? 0 : 2 * t);
  // Partials are [2 buffers][warp][token][16 rows]: one barrier per strip, because a buffer is written again only after the
  // barrier of the strip between.
  const int partial_size = kGemvWarps * tokens * kStripRows;
  float* partial = partials + (warp * tokens + 2 * t) * kStripRows + g;
  const float* reduced = partials + threadIdx.x;
  int slot = 0, flip = partial_size;
  for (int strip = blockIdx.x; strip < p.strips; strip += gridDim.x) {
    if (strip + int(gridDim.x) >= p.strips && threadIdx.x == kGemvThreads - 1) prefetch_share(p.next);
    float total[4] = {};
    for (int i = 0; i < per_strip; ++i) {
      wait_copies<Format::slots - 1>();
      __syncwarp();
      const unsigned char* from = ring + slot * Format::slot;
      add_chunk<Format, kOne>(from, from - lane * 16 + Format::code_bytes + g * 8, x + i * (kGemvWarps * Format::chunk),
                              group_sums + i * (kGemvWarps * Format::flushes * 16), total);
      __syncwarp();
      fetch(slot);
      slot = slot + 1 == Format::slots ? 0 : slot + 1;
    }
    if (2 * t < tokens) {
      partial[0] = total[0];
      partial[8] = total[2];
    }
    if (!kOne && 2 * t + 1 < tokens) {
      partial[kStripRows] = total[1];
      partial[kStripRows + 8] = total[3];
    }
    __syncthreads();
    // Whole warps: the gate exchanges values.
    if (int(threadIdx.x) < (tokens * kStripRows + 31) / 32 * 32) {
      float y = 0;
      if (int(threadIdx.x) < tokens * kStripRows) {
#pragma unroll
        for (int w = 0; w < kGemvWarps; ++w) y += reduced[w * tokens * kStripRows];
      }
      finish_value(p, int(threadIdx.x) < tokens * kStripRows, strip, threadIdx.x, y);
    }
    partial += flip;
    reduced += flip;
    flip = -flip;
  }
}

#ifndef ES_GEMV_BLOCKS
#define ES_GEMV_BLOCKS 2
#endif

template <class Format, bool kOne>
Status launch_gemv_tokens(const GemvParams& params, const Launch& on) {
  size_t shared = GemvShared<Format>::bytes(params.chunks, params.t);
  if (shared > size_t(on.device.shared_bytes)) return {Code::unsupported, "cuda gemv: activations exceed shared memory"};
  ES_RETURN_IF_ERROR(allow_shared(gemv_kernel<Format, kOne>, shared));
  // As many as stay on the device at a time: a block of a second wave would begin with an empty ring and stage all inputs again.
  const int room = (on.device.shared_bytes + 1024) / int(shared + 1024);
  int blocks = std::min(params.strips, std::clamp(room, 1, ES_GEMV_BLOCKS) * on.device.multiprocessors);
  return launch(on, gemv_kernel<Format, kOne>, dim3(blocks), kGemvThreads, shared, params);
}

// Launches the instantiation for a format.
template <class Format>
Status launch_gemv(const GemvParams& params, const Launch& on) {
  return params.t == 1 ? launch_gemv_tokens<Format, true>(params, on) : launch_gemv_tokens<Format, false>(params, on);
}

// One per precision, so that the instantiations compile in separate files.
Status gemv_int4(const GemvParams& params, const StripLayout& layout, const Launch& on);
Status gemv_int8(const GemvParams& params, const StripLayout& layout, const Launch& on);
Status gemv_fp16(const GemvParams& params, const Launch& on);

}  // namespace edgeshift::cuda
