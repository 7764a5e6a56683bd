// Instructions that the kernels share: tensor cores, asynchronous copies, programmatic dependent launch, conversions.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "core/dtype.h"
#include "cuda/next_read.h"
#include "ops/gated_activation.h"

namespace edgeshift::cuda {

// D = A (16 x 16, row fragments) * B (16 x 8) + D, fp16 in, fp32 out.
__device__ inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of f16 out of shared memory: lane l names row l % 8 of matrix l / 8, and gets of each what lane (g, t) holds
// of a fragment: row g, columns 2t and 2t + 1.
__device__ inline void load_matrices(uint32_t shared, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(shared) : "memory");
}
// The same of their transposes.
__device__ inline void load_transposed(uint32_t shared, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(shared) : "memory");
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 and 8 bytes of shared memory by address.
__device__ inline uint4 load_shared16(uint32_t shared) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(shared) : "memory");
  return v;
}
__device__ inline uint2 load_shared8(uint32_t shared) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(shared) : "memory");
  return v;
}

// 16 bytes global to shared, past L1; a streamed weight is read once.
__device__ inline void copy_async16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
// The same, or zeros when `valid` is false.
__device__ inline void copy_async16_or_zero(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Blocks until the kernels before this one have finished; nothing they wrote may be read earlier. A no-op below sm_90
// and in plain launches.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel's blocks start as soon as they fit.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The block's number in its cluster. This and what follows on clusters: sm_90 on, and never called below.
__device__ inline uint32_t cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
// All threads of a cluster's blocks: none gets past the wait before all that have not ended have arrived. What they wrote before
// is then seen.
__device__ inline void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
#endif
}
__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// The same place of shared memory in block `rank` of the cluster.
__device__ inline float load_from_block(uint32_t rank, const float* place) {
  float v = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [there];\n"
      "}\n"
      : "=f"(v) : "r"(shared_address(place)), "r"(rank) : "memory");
#endif
  return v;
}

// Starts bringing `bytes` (a multiple of 16) at `global` (16-byte aligned) into L2; one thread suffices. sm_90 on.
__device__ inline void prefetch_l2(const void* global, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#endif
}

// The calling block's share of a NextRead; call from one thread.
__device__ inline void prefetch_share(NextRead next) {
  size_t piece = (next.bytes / gridDim.x + 15) / 16 * 16;
  size_t begin = piece * blockIdx.x;
  if (piece == 0 || begin + piece > next.bytes) return;
  prefetch_l2(static_cast<const char*>(next.data) + begin, uint32_t(piece));
}

// (v & mask) | bits in one instruction.
__device__ inline uint32_t mask_or(uint32_t v, uint32_t mask, uint32_t bits) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(v), "r"(mask), "r"(bits));
  return r;
}

// Offsets that the raw conversions below leave on every weight.
inline constexpr float kInt4Offset = 1024;        // 0x6400 | q = 1024 + q in f16
inline constexpr float kInt8Offset = 1024 + 128;  // and codes are stored + 128

// Eight int4 codes of a lane's word to a step's A fragment (exact): a0, a1 = 1024 + q; a2, a3 = 1024 + 16 q.
__device__ inline void expand_int4(uint32_t word, uint32_t (&a)[4]) {
  uint32_t high = word >> 8;
  a[0] = mask_or(word, 0x000f000f, 0x64006400);
  a[1] = mask_or(high, 0x000f000f, 0x64006400);
  a[2] = mask_or(word, 0x00f000f0, 0x64006400);
  a[3] = mask_or(high, 0x00f000f0, 0x64006400);
}
// Eight int8 codes of a step, each + kInt8Offset (exact).
__device__ inline void expand_int8(uint32_t w0, uint32_t w1, uint32_t (&a)[4]) {
  a[0] = __byte_perm(w0, 0x64646464, 0x4140);
  a[1] = __byte_perm(w0, 0x64646464, 0x4342);
  a[2] = __byte_perm(w1, 0x64646464, 0x4140);
  a[3] = __byte_perm(w1, 0x64646464, 0x4342);
}

__device__ inline half2 as_half2(uint32_t v) { return *reinterpret_cast<half2*>(&v); }
__device__ inline uint32_t as_bits(half2 v) { return *reinterpret_cast<uint32_t*>(&v); }
// Halves of activations are the nearest finite ones: an infinity would be NaN after the next norm, for good.
__device__ inline uint32_t pack_half2(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ inline __half to_half(float v) {
  unsigned short r;
  asm("cvt.rn.satfinite.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
  return __ushort_as_half(r);
}
__device__ inline float to_float(f16 v) { return __half2float(*reinterpret_cast<const __half*>(&v)); }
__device__ inline f16 to_f16(float v) {
  __half h = to_half(v);
  return *reinterpret_cast<f16*>(&h);
}

// Transposes an 8 x 8 matrix of f16: lane (g, t) gives row g, columns 2t, 2t+1 and gets the same place of the transpose.
__device__ inline uint32_t transpose_8x8(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(~0u, v, mask);
  return v;
}

__device__ inline float silu(float v) { return __fdividef(v, 1 + __expf(-v)); }
__device__ inline float gelu_tanh(float v) { return 0.5f * v * (1 + tanhf(0.7978845608f * (v + 0.044715f * v * v * v))); }
__device__ inline float activate(Activation activation, float v) { return activation == Activation::silu ? silu(v) : gelu_tanh(v); }

}  // namespace edgeshift::cuda
