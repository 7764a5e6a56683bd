// Instructions of sm_90a: warpgroup products, transaction barriers, bulk copies.
#pragma once

#include "cuda/device.cuh"

namespace edgeshift::cuda {

__device__ inline void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives and announces `bytes` that copies will bring.
__device__ inline void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the phase of this parity has completed.
__device__ inline void wait_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier), "r"(parity) : "memory");
}
// `bytes` (a multiple of 16) global to shared; the barrier counts them.
__device__ inline void copy_bulk(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared), "l"(global),
               "r"(bytes), "r"(barrier) : "memory");
}

// The same into every block of the cluster whose bit is set in `blocks`, at the same place and for the barrier of that place there.
__device__ inline void copy_bulk_to(uint16_t blocks, uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(shared),
               "l"(global), "r"(bytes), "r"(barrier), "h"(blocks) : "memory");
}

// Arrives at the barrier of the same place in block `rank` of the cluster.
__device__ inline void arrive_at(uint32_t rank, uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier), "r"(rank) : "memory");
}
// A warpgroup's registers per thread, less or more than at its start.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Registers written before may be read by the products that follow.
__device__ inline void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Descriptor of an operand of 64 inputs per row (128 bytes, swizzled), groups of 8 rows one after another; `shared` is a
// multiple of 1024 plus 32 per step of 16 inputs. Only its low word depends on that.
__device__ inline uint32_t row_operand_low(uint32_t shared) { return (shared >> 4 & 0x3fff) | 1u << 16; }
inline constexpr uint32_t kRowOperandHigh = 64 | 1u << 30;
__device__ inline uint64_t row_operand(uint32_t shared) { return uint64_t(kRowOperandHigh) << 32 | row_operand_low(shared); }

// Operands of d's rows.
#define ES_ROW(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define ES_ROWS_16                                                                                                         \
  ES_ROW(0), ES_ROW(1), ES_ROW(2), ES_ROW(3), ES_ROW(4), ES_ROW(5), ES_ROW(6), ES_ROW(7), ES_ROW(8), ES_ROW(9), ES_ROW(10), \
      ES_ROW(11), ES_ROW(12), ES_ROW(13), ES_ROW(14), ES_ROW(15)

// D (64 x 256, 16 rows per warp) += A (registers) * B. `keep` 0 clears D first.
__device__ inline void warpgroup_product(float (&d)[32][4], const uint32_t (&a)[4], uint64_t b, int keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "{%128, %129, %130, %131}, %132, keep, 1, 1, 0;\n"
      "}\n"
      : ES_ROWS_16, ES_ROW(16), ES_ROW(17), ES_ROW(18), ES_ROW(19),
        ES_ROW(20), ES_ROW(21), ES_ROW(22), ES_ROW(23), ES_ROW(24), ES_ROW(25),
        ES_ROW(26), ES_ROW(27), ES_ROW(28), ES_ROW(29), ES_ROW(30), ES_ROW(31)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

#undef ES_ROW
#undef ES_ROWS_16

}  // namespace edgeshift::cuda
