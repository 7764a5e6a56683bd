// One float register per instruction set, so that the float kernels are written once (cpu/*_kernels.inl.h) and compiled three times.
//
// A set S has: width; V; zero, set(x), load(p), store(p, v), load_half(p), load_int8(p), load_fp8(p) (e4m3, times 2^-8),
// store_half(p, v) (saturating), add, sub, mul,
// div, fma(a, b, c) = a * b + c, min, max, round, pow2(n) = 2^n for integral n in -126..127, zero_below(x, limit, v) =
// v where x >= limit, else 0; sum(v), largest(v).
// Each kernel file's templates take S, whose types differ per set: no code compiled for one instruction set can be
// linked into another.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "quant/half.h"

#if defined(__AVX2__)
#if defined(__AVX512F__)
// GCC 12 takes the undefined operands of its own intrinsics for uninitialized variables (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace edgeshift::cpu {

inline constexpr float kLargestHalf = 65504.0f;

struct Scalar {
  static constexpr int width = 1;
  using V = float;
  static V zero() { return 0; }
  static V set(float x) { return x; }
  static V load(const float* p) { return *p; }
  static void store(float* p, V v) { *p = v; }
  static V load_half(const f16* p) { return to_float(*p); }
  static V load_int8(const int8_t* p) { return float(*p); }
  static V load_fp8(const uint8_t* p) { return to_float(f16{uint16_t((*p & 0x80u) << 8 | (*p & 0x7fu) << 7)}); }
  static void store_half(f16* p, V v) { *p = to_f16(v > kLargestHalf ? kLargestHalf : v < -kLargestHalf ? -kLargestHalf : v); }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static V min(V a, V b) { return a < b ? a : b; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V round(V a) { return std::nearbyint(a); }
  static V pow2(V n) { return std::ldexp(1.0f, int(n)); }
  static V zero_below(V x, V limit, V v) { return x >= limit ? v : 0; }
  static float sum(V v) { return v; }
  static float largest(V v) { return v; }
};

#if defined(__AVX2__) && !defined(__AVX512F__)
struct Avx2 {
  static constexpr int width = 8;
  using V = __m256;
  static V zero() { return _mm256_setzero_ps(); }
  static V set(float x) { return _mm256_set1_ps(x); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  static V load_half(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static V load_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // A code as binary16: the sign at bit 15, where sign extension puts it too, the rest from bit 7 on.
  static V load_fp8(const uint8_t* p) {
    __m128i code = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    __m128i size = _mm_slli_epi16(_mm_and_si128(code, _mm_set1_epi16(0x7f)), 7);
    return _mm256_cvtph_ps(_mm_or_si128(size, _mm_and_si128(code, _mm_set1_epi16(short(0x8000)))));
  }
  static void store_half(f16* p, V v) {
    v = max(min(v, set(kLargestHalf)), set(-kLargestHalf));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V pow2(V n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static V zero_below(V x, V limit, V v) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_GE_OQ), v); }
  static float sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  static float largest(V v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
};
#endif

#if defined(__AVX512F__)
struct Avx512 {
  static constexpr int width = 16;
  using V = __m512;
  static V zero() { return _mm512_setzero_ps(); }
  static V set(float x) { return _mm512_set1_ps(x); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V load_half(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static V load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static V load_fp8(const uint8_t* p) {
    __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    __m256i size = _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x7f)), 7);
    return _mm512_cvtph_ps(_mm256_or_si256(size, _mm256_and_si256(code, _mm256_set1_epi16(short(0x8000)))));
  }
  static void store_half(f16* p, V v) {
    v = max(min(v, set(kLargestHalf)), set(-kLargestHalf));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V pow2(V n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }
  static V zero_below(V x, V limit, V v) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), v); }
  static float sum(V v) { return _mm512_reduce_add_ps(v); }
  static float largest(V v) { return _mm512_reduce_max_ps(v); }
};
#endif

// e^x, relative error below 3e-7; 0 below -87 (minus infinity included), e^88 above 88.
// 2^n * e^r with |r| <= ln 2 / 2 and a Taylor-like polynomial of degree 6.
template <class S>
inline typename S::V exp_of(typename S::V x) {
  using V = typename S::V;
  const V limit = S::set(-87.0f);
  V clamped = S::max(S::min(x, S::set(88.0f)), limit);
  V n = S::round(S::mul(clamped, S::set(1.44269504f)));
  V r = S::fma(n, S::set(-0.693359375f), clamped);  // ln 2 in two parts: the first product is exact
  r = S::fma(n, S::set(2.12194440e-4f), r);
  V p = S::set(1.3981999507e-3f);
  p = S::fma(p, r, S::set(8.3334519073e-3f));
  p = S::fma(p, r, S::set(4.1665795894e-2f));
  p = S::fma(p, r, S::set(1.6666665459e-1f));
  p = S::fma(p, r, S::set(5.0000001201e-1f));
  p = S::fma(S::mul(p, r), r, S::add(r, S::set(1.0f)));
  return S::zero_below(x, limit, S::mul(p, S::pow2(n)));
}

}  // namespace edgeshift::cpu
