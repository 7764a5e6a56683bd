#include "cpu/pack.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

#include "cpu/tile.h"

namespace edgeshift::cpu {

namespace {

// Scatters row `row` of a canonical matrix into row `lane` of a zeroed tile.
void pack_half_row(const CanonicalMatrix& m, int row, int lane, char* tile) {
  const f16* from = m.values + size_t(row) * size_t(m.k);
  f16* to = reinterpret_cast<f16*>(tile) + lane;
  for (int i = 0; i < m.k; ++i) to[size_t(i) * kTileRows] = from[i];
}

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

void pack_quantized_row(const CanonicalMatrix& m, const TileLayout& t, bool has_minimums, int row, int lane, char* tile) {
  f16* scales = reinterpret_cast<f16*>(tile) + lane;
  f16* minimums = reinterpret_cast<f16*>(tile + t.minimums) + lane;
  for (int g = 0; g < t.groups; ++g) {
    size_t from = size_t(row) * size_t(t.groups) + size_t(g);
    scales[g * kTileRows] = m.scales[from];
    if (has_minimums) minimums[g * kTileRows] = m.minimums ? m.minimums[from] : f16{};
  }
  pack_codes(m, t, row, lane, tile);
}

void pack_row(const CanonicalMatrix& m, const TileLayout& t, bool has_minimums, int row, int lane, char* tile) {
  if (m.precision == Precision::fp16) pack_half_row(m, row, lane, tile);
  else pack_quantized_row(m, t, has_minimums, row, lane, tile);
}

// Converts the rows of `part` that fall into one tile, which starts at row `first` of the part (possibly negative).
Status pack_part(const RawMatrix& part, CanonicalForm form, const TileLayout& t, int64_t first, char* tile,
                 CanonicalStorage& strip) {
  int64_t begin = std::max<int64_t>(0, first);
  int64_t end = std::min<int64_t>(part.n, first + kTileRows);
  if (begin >= end) return {};
  const char* data = static_cast<const char*>(part.data) + size_t(begin) * row_bytes(part.type, part.k);
  ES_RETURN_IF_ERROR(to_canonical(part.type, data, int(end - begin), part.k, form, strip));
  CanonicalMatrix view = strip.view();
  for (int64_t row = begin; row < end; ++row) pack_row(view, t, form.has_minimums, int(row - begin), int(row - first), tile);
  return {};
}

Status pack_tile(std::span<const RawMatrix> parts, CanonicalForm form, const TileLayout& t, int64_t tile, char* memory,
                 CanonicalStorage& strip) {
  std::memset(memory, 0, t.bytes);
  int64_t first = tile * kTileRows;
  for (const RawMatrix& part : parts) {
    ES_RETURN_IF_ERROR(pack_part(part, form, t, first, memory, strip));
    first -= part.n;
  }
  return {};
}

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

CanonicalForm form_of(const CanonicalMatrix& m) { return {m.precision, m.group, m.minimums != nullptr}; }

}  // namespace

CanonicalForm packed_form(std::span<const RawMatrix> parts, Precision precision, int group) {
  CanonicalForm common{precision, 0, false};
  for (const RawMatrix& part : parts) {
    CanonicalForm form = canonical_form(part.type, precision, part.k, group);
    common.group = common.group ? std::min(common.group, form.group) : form.group;
    common.has_minimums = common.has_minimums || form.has_minimums;
  }
  return common;
}

size_t packed_bytes(CanonicalForm form, int n, int k) {
  return size_t(tile_count(n)) * tile_layout(form.precision, k, form.group, form.has_minimums).bytes;
}

size_t packed_bytes(const CanonicalMatrix& m) {
  size_t order = m.permutation ? round_up_64(size_t(m.k) * sizeof(int32_t)) : 0;
  return packed_bytes(form_of(m), m.n, m.k) + order;
}

Status pack(ThreadPool& pool, std::span<const RawMatrix> parts, CanonicalForm form, void* memory, PackedMatrix& out) {
  int64_t n = 0;
  for (const RawMatrix& part : parts) {
    if (part.k != parts[0].k || part.n <= 0) return {Code::invalid_argument, "stacked weights differ in their input size"};
    n += part.n;
  }
  if (n <= 0 || n > INT32_MAX) return {Code::invalid_argument, "a weight of " + std::to_string(n) + " rows"};
  int k = parts[0].k;
  TileLayout t = tile_layout(form.precision, k, form.group, form.has_minimums);
  std::mutex mutex;
  Status failure;
  pool.for_ranges(tile_count(int(n)), 8, [&](int64_t begin, int64_t end, int) {
    CanonicalStorage strip;
    for (int64_t tile = begin; tile < end; ++tile) {
      Status status = pack_tile(parts, form, t, tile, static_cast<char*>(memory) + size_t(tile) * t.bytes, strip);
      if (status.ok()) continue;
      std::lock_guard lock(mutex);
      failure = status;
      return;
    }
  });
  ES_RETURN_IF_ERROR(failure);
  out = describe(form, int(n), k, memory);
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
      for (int r = 0; r < rows; ++r) pack_row(m, t, form.has_minimums, int(tile) * kTileRows + r, r, to);
    }
  });
  out = describe(form, m.n, m.k, memory);
  if (m.permutation) {
    char* order = static_cast<char*>(memory) + out.bytes;
    std::memcpy(order, m.permutation, size_t(m.k) * sizeof(int32_t));
    out.permutation = reinterpret_cast<const int32_t*>(order);
    out.bytes = packed_bytes(m);
  }
  return {};
}

}  // namespace edgeshift::cpu
