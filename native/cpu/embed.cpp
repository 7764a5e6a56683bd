#include <algorithm>
#include <string>

#include "cpu/ops.h"
#include "cpu/tile.h"
#include "quant/half.h"

namespace edgeshift::cpu {

namespace {

void half_row(const PackedMatrix& m, const char* tile, int lane, float* out) {
  const f16* from = reinterpret_cast<const f16*>(tile) + lane;
  for (int i = 0; i < m.k; ++i) out[i] = to_float(from[i * kTileRows]);
}

int code_at(const PackedMatrix& m, const char* codes, int i) {
  if (m.precision == Precision::int8) return static_cast<int8_t>(codes[(i / 4) * 64 + i % 4]);
  uint8_t byte = uint8_t(codes[(i / 8) * 64 + i % 4]);
  return i % 8 < 4 ? byte & 15 : byte >> 4;
}

void quantized_row(const PackedMatrix& m, const TileLayout& t, const char* tile, int lane, float* out) {
  const f16* scales = reinterpret_cast<const f16*>(tile) + lane;
  const f16* minimums = reinterpret_cast<const f16*>(tile + t.minimums) + lane;
  const char* codes = tile + t.codes + lane * 4;
  for (int g = 0; g < t.groups; ++g) {
    float scale = to_float(scales[g * kTileRows]);
    float minimum = m.has_minimums ? to_float(minimums[g * kTileRows]) : 0.0f;
    for (int i = g * m.group; i < std::min(m.k, (g + 1) * m.group); ++i) {
      out[m.permutation ? m.permutation[i] : i] = float(code_at(m, codes, i)) * scale + minimum;
    }
  }
}

}  // namespace

Status embed(ThreadPool& pool, const EmbedArgs& args) {
  const PackedMatrix& m = *args.table;
  for (int i = 0; i < args.t; ++i) {
    if (args.tokens[i] < 0 || args.tokens[i] >= m.n) {
      return {Code::invalid_argument, "token " + std::to_string(args.tokens[i]) + " is outside the vocabulary"};
    }
  }
  TileLayout t = tile_layout(m);
  pool.for_ranges(args.t, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const char* tile = static_cast<const char*>(m.data) + size_t(args.tokens[i] / kTileRows) * t.bytes;
      float* out = args.out + i * m.k;
      if (m.precision == Precision::fp16) half_row(m, tile, args.tokens[i] % kTileRows, out);
      else quantized_row(m, t, tile, args.tokens[i] % kTileRows, out);
      if (args.scale != 1) std::for_each(out, out + m.k, [&](float& v) { v *= args.scale; });
    }
  });
  return {};
}

}  // namespace edgeshift::cpu
