#include "cpu/pack.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

#include "cpu/tile.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace edgeshift::cpu {

namespace {

#ifdef __x86_64__
// Eight rows of eight 16-bit values, transposed.
inline void transpose_8x8(const uint16_t* from, int64_t stride, uint16_t* to) {
  __m128i a[8], b[8];
  for (int r = 0; r < 8; ++r) a[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + r * stride));
  for (int r = 0; r < 4; ++r) {
    b[2 * r] = _mm_unpacklo_epi16(a[r], a[r + 4]);
    b[2 * r + 1] = _mm_unpackhi_epi16(a[r], a[r + 4]);
  }
  for (int r = 0; r < 4; ++r) {
    a[2 * r] = _mm_unpacklo_epi16(b[r], b[r + 4]);
    a[2 * r + 1] = _mm_unpackhi_epi16(b[r], b[r + 4]);
  }
  for (int r = 0; r < 4; ++r) {
    b[2 * r] = _mm_unpacklo_epi16(a[r], a[r + 4]);
    b[2 * r + 1] = _mm_unpackhi_epi16(a[r], a[r + 4]);
  }
  for (int c = 0; c < 8; ++c) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * kTileRows), b[c]);
}

// Eight rows from `row` on into lanes `lane` .. `lane` + 7.
void pack_half_rows(const CanonicalMatrix& m, int row, int lane, char* tile) {
  const auto* from = reinterpret_cast<const uint16_t*>(m.values + size_t(row) * size_t(m.k));
  auto* to = reinterpret_cast<uint16_t*>(tile) + lane;
  int i = 0;
  for (; i + 8 <= m.k; i += 8) transpose_8x8(from + i, m.k, to + int64_t(i) * kTileRows);
  for (; i < m.k; ++i) {
    for (int r = 0; r < 8; ++r) to[int64_t(i) * kTileRows + r] = from[int64_t(r) * m.k + i];
  }
}
#endif

// Scatters row `row` of a canonical matrix into row `lane` of a zeroed tile.
void pack_half_row(const CanonicalMatrix& m, int row, int lane, char* tile) {
  const f16* from = m.values + size_t(row) * size_t(m.k);
  f16* to = reinterpret_cast<f16*>(tile) + lane;
  for (int i = 0; i < m.k; ++i) to[size_t(i) * kTileRows] = from[i];
}

#ifdef __x86_64__
// Four bytes of neighbouring int4 pairs in each 32-bit lane, (1,0) (3,2) (5,4) (7,6), to the tile's pairs of inputs four apart.
inline __m128i tile_nibbles(__m128i x) {
  const __m128i low = _mm_set1_epi32(0x0f0f), high = _mm_set1_epi32(0xf0f0), byte = _mm_set1_epi32(0xff);
  const __m128i first = _mm_and_si128(x, _mm_set1_epi32(0xffff)), second = _mm_srli_epi32(x, 16);
  const __m128i even = _mm_or_si128(_mm_and_si128(first, low), _mm_slli_epi32(_mm_and_si128(second, low), 4));
  const __m128i odd = _mm_or_si128(_mm_and_si128(_mm_srli_epi32(first, 4), low), _mm_and_si128(second, high));
  // Bytes 0 and 1 of both to bytes 0, 2 and 1, 3.
  auto apart = [&](__m128i pair) {
    return _mm_or_si128(_mm_and_si128(pair, byte), _mm_slli_epi32(_mm_andnot_si128(byte, pair), 8));
  };
  return _mm_or_si128(apart(even), _mm_slli_epi32(apart(odd), 8));
}

// The codes of four rows from `row` on into lanes `lane` .. `lane` + 3; the bytes of a row are a multiple of 16.
void pack_four_rows(const CanonicalMatrix& m, const TileLayout& t, int row, int lane, char* tile) {
  const bool int4 = m.precision == Precision::int4;
  const size_t bytes = size_t(t.padded_k) / (int4 ? 2 : 1);
  const uint8_t* from = static_cast<const uint8_t*>(m.codes) + size_t(row) * bytes;
  char* to = tile + t.codes + lane * 4;
  for (size_t j = 0; j < bytes; j += 16, to += 4 * 64) {
    __m128i a[4], b[4];
    for (int r = 0; r < 4; ++r) {
      a[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + size_t(r) * bytes + j));
      if (int4) a[r] = tile_nibbles(a[r]);
    }
    for (int r = 0; r < 2; ++r) {
      b[2 * r] = _mm_unpacklo_epi32(a[2 * r], a[2 * r + 1]);
      b[2 * r + 1] = _mm_unpackhi_epi32(a[2 * r], a[2 * r + 1]);
    }
    const __m128i out[] = {_mm_unpacklo_epi64(b[0], b[2]), _mm_unpackhi_epi64(b[0], b[2]), _mm_unpacklo_epi64(b[1], b[3]),
                           _mm_unpackhi_epi64(b[1], b[3])};
    for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * 64), out[i]);
  }
}
#endif

void pack_codes(const CanonicalMatrix& m, const TileLayout& t, int row, int lane, char* tile) {
  size_t bytes = size_t(t.padded_k) / (m.precision == Precision::int4 ? 2 : 1);
  const uint8_t* from = static_cast<const uint8_t*>(m.codes) + size_t(row) * bytes;
  uint8_t* to = reinterpret_cast<uint8_t*>(tile + t.codes) + lane * 4;
  if (m.precision == Precision::int8) {
    for (int j = 0; j < t.padded_k / 4; ++j) std::memcpy(to + j * 64, from + j * 4, 4);
    return;
  }
  // Inputs 8j .. 8j+7 come as four bytes of neighbours: (1,0) (3,2) (5,4) (7,6).
  for (int j = 0; j < t.padded_k / 8; ++j) {
    const uint8_t* f = from + j * 4;
    uint8_t* out = to + j * 64;
    out[0] = uint8_t((f[0] & 15) | f[2] << 4);
    out[1] = uint8_t(f[0] >> 4 | (f[2] & 0xf0));
    out[2] = uint8_t((f[1] & 15) | f[3] << 4);
    out[3] = uint8_t(f[1] >> 4 | (f[3] & 0xf0));
  }
}

void pack_parameters(const CanonicalMatrix& m, const TileLayout& t, bool has_minimums, int row, int lane, char* tile) {
  f16* scales = reinterpret_cast<f16*>(tile) + lane;
  f16* minimums = reinterpret_cast<f16*>(tile + t.minimums) + lane;
  for (int g = 0; g < t.groups; ++g) {
    size_t from = size_t(row) * size_t(t.groups) + size_t(g);
    scales[g * kTileRows] = m.scales[from];
    if (has_minimums) minimums[g * kTileRows] = m.minimums ? m.minimums[from] : f16{};
  }
}

void pack_row(const CanonicalMatrix& m, const TileLayout& t, bool has_minimums, int row, int lane, char* tile) {
  if (m.precision == Precision::fp16) pack_half_row(m, row, lane, tile);
  else {
    pack_parameters(m, t, has_minimums, row, lane, tile);
    pack_codes(m, t, row, lane, tile);
  }
}

// As many rows from `row` on as go into the tile at once; their number.
int pack_rows(const CanonicalMatrix& m, const TileLayout& t, bool has_minimums, int row, int lane, char* tile) {
#ifdef __x86_64__
  const int left = m.n - row;
  if (m.precision == Precision::fp16 && lane % 8 == 0 && left >= 8) {
    pack_half_rows(m, row, lane, tile);
    return 8;
  }
  if (m.precision != Precision::fp16 && lane % 4 == 0 && left >= 4) {
    pack_four_rows(m, t, row, lane, tile);
    for (int r = 0; r < 4; ++r) pack_parameters(m, t, has_minimums, row + r, lane + r, tile);
    return 4;
  }
#endif
  pack_row(m, t, has_minimums, row, lane, tile);
  return 1;
}

// Tiles of a worker's turn: enough columns for formats that store inputs first to read whole cache lines.
constexpr int kTurnTiles = 8;

// What is converted at a time where rows lie together: with the tiles that it goes to, it stays in the worker's cache.
constexpr size_t kStripBytes = size_t(128) << 10;

constexpr size_t kSmallTensor = size_t(16) << 20;

bool rows_lie_together(const WeightReader& part) {
  return part.n() > 1 && part.bytes_of(0, 1).size() < part.bytes_of(0, part.n()).size();
}

int strip_tiles(Parts parts) {
  if (!std::ranges::all_of(parts, [](const WeightReader* part) { return rows_lie_together(*part); })) return kTurnTiles;
  const size_t tile = size_t(parts[0]->k()) * sizeof(f16) * kTileRows;
  return int(std::clamp<size_t>(kStripBytes / tile, 1, kTurnTiles));
}

// Rows [begin, end) of a part: where they lie in the file, if that is what the form wants, else converted into `strip`.
Status read_rows(const WeightReader& part, int begin, int end, CanonicalForm form, CanonicalStorage& strip, CanonicalMatrix& out) {
  const f16* stored = form.precision == Precision::fp16 ? part.stored_halves(begin) : nullptr;
  if (!stored) {
    ES_RETURN_IF_ERROR(part.read(begin, end, form, strip));
    out = strip.view();
    return {};
  }
  strip.rounding = {};
  out = {};
  out.precision = form.precision;
  out.n = end - begin;
  out.k = part.k();
  out.values = stored;
  return part.check_stored(begin, end);
}

// Converts the rows of `part` that fall into `count` tiles, the first of which starts at row `first` of the part
// (possibly negative).
Status pack_part(const WeightReader& part, CanonicalForm form, const TileLayout& t, int64_t first, int count, char* tiles,
                 CanonicalStorage& strip, RoundingSums& rounding) {
  int64_t begin = std::max<int64_t>(0, first);
  int64_t end = std::min<int64_t>(part.n(), first + int64_t(count) * kTileRows);
  if (begin >= end) return {};
  CanonicalMatrix rows;
  ES_RETURN_IF_ERROR(read_rows(part, int(begin), int(end), form, strip, rows));
  rounding.add(strip.rounding);
  for (int64_t row = begin; row < end;) {
    const int64_t place = row - first;
    char* tile = tiles + size_t(place / kTileRows) * t.bytes;
    row += pack_rows(rows, t, form.has_minimums, int(row - begin), int(place % kTileRows), tile);
  }
  return {};
}

struct PackJob {
  Parts parts;
  CanonicalForm form;
  TileLayout layout;
  char* memory;
  const DoneReading& done;
  int64_t n;
  int k;
  int strip = strip_tiles(parts);

  // A worker's turn.
  Status run(int64_t tile, int count, CanonicalStorage& rows, RoundingSums& rounding) const {
    for (int at = 0; at < count; at += strip) ES_RETURN_IF_ERROR(convert(tile + at, std::min(strip, count - at), rows, rounding));
    if (done) give_back(tile, count);
    return {};
  }

  Status convert(int64_t tile, int count, CanonicalStorage& rows, RoundingSums& rounding) const {
    char* tiles = memory + size_t(tile) * layout.bytes;
    clear(tile, count, tiles);
    int64_t first = tile * kTileRows;
    for (const WeightReader* part : parts) {
      ES_RETURN_IF_ERROR(pack_part(*part, form, layout, first, count, tiles, rows, rounding));
      first -= part->n();
    }
    return {};
  }

  // Zeros where no row or input will be written: lanes past n, padding between and behind the arrays of a tile.
  void clear(int64_t tile, int count, char* tiles) const {
    const bool half = form.precision == Precision::fp16;
    const size_t parameters = size_t(layout.groups) * kTileRows * sizeof(f16) * (form.has_minimums ? 2 : 1);
    const size_t gap = half ? size_t(k) * kTileRows * sizeof(f16) : parameters, end = half ? layout.bytes : layout.codes;
    const int64_t whole = std::clamp<int64_t>(n / kTileRows - tile, 0, count);
    for (int64_t i = 0; i < whole; ++i) std::memset(tiles + size_t(i) * layout.bytes + gap, 0, end - gap);
    std::memset(tiles + size_t(whole) * layout.bytes, 0, size_t(count - whole) * layout.bytes);
  }

  // Rows that lie together in the file. Small tensors, and those whose rows don't, are given back when all rows are
  // packed: each time costs an interrupt of every core.
  void give_back(int64_t tile, int count) const {
    int64_t first = tile * kTileRows;
    for (const WeightReader* part : parts) {
      const int64_t begin = std::max<int64_t>(0, first), end = std::min<int64_t>(part->n(), first + int64_t(count) * kTileRows);
      first -= part->n();
      if (begin >= end || part->bytes_of(0, part->n()).size() <= kSmallTensor || !rows_lie_together(*part)) continue;
      done(part->bytes_of(int(begin), int(end)));
    }
  }
};

PackedMatrix describe(CanonicalForm form, int n, int k, void* memory) {
  PackedMatrix m;
  m.precision = form.precision;
  m.n = n;
  m.k = k;
  m.group = form.group;
  m.has_minimums = form.has_minimums;
  m.data = memory;
  m.bytes = packed_bytes(form, n, k);
  return m;
}

// Behind the tiles.
void point_to_order(PackedMatrix& m) {
  m.permutation = reinterpret_cast<const int32_t*>(static_cast<const char*>(m.data) + m.bytes);
  m.bytes += round_up_64(size_t(m.k) * sizeof(int32_t));
}

void keep_order(const int32_t* order, PackedMatrix& m) {
  std::memcpy(static_cast<char*>(m.data) + m.bytes, order, size_t(m.k) * sizeof(int32_t));
  point_to_order(m);
}

CanonicalForm form_of(const CanonicalMatrix& m) { return {m.precision, m.group, m.minimums != nullptr}; }

}  // namespace

CanonicalForm packed_form(Parts parts, Precision precision) {
  CanonicalForm common = parts[0]->form(precision);
  for (const WeightReader* part : parts) common.has_minimums |= part->form(precision).has_minimums;
  return common;
}

bool can_stack(const WeightReader& a, const WeightReader& b, Precision precision_of_a, Precision precision_of_b) {
  if (precision_of_a != precision_of_b || a.k() != b.k()) return false;
  if (a.form(precision_of_a).group != b.form(precision_of_b).group) return false;
  return precision_of_a == Precision::fp16 || std::ranges::equal(a.order(precision_of_a), b.order(precision_of_b));
}

size_t packed_bytes(CanonicalForm form, int n, int k, bool with_order) {
  size_t order = with_order ? round_up_64(size_t(k) * sizeof(int32_t)) : 0;
  return size_t(tile_count(n)) * tile_layout(form.precision, k, form.group, form.has_minimums).bytes + order;
}

void describe_packed(CanonicalForm form, int n, int k, std::span<const int32_t> order, void* memory, PackedMatrix& out) {
  out = describe(form, n, k, memory);
  if (!order.empty()) point_to_order(out);
}

size_t packed_bytes(const CanonicalMatrix& m) {
  return packed_bytes(form_of(m), m.n, m.k, m.permutation != nullptr);
}

Status pack(ThreadPool& pool, Parts parts, CanonicalForm form, void* memory, PackedMatrix& out, RoundingSums& rounding,
            const DoneReading& done) {
  int64_t n = 0;
  for (const WeightReader* part : parts) {
    if (part->k() != parts[0]->k()) return {Code::invalid_argument, "stacked weights differ in their input size"};
    n += part->n();
  }
  if (n <= 0 || n > INT32_MAX) return {Code::invalid_argument, "a weight of " + std::to_string(n) + " rows"};
  int k = parts[0]->k();
  PackJob job{parts, form, tile_layout(form.precision, k, form.group, form.has_minimums), static_cast<char*>(memory), done, n, k};
  std::mutex mutex;
  Status failure;
  pool.for_ranges(tile_count(int(n)), kTurnTiles, [&](int64_t begin, int64_t end, int) {
    // Kept by its thread: memory from the system has to be cleared each time.
    static thread_local CanonicalStorage strip;
    RoundingSums took;
    Status status;
    for (int64_t tile = begin; tile < end && status.ok(); tile += kTurnTiles) {
      status = job.run(tile, int(std::min<int64_t>(kTurnTiles, end - tile)), strip, took);
    }
    std::lock_guard lock(mutex);
    rounding.add(took);
    if (!status.ok()) failure = std::move(status);
  });
  ES_RETURN_IF_ERROR(failure);
  for (const WeightReader* part : parts) {
    if (done) done(part->bytes_of(0, part->n()));
  }
  out = describe(form, int(n), k, memory);
  std::span<const int32_t> order = parts[0]->order(form.precision);
  if (!order.empty()) keep_order(order.data(), out);
  return {};
}

Status pack(ThreadPool& pool, const CanonicalMatrix& m, void* memory, PackedMatrix& out) {
  if (m.n <= 0 || m.k <= 0) return {Code::invalid_argument, "an empty weight"};
  if (m.precision != Precision::fp16 && (m.group <= 0 || m.group % 32 != 0)) {
    return {Code::invalid_argument, "group size " + std::to_string(m.group) + " is not a multiple of 32"};
  }
  if (m.precision == Precision::int4 && !m.minimums) return {Code::invalid_argument, "int4 weights need minimums"};
  CanonicalForm form = form_of(m);
  TileLayout t = tile_layout(form.precision, m.k, m.group, form.has_minimums);
  pool.for_ranges(tile_count(m.n), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t tile = begin; tile < end; ++tile) {
      char* to = static_cast<char*>(memory) + size_t(tile) * t.bytes;
      std::memset(to, 0, t.bytes);
      int rows = std::min<int>(kTileRows, m.n - int(tile) * kTileRows);
      for (int r = 0; r < rows;) r += pack_rows(m, t, form.has_minimums, int(tile) * kTileRows + r, r, to);
    }
  });
  out = describe(form, m.n, m.k, memory);
  if (m.permutation) keep_order(m.permutation, out);
  return {};
}

}  // namespace edgeshift::cpu
