#if defined(__x86_64__)

#include <immintrin.h>

#include "quant/row_kernels_simd.h"

namespace edgeshift {

namespace {

struct Avx2Set {
  using V = __m256;
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V half(V v) { return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  static float largest(const Wide<Avx2Set>& v) {
    const __m256 eight = max(v.part[0], v.part[1]);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  static Wide<Avx2Set> from_bytes(const uint64_t* bytes) {
    Wide<Avx2Set> out;
    for (int i = 0; i < 2; ++i) {
      out.part[i] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(bytes[i]))));
    }
    return out;
  }
  static void store_half(const Wide<Avx2Set>& v, f16* to) {
    for (int i = 0; i < 2; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8 * i), _mm256_cvtps_ph(v.part[i], _MM_FROUND_TO_NEAREST_INT));
    }
  }
  static __m128i to_bytes(const Wide<Avx2Set>& v) {
    // Packing works within halves of a register: 0-3 8-11 | 4-7 12-15.
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.part[0]), _mm256_cvtps_epi32(v.part[1]));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    return _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  }
  static void store_bytes(const Wide<Avx2Set>& v, uint8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), to_bytes(v));
  }
  static void store_nibbles(const Wide<Avx2Set>& v, uint8_t* to) {
    const __m128i pairs = _mm_maddubs_epi16(to_bytes(v), _mm_set1_epi16(0x1001));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(pairs, pairs));
  }
};

}  // namespace

extern const RowKernels row_kernels_avx2;
const RowKernels row_kernels_avx2 = Rows<Avx2Set>::kernels();

}  // namespace edgeshift

#endif
