#if defined(__x86_64__)

// GCC 12 takes the undefined operands of its own intrinsics for uninitialized variables (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/matmul_kernels.h"

namespace edgeshift::cpu {

namespace {

inline __m512 load_half(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }

inline __m512i broadcast4(const int8_t* p) { return _mm512_set1_epi32(*reinterpret_cast<const int*>(p)); }

inline const char* tile_at(const MatmulKernelArgs& a, int64_t tile) {
  return static_cast<const char*>(a.weight->data) + size_t(tile) * a.tile.bytes;
}

inline void store(const MatmulKernelArgs& a, int row, int64_t tile, __m512 acc) {
  int64_t left = a.weight->n - tile * kTileRows;
  __mmask16 mask = left >= kTileRows ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
  if (a.bias) acc = _mm512_add_ps(acc, _mm512_maskz_loadu_ps(mask, a.bias + tile * kTileRows));
  _mm512_mask_storeu_ps(a.y + row * a.y_stride + tile * kTileRows, mask, acc);
}

// R rows of x against T neighbouring tiles: R * T accumulators stay in registers over all of k.
template <int R, int T>
inline void fp16_block(const MatmulKernelArgs& a, int row, int64_t tile) {
  const int k = a.weight->k;
  const char* w = tile_at(a, tile);
  const float* x = a.x + int64_t(row) * k;
  __m512 acc[R][T];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < T; ++c) acc[r][c] = _mm512_setzero_ps();
  }
  for (int i = 0; i < k; ++i) {
    __m512 weight[T];
    for (int c = 0; c < T; ++c) {
      const char* p = w + size_t(c) * a.tile.bytes + size_t(i) * 32;
      if (R == 1) _mm_prefetch(p + 1024, _MM_HINT_T0);
      weight[c] = load_half(p);
    }
    for (int r = 0; r < R; ++r) {
      __m512 value = _mm512_set1_ps(x[int64_t(r) * k + i]);
      for (int c = 0; c < T; ++c) acc[r][c] = _mm512_fmadd_ps(weight[c], value, acc[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < T; ++c) store(a, row + r, tile + c, acc[r][c]);
  }
}

template <int T>
inline void fp16_rows(const MatmulKernelArgs& a, int64_t tile) {
  int row = a.row_begin;
  if constexpr (T == 2) {
    for (; row + 12 <= a.row_end; row += 12) fp16_block<12, 2>(a, row, tile);
  }
  if constexpr (T <= 2) {
    for (; row + 8 <= a.row_end; row += 8) fp16_block<8, T>(a, row, tile);
  }
  for (; row + 4 <= a.row_end; row += 4) fp16_block<4, T>(a, row, tile);
  for (; row + 2 <= a.row_end; row += 2) fp16_block<2, T>(a, row, tile);
  for (; row < a.row_end; ++row) fp16_block<1, T>(a, row, tile);
}

void fp16(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  int64_t tile = tile_begin;
  if (a.row_end - a.row_begin < 8) {
    for (; tile + 4 <= tile_end; tile += 4) fp16_rows<4>(a, tile);
  }
  for (; tile + 2 <= tile_end; tile += 2) fp16_rows<2>(a, tile);
  for (; tile < tile_end; ++tile) fp16_rows<1>(a, tile);
}

// The 32 inputs of one block in 8 registers of 4 unsigned codes per output row. int8 codes are biased by 128, which
// the row's offset takes back: the dot product instruction wants its first operand unsigned.
template <Precision P>
inline void load_codes(const char* p, __m512i out[8]) {
  if constexpr (P == Precision::int4) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; ++j) {
      __m512i pair = _mm512_loadu_si512(p + j * 64);
      out[2 * j] = _mm512_and_si512(pair, low);
      out[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
    }
  } else {
    const __m512i bias = _mm512_set1_epi8(-128);
    for (int j = 0; j < 8; ++j) out[j] = _mm512_xor_si512(_mm512_loadu_si512(p + j * 64), bias);
  }
}

template <Precision P>
inline constexpr int kBlockBytes = P == Precision::int4 ? 256 : 512;

// R rows of x against one tile. Per 32 inputs: 8 dot products a row and plane, then one conversion and one or two FMAs.
template <Precision P, bool Minimums, int R>
inline void quantized_block(const MatmulKernelArgs& a, int row, int64_t tile) {
  const int blocks = a.tile.padded_k / 32;
  const int per_group = a.weight->group / 32;
  const char* base = tile_at(a, tile);
  const char* scales = base;
  const char* minimums = base + a.tile.minimums;
  const char* codes = base + a.tile.codes;
  int64_t place = QuantizedRows::place(row, blocks);
  __m512 acc[R];
  for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
  for (int g = 0, b = 0; b < blocks; ++g) {
    __m512 scale = load_half(scales + g * 32);
    __m512 minimum = Minimums ? load_half(minimums + g * 32) : _mm512_setzero_ps();
    for (int end = b + per_group; b < end; ++b, codes += kBlockBytes<P>, place += kRowBundle) {
      for (int line = 0; line < kBlockBytes<P>; line += 64) _mm_prefetch(codes + 2048 + line, _MM_HINT_T0);
      const int8_t* high_codes = a.xq.high + place * 32;
      const int8_t* low_codes = a.xq.low + place * 32;
      __m512i w[8];
      load_codes<P>(codes, w);
      for (int r = 0; r < R; ++r) {
        __m512i high = _mm512_setzero_si512();
        __m512i low = P == Precision::int8 ? _mm512_set1_epi32(a.xq.offsets[place + r]) : _mm512_setzero_si512();
        for (int j = 0; j < 8; ++j) {
          high = _mm512_dpbusd_epi32(high, w[j], broadcast4(high_codes + r * 32 + j * 4));
          low = _mm512_dpbusd_epi32(low, w[j], broadcast4(low_codes + r * 32 + j * 4));
        }
        __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 7), low));
        acc[r] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(a.xq.scales[place + r])), acc[r]);
        if (Minimums) acc[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(a.xq.sums[place + r]), acc[r]);
      }
    }
  }
  for (int r = 0; r < R; ++r) store(a, row + r, tile, acc[r]);
}

template <Precision P, bool Minimums>
void quantized(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    int row = a.row_begin;
    for (; row + 8 <= a.row_end; row += 8) quantized_block<P, Minimums, 8>(a, row, tile);
    for (; row + 4 <= a.row_end; row += 4) quantized_block<P, Minimums, 4>(a, row, tile);
    for (; row + 2 <= a.row_end; row += 2) quantized_block<P, Minimums, 2>(a, row, tile);
    for (; row < a.row_end; ++row) quantized_block<P, Minimums, 1>(a, row, tile);
  }
}

void int8(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  if (a.weight->has_minimums) quantized<Precision::int8, true>(a, tile_begin, tile_end);
  else quantized<Precision::int8, false>(a, tile_begin, tile_end);
}

void int4(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  quantized<Precision::int4, true>(a, tile_begin, tile_end);
}

// 16 codes, split into their planes, to place `at`.
inline void store_planes(__m512i codes, const QuantizedRows& to, int64_t at) {
  __m512i high = _mm512_srai_epi32(_mm512_add_epi32(codes, _mm512_set1_epi32(64)), 7);
  __m512i low = _mm512_sub_epi32(codes, _mm512_slli_epi32(high, 7));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to.high + at), _mm512_cvtsepi32_epi8(high));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to.low + at), _mm512_cvtsepi32_epi8(low));
}

void quantize(const float* x, int k, int padded_k, QuantizedRows to, int row) {
  int64_t place = QuantizedRows::place(row, padded_k / 32);
  for (int begin = 0; begin < padded_k; begin += 32, place += kRowBundle) {
    int left = k - begin;
    uint32_t bits = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0u;
    __m512 first = _mm512_maskz_loadu_ps(__mmask16(bits), x + begin);
    __m512 second = _mm512_maskz_loadu_ps(__mmask16(bits >> 16), x + begin + 16);
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second)));
    __m512 inverse = _mm512_set1_ps(largest > 0 ? float(kLargestCode) / largest : 0.0f);
    __m512i first_codes = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
    __m512i second_codes = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
    store_planes(first_codes, to, place * 32);
    store_planes(second_codes, to, place * 32 + 16);
    int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(first_codes, second_codes));
    to.scales[place] = largest / float(kLargestCode);
    to.sums[place] = largest / float(kLargestCode) * float(sum);
    to.offsets[place] = -128 * sum;
  }
}

}  // namespace

extern const MatmulKernels matmul_avx512;
const MatmulKernels matmul_avx512 = {fp16, int8, int4, quantize};

}  // namespace edgeshift::cpu

#endif
