// The CPU's packed weight layout, shared by packing, embedding and every matmul kernel.
//
// A matrix [n, k] is cut into tiles of 16 output rows (n padded with zeros), stored one after another; a tile holds all
// of k. Lane r of a vector register is output row r of the tile, so one broadcast of x feeds a full register, no sum
// across lanes is ever needed, and a thread that owns a range of tiles streams through contiguous memory.
//   fp16: values     f16 [k][16]
//   int8: scales     f16 [groups][16]
//         minimums   f16 [groups][16], only with has_minimums
//         (padding to 64 bytes)
//         codes      int8 [kp / 4][16][4]: four neighbouring inputs of one row share a 32-bit lane, as the dot product
//                    instructions want them
//   int4: as int8, always with minimums; codes uint8 [kp / 8][16][4]: byte b of row r in step j holds input 8j + b in
//         the low nibble and 8j + 4 + b in the high one, so one mask and one shift give two registers in int8 order
// kp is k rounded up to whole groups. A tile's size is a multiple of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/packed_matrix.h"

namespace edgeshift::cpu {

inline constexpr int kTileRows = 16;

struct TileLayout {
  int groups = 0;
  int padded_k = 0;
  size_t minimums = 0;  // byte offsets inside a tile
  size_t codes = 0;
  size_t bytes = 0;  // of a tile
};

inline size_t round_up_64(size_t bytes) { return (bytes + 63) / 64 * 64; }

inline TileLayout tile_layout(Precision precision, int k, int group, bool has_minimums) {
  TileLayout t;
  if (precision == Precision::fp16) {
    t.padded_k = k;
    t.bytes = round_up_64(size_t(k) * kTileRows * 2);
    return t;
  }
  t.groups = (k + group - 1) / group;
  t.padded_k = t.groups * group;
  size_t parameters = size_t(t.groups) * kTileRows * 2;
  t.minimums = parameters;
  t.codes = round_up_64(has_minimums ? 2 * parameters : parameters);
  t.bytes = t.codes + size_t(t.padded_k) * kTileRows / (precision == Precision::int4 ? 2 : 1);
  return t;
}

inline TileLayout tile_layout(const PackedMatrix& m) { return tile_layout(m.precision, m.k, m.group, m.has_minimums); }

inline int tile_count(int n) { return (n + kTileRows - 1) / kTileRows; }

}  // namespace edgeshift::cpu
