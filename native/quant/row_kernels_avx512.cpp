#if defined(__x86_64__)

// GCC's own headers leave the unused operand of unmasked intrinsics undefined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>

#include "quant/row_kernels_simd.h"

namespace edgeshift {

namespace {

struct Avx512Set {
  using V = __m512;
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static __m256i to_half(V v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  static V half(V v) { return _mm512_cvtph_ps(to_half(v)); }
  static float largest(const Wide<Avx512Set>& v) { return _mm512_reduce_max_ps(v.part[0]); }
  static Wide<Avx512Set> from_bytes(const uint64_t* bytes) {
    const __m128i codes = _mm_set_epi64x(int64_t(bytes[1]), int64_t(bytes[0]));
    Wide<Avx512Set> out;
    out.part[0] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
    return out;
  }
  static void store_half(const Wide<Avx512Set>& v, f16* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_half(v.part[0]));
  }
  static __m128i to_bytes(const Wide<Avx512Set>& v) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.part[0])); }
  static void store_bytes(const Wide<Avx512Set>& v, uint8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), to_bytes(v));
  }
  static void store_nibbles(const Wide<Avx512Set>& v, uint8_t* to) {
    const __m128i pairs = _mm_maddubs_epi16(to_bytes(v), _mm_set1_epi16(0x1001));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(pairs, pairs));
  }
};

}  // namespace

extern const RowKernels row_kernels_avx512;
const RowKernels row_kernels_avx512 = Rows<Avx512Set>::kernels();

}  // namespace edgeshift

#endif
