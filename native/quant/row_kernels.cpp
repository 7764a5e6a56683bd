#include "quant/row_kernels.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "quant/row_kernels_simd.h"

namespace edgeshift {

extern const RowKernels row_kernels_avx2, row_kernels_avx512;

namespace {

// Four lanes, as every 64-bit processor has.
struct PlainSet {
  using V = float __attribute__((vector_size(16)));
  static V max(V a, V b) { return a > b ? a : b; }
  static V min(V a, V b) { return a < b ? a : b; }
  static V half(V v) {
    for (int i = 0; i < 4; ++i) v[i] = to_float(to_f16(v[i]));
    return v;
  }
  static float largest(const Wide<PlainSet>& v) {
    float lanes[kLanes];
    v.store(lanes);
    return *std::max_element(lanes, lanes + kLanes);
  }
  static Wide<PlainSet> from_bytes(const uint64_t* bytes) {
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = float(bytes[i / 8] >> (8 * (i % 8)) & 255);
    return Wide<PlainSet>::load(lanes);
  }
  static void store_half(const Wide<PlainSet>& v, f16* to) {
    float lanes[kLanes];
    v.store(lanes);
    for (float lane : lanes) *to++ = to_f16(lane);
  }
  static void store_bytes(const Wide<PlainSet>& v, uint8_t* to) {
    float lanes[kLanes];
    v.store(lanes);
    for (float lane : lanes) *to++ = uint8_t(int8_t(lane));
  }
  static void store_nibbles(const Wide<PlainSet>& v, uint8_t* to) {
    float lanes[kLanes];
    v.store(lanes);
    for (int i = 0; i < kLanes; i += 2) *to++ = uint8_t(int(lanes[i]) | int(lanes[i + 1]) << 4);
  }
};

constexpr RowKernels row_kernels_scalar = Rows<PlainSet>::kernels();

}  // namespace

const RowKernels& row_kernels(cpu::Isa isa) { return ES_KERNELS(isa, row_kernels); }

const RowKernels& row_kernels() {
  static const RowKernels& kernels = row_kernels(cpu::default_isa());
  return kernels;
}

}  // namespace edgeshift
