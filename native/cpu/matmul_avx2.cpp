#if defined(__x86_64__)

#include <immintrin.h>

#include <type_traits>

#include "cpu/matmul_kernels.h"

namespace edgeshift::cpu {

namespace {

// A tile's 16 output rows are two registers of 8 floats; codes come in steps of 64 bytes, 32 for each half.
inline __m256 load_half(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline __m256i broadcast4(const int8_t* p) { return _mm256_set1_epi32(*reinterpret_cast<const int*>(p)); }

inline const char* tile_at(const MatmulKernelArgs& a, int64_t tile) {
  return static_cast<const char*>(a.weight->data) + size_t(tile) * a.tile.bytes;
}

// Lanes below `count`.
inline __m256i lane_mask(int64_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  int limit = count < 0 ? 0 : count > 8 ? 8 : int(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), lanes);
}

inline void store(const MatmulKernelArgs& a, int row, int64_t column, __m256 acc) {
  __m256i mask = lane_mask(a.weight->n - column);
  if (a.bias) acc = _mm256_add_ps(acc, _mm256_maskload_ps(a.bias + column, mask));
  _mm256_maskstore_ps(a.y + row * a.y_stride + column, mask, acc);
}

// R rows of x against one tile: 2 * R accumulators.
template <int R>
inline void fp16_block(const MatmulKernelArgs& a, int row, int64_t tile) {
  const int k = a.weight->k;
  const char* w = tile_at(a, tile);
  const float* x = a.x + int64_t(row) * k;
  __m256 low[R], high[R];
  for (int r = 0; r < R; ++r) low[r] = high[r] = _mm256_setzero_ps();
  for (int i = 0; i < k; ++i, w += 32) {
    if (R == 1) _mm_prefetch(w + 1024, _MM_HINT_T0);
    __m256 first = load_half(w), second = load_half(w + 16);
    for (int r = 0; r < R; ++r) {
      __m256 value = _mm256_broadcast_ss(x + int64_t(r) * k + i);
      low[r] = _mm256_fmadd_ps(first, value, low[r]);
      high[r] = _mm256_fmadd_ps(second, value, high[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    store(a, row + r, tile * kTileRows, low[r]);
    store(a, row + r, tile * kTileRows + 8, high[r]);
  }
}

// One row against four tiles, so that eight sums hide the latency of the additions.
inline void fp16_single(const MatmulKernelArgs& a, int row, int64_t tile) {
  const float* x = a.x + int64_t(row) * a.weight->k;
  __m256 acc[8];
  for (__m256& sum : acc) sum = _mm256_setzero_ps();
  for (int i = 0; i < a.weight->k; ++i) {
    __m256 value = _mm256_broadcast_ss(x + i);
    for (int c = 0; c < 4; ++c) {
      const char* w = tile_at(a, tile + c) + size_t(i) * 32;
      _mm_prefetch(w + 1024, _MM_HINT_T0);
      acc[2 * c] = _mm256_fmadd_ps(load_half(w), value, acc[2 * c]);
      acc[2 * c + 1] = _mm256_fmadd_ps(load_half(w + 16), value, acc[2 * c + 1]);
    }
  }
  for (int c = 0; c < 8; ++c) store(a, row, tile * kTileRows + c * 8, acc[c]);
}

void fp16(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  int64_t tile = tile_begin;
  if (a.row_end - a.row_begin == 1) {
    for (; tile + 4 <= tile_end; tile += 4) fp16_single(a, a.row_begin, tile);
  }
  for (; tile < tile_end; ++tile) {
    int row = a.row_begin;
    for (; row + 6 <= a.row_end; row += 6) fp16_block<6>(a, row, tile);
    for (; row + 3 <= a.row_end; row += 3) fp16_block<3>(a, row, tile);
    for (; row < a.row_end; ++row) fp16_block<1>(a, row, tile);
  }
}

// Sums of 32 products per output row for R rows of x and 8 outputs, of one plane of x.
// int4: the pair sums of 8 steps fit 16 bits (8 * 2 * 15 * 127 = 30480), so they are widened once.
template <int R>
inline void plane_dot(const char* codes, const int8_t* x, __m256i out[R], std::integral_constant<Precision, Precision::int4>) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int r = 0; r < R; ++r) out[r] = _mm256_setzero_si256();
  for (int j = 0; j < 4; ++j) {
    __m256i pair = load_bytes(codes + j * 64);
    __m256i first = _mm256_and_si256(pair, low);
    __m256i second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
    for (int r = 0; r < R; ++r) {
      const int8_t* xr = x + r * 32 + j * 8;
      out[r] = _mm256_add_epi16(out[r], _mm256_maddubs_epi16(first, broadcast4(xr)));
      out[r] = _mm256_add_epi16(out[r], _mm256_maddubs_epi16(second, broadcast4(xr + 4)));
    }
  }
  for (int r = 0; r < R; ++r) out[r] = _mm256_madd_epi16(out[r], _mm256_set1_epi16(1));
}

// int8: |w| * (x with the sign of w) fits the unsigned-by-signed product, and a pair sum (2 * 128 * 127) 16 bits.
template <int R>
inline void plane_dot(const char* codes, const int8_t* x, __m256i out[R], std::integral_constant<Precision, Precision::int8>) {
  for (int r = 0; r < R; ++r) out[r] = _mm256_setzero_si256();
  for (int j = 0; j < 8; ++j) {
    __m256i w = load_bytes(codes + j * 64);
    __m256i size = _mm256_abs_epi8(w);
    for (int r = 0; r < R; ++r) {
      __m256i value = _mm256_sign_epi8(broadcast4(x + r * 32 + j * 4), w);
      out[r] = _mm256_add_epi32(out[r], _mm256_madd_epi16(_mm256_maddubs_epi16(size, value), _mm256_set1_epi16(1)));
    }
  }
}

// Both planes together: 128 * high + low.
template <Precision P, int R>
inline void dot_block(const char* codes, const QuantizedRows& x, int64_t place, __m256i out[R]) {
  __m256i low[R];
  plane_dot<R>(codes, x.high + place * 32, out, std::integral_constant<Precision, P>());
  plane_dot<R>(codes, x.low + place * 32, low, std::integral_constant<Precision, P>());
  for (int r = 0; r < R; ++r) out[r] = _mm256_add_epi32(_mm256_slli_epi32(out[r], 7), low[r]);
}

template <Precision P>
inline constexpr int kBlockBytes = P == Precision::int4 ? 256 : 512;

// R rows of x against one half (8 output rows) of a tile; `half` is 0 or 1.
template <Precision P, bool Minimums, int R>
inline void quantized_half(const MatmulKernelArgs& a, int row, int64_t tile, int half) {
  const int blocks = a.tile.padded_k / 32;
  const int per_group = a.weight->group / 32;
  const char* base = tile_at(a, tile);
  const char* codes = base + a.tile.codes + half * 32;
  int64_t place = QuantizedRows::place(row, blocks);
  __m256 acc[R];
  for (int r = 0; r < R; ++r) acc[r] = _mm256_setzero_ps();
  for (int g = 0, b = 0; b < blocks; ++g) {
    __m256 scale = load_half(base + g * 32 + half * 16);
    __m256 minimum = Minimums ? load_half(base + a.tile.minimums + g * 32 + half * 16) : _mm256_setzero_ps();
    for (int end = b + per_group; b < end; ++b, codes += kBlockBytes<P>, place += kRowBundle) {
      for (int line = half * 64; line < kBlockBytes<P>; line += 128) _mm_prefetch(codes + 2048 + line, _MM_HINT_T0);
      __m256i dot[R];
      dot_block<P, R>(codes, a.xq, place, dot);
      for (int r = 0; r < R; ++r) {
        __m256 factor = _mm256_mul_ps(scale, _mm256_broadcast_ss(a.xq.scales + place + r));
        acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), factor, acc[r]);
        if (Minimums) acc[r] = _mm256_fmadd_ps(minimum, _mm256_broadcast_ss(a.xq.sums + place + r), acc[r]);
      }
    }
  }
  for (int r = 0; r < R; ++r) store(a, row + r, tile * kTileRows + half * 8, acc[r]);
}

// One row against both halves at once: the weights stream through once, in order.
template <Precision P, bool Minimums>
inline void quantized_single(const MatmulKernelArgs& a, int row, int64_t tile) {
  const int blocks = a.tile.padded_k / 32;
  const int per_group = a.weight->group / 32;
  const char* base = tile_at(a, tile);
  const char* codes = base + a.tile.codes;
  int64_t place = QuantizedRows::place(row, blocks);
  __m256 acc[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int g = 0, b = 0; b < blocks; ++g) {
    for (int end = b + per_group; b < end; ++b, codes += kBlockBytes<P>, place += kRowBundle) {
      for (int line = 0; line < kBlockBytes<P>; line += 64) _mm_prefetch(codes + 2048 + line, _MM_HINT_T0);
      for (int half = 0; half < 2; ++half) {
        __m256i dot[1];
        dot_block<P, 1>(codes + half * 32, a.xq, place, dot);
        __m256 scale = load_half(base + g * 32 + half * 16);
        __m256 factor = _mm256_mul_ps(scale, _mm256_broadcast_ss(a.xq.scales + place));
        acc[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[0]), factor, acc[half]);
        if (!Minimums) continue;
        __m256 minimum = load_half(base + a.tile.minimums + g * 32 + half * 16);
        acc[half] = _mm256_fmadd_ps(minimum, _mm256_broadcast_ss(a.xq.sums + place), acc[half]);
      }
    }
  }
  for (int half = 0; half < 2; ++half) store(a, row, tile * kTileRows + half * 8, acc[half]);
}

template <Precision P, bool Minimums>
void quantized(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    int row = a.row_begin;
    for (; row + 4 <= a.row_end; row += 4) {
      quantized_half<P, Minimums, 4>(a, row, tile, 0);
      quantized_half<P, Minimums, 4>(a, row, tile, 1);
    }
    for (; row < a.row_end; ++row) quantized_single<P, Minimums>(a, row, tile);
  }
}

void int8(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  if (a.weight->has_minimums) quantized<Precision::int8, true>(a, tile_begin, tile_end);
  else quantized<Precision::int8, false>(a, tile_begin, tile_end);
}

void int4(const MatmulKernelArgs& a, int64_t tile_begin, int64_t tile_end) {
  quantized<Precision::int4, true>(a, tile_begin, tile_end);
}

// Eight values from p, zeros past `left`.
inline __m256 load_partial(const float* p, int left) { return _mm256_maskload_ps(p, lane_mask(left)); }

inline float reduce_max(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

inline int reduce_add(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// 16-bit codes to their part in units of 128, rounded.
inline __m256i high_plane(__m256i codes) { return _mm256_srai_epi16(_mm256_add_epi16(codes, _mm256_set1_epi16(64)), 7); }

void quantize(const float* x, int k, int padded_k, QuantizedRows to, int row) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works within 128-bit halves
  int64_t place = QuantizedRows::place(row, padded_k / 32);
  for (int begin = 0; begin < padded_k; begin += 32, place += kRowBundle) {
    __m256 v[4];
    __m256 top = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) {
      v[i] = load_partial(x + begin + i * 8, k - begin - i * 8);
      top = _mm256_max_ps(top, _mm256_andnot_ps(sign, v[i]));
    }
    float largest = reduce_max(top);
    __m256 inverse = _mm256_set1_ps(largest > 0 ? float(kLargestCode) / largest : 0.0f);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    __m256i first = _mm256_packs_epi32(q[0], q[1]), second = _mm256_packs_epi32(q[2], q[3]);
    __m256i first_high = high_plane(first), second_high = high_plane(second);
    __m256i high = _mm256_packs_epi16(first_high, second_high);
    __m256i low = _mm256_packs_epi16(_mm256_sub_epi16(first, _mm256_slli_epi16(first_high, 7)),
                                     _mm256_sub_epi16(second, _mm256_slli_epi16(second_high, 7)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.high + place * 32), _mm256_permutevar8x32_epi32(high, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.low + place * 32), _mm256_permutevar8x32_epi32(low, order));
    int sum = reduce_add(_mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3])));
    to.scales[place] = largest / float(kLargestCode);
    to.sums[place] = largest / float(kLargestCode) * float(sum);
    to.offsets[place] = -128 * sum;
  }
}

}  // namespace

extern const MatmulKernels matmul_avx2;
const MatmulKernels matmul_avx2 = {fp16, int8, int4, quantize};

}  // namespace edgeshift::cpu

#endif
