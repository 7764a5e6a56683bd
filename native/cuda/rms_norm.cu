#include "cuda/rms_norm.h"

#include "cuda/device.cuh"
#include "cuda/input_tiles.h"

namespace edgeshift::cuda {
namespace {

// Four neighbouring outputs, `stride` vectors from part to part. Several travel at a time.
__device__ inline float4 sum_of_parts(const OutputParts& parts, size_t at, size_t stride) {
  constexpr int kTogether = 6;
  const float4* from = reinterpret_cast<const float4*>(parts.data) + at;
  float4 sum = {};
  for (int first = 0; first < parts.count; first += kTogether) {
    float4 values[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) values[j] = first + j < parts.count ? __ldcg(from + (first + j) * stride) : float4();
#pragma unroll
    for (int j = 0; j < kTogether; ++j) sum = {sum.x + values[j].x, sum.y + values[j].y, sum.z + values[j].z, sum.w + values[j].w};
  }
  return sum;
}

// One block per token; the row stays in registers, kVectors of four elements per thread at most. Weights are cold: they are
// fetched before the wait.
template <int kThreads, int kVectors>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormArgs<f16> args, OutputParts parts, size_t tile_bytes) {
  __shared__ float squares[kThreads / 32];
  const int vectors = args.hidden / 4, lane = threadIdx.x % 32;
  const size_t row = size_t(blockIdx.x) * args.hidden;
  auto each = [&](auto f) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int i = threadIdx.x + j * kThreads;
      if (i < vectors) f(j, i);
    }
  };
  float4 weight[kVectors], value[kVectors];
  each([&](int j, int i) { weight[j] = __ldg(reinterpret_cast<const float4*>(args.weight) + i); });
  // Before the wait: the next kernel's weights are on their way while the kernel before still sums its last outputs.
  let_next_kernel_start();
  wait_for_previous_kernel();
  float4* residual = reinterpret_cast<float4*>(args.residual + row);
  each([&](int j, int i) { value[j] = __ldcg(residual + i); });
  if (parts.count > 0)
    each([&](int j, int i) {
      const float4 sum = sum_of_parts(parts, row / 4 + i, size_t(args.t) * vectors);
      value[j] = {value[j].x + sum.x, value[j].y + sum.y, value[j].z + sum.z, value[j].w + sum.w};
      __stcg(residual + i, value[j]);
    });
  if (args.delta)
    each([&](int j, int i) {
      const uint2 d = __ldcg(reinterpret_cast<const uint2*>(args.delta + row) + i);
      const float2 a = __half22float2(as_half2(d.x)), b = __half22float2(as_half2(d.y));
      value[j] = {value[j].x + a.x, value[j].y + a.y, value[j].z + b.x, value[j].w + b.y};
      __stcg(residual + i, value[j]);
    });
  float sum = 0;
  each([&](int j, int) {
    const float4 v = value[j];
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  });
  sum = warp_sum(sum);
  if (lane == 0) squares[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = warp_sum(lane < kThreads / 32 ? squares[lane] : 0.0f);
  const float inverse = rsqrtf(sum / args.hidden + args.eps);
  each([&](int j, int i) {
    const float4 v = value[j], w = weight[j];
    const uint2 out = {pack_half2(v.x * inverse * w.x, v.y * inverse * w.y), pack_half2(v.z * inverse * w.z, v.w * inverse * w.w)};
    if (tile_bytes == 0) {
      reinterpret_cast<uint2*>(args.out + row)[i] = out;
      return;
    }
    unsigned char* to = reinterpret_cast<unsigned char*>(args.out);
    *reinterpret_cast<uint32_t*>(to + tiled_input(blockIdx.x, i * 4, tile_bytes)) = out.x;
    *reinterpret_cast<uint32_t*>(to + tiled_input(blockIdx.x, i * 4 + 2, tile_bytes)) = out.y;
  });
}

template <int kThreads, int kVectors>
Status launch_rms_norm(const RmsNormArgs<f16>& args, const OutputParts& parts, size_t tile_bytes, const Launch& on) {
  return launch(on, rms_norm_kernel<kThreads, kVectors>, dim3(args.t), kThreads, 0, args, parts, tile_bytes);
}

}  // namespace

Status rms_norm(const RmsNormArgs<f16>& args, const OutputParts& parts, size_t tile_bytes, const Launch& on) {
  if (args.t < 1 || args.hidden % 4 != 0 || args.hidden > 32768)
    return {Code::unsupported, "cuda rms_norm: hidden must be a multiple of 4, 32,768 at most"};
  if (args.hidden <= 1024) return launch_rms_norm<256, 1>(args, parts, tile_bytes, on);
  if (args.hidden <= 4096) return launch_rms_norm<1024, 1>(args, parts, tile_bytes, on);
  if (args.hidden <= 8192) return launch_rms_norm<1024, 2>(args, parts, tile_bytes, on);
  if (args.hidden <= 16384) return launch_rms_norm<1024, 4>(args, parts, tile_bytes, on);
  return launch_rms_norm<1024, 8>(args, parts, tile_bytes, on);
}

}  // namespace edgeshift::cuda
