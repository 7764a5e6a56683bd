#include "cuda/rms_norm.h"

#include "cuda/device.cuh"

namespace edgeshift::cuda {
namespace {

constexpr int kThreads = 256;

// One block per token, four elements per access; the row stays in L1 / L2 between the two passes.
__global__ void rms_norm_kernel(RmsNormArgs<f16> args) {
  __shared__ float squares[kThreads / 32];
  wait_for_previous_kernel();
  let_next_kernel_start();
  size_t row = size_t(blockIdx.x) * args.hidden;
  float4* residual = reinterpret_cast<float4*>(args.residual + row);
  const uint2* delta = args.delta ? reinterpret_cast<const uint2*>(args.delta + row) : nullptr;
  float sum = 0;
  for (int i = threadIdx.x; i < args.hidden / 4; i += kThreads) {
    float4 v = __ldcg(residual + i);
    if (delta) {
      uint2 d = __ldcg(delta + i);
      float2 a = __half22float2(as_half2(d.x)), b = __half22float2(as_half2(d.y));
      v = {v.x + a.x, v.y + a.y, v.z + b.x, v.w + b.y};
      __stcg(residual + i, v);
    }
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += squares[w];
  float inverse = rsqrtf(sum / args.hidden + args.eps);
  for (int i = threadIdx.x; i < args.hidden / 4; i += kThreads) {
    float4 v = __ldcg(residual + i);
    float4 w = reinterpret_cast<const float4*>(args.weight)[i];
    uint2 out = {pack_half2(v.x * inverse * w.x, v.y * inverse * w.y), pack_half2(v.z * inverse * w.z, v.w * inverse * w.w)};
    reinterpret_cast<uint2*>(args.out + row)[i] = out;
  }
}

}  // namespace

Status rms_norm(const RmsNormArgs<f16>& args, const Launch& on) {
  if (args.t < 1 || args.hidden % 4 != 0) return {Code::unsupported, "cuda rms_norm: hidden must be a multiple of 4"};
  return launch(on, rms_norm_kernel, dim3(args.t), kThreads, 0, args);
}

}  // namespace edgeshift::cuda
