// The device layout of a packed weight: strips of 16 output rows in tensor-core fragment order.
//
// mma.m16n8k16 takes the weight as its A operand (16 output features x 16 inputs) and the activations as B (16 inputs
// x 8 tokens), so one layout serves every batch size and a batch of 1 wastes no weight bandwidth. A strip is a sequence
// of chunks in order of k, each its codes and then its scales, so that a kernel streams a matrix front to back and the
// next matrix can be prefetched by address. A chunk holds 2 KB of codes (int4 256, int8 128, fp16 64 inputs), less
// where that would pad k by more than a sixteenth.
//
// Codes are cut into tiles of 16 rows x 64 inputs. With g = lane / 4 and t = lane % 4, lane l holds rows g and g + 8 and
// inputs 8t .. 8t+7 of each half of 32; mma step s (0..3) takes inputs 32 (s / 2) + 8t + 4 (s % 2) + {0,1} as fragment
// k-pair 0 and + {2,3} as k-pair 1. The sum over k does not care for the order, and a lane's B operand for two steps is
// then 16 consecutive bytes of the activation row: one shared load instead of ldmatrix. Two steps cover 32 whole inputs,
// the smallest group.
// Registers of a step: a0 = (g, pair 0), a1 = (g + 8, pair 0), a2 = (g, pair 1), a3 = (g + 8, pair 1).
// A tile is stored as quads of 512 bytes, 16 bytes per lane:
//   int4: 1 quad; word s of the lane = step s; nibbles from bit 0: a0.lo a2.lo a1.lo a3.lo a0.hi a2.hi a1.hi a3.hi
//   int8: 2 quads; quad q = steps 2q, 2q+1; words (a0.lo a0.hi a1.lo a1.hi), (a2.lo ..) per step; bytes are code + 128
//   fp16: 4 quads; quad s = step s: a0 a1 a2 a3
// Scales of a chunk: per `flush` inputs and g: scale[g], minimum[g], scale[g+8], minimum[g+8] as f16 (64 bytes).
#pragma once

#include <algorithm>
#include <cstddef>

#include "core/host_device.h"
#include "ops/packed_matrix.h"

namespace edgeshift::cuda {

inline constexpr int kStripRows = 16;
inline constexpr int kTileInputs = 64;

// Which logical row a strip's row r holds. gate_up puts 8 gate rows above their 8 up rows so that the thread that has a
// gate value in one accumulator has its up value in another: the activation needs no exchange.
enum class RowOrder { plain, gate_up };

struct StripLayout {
  int strips = 0;
  int flush = 0;        // inputs that share one scale in the inner loop: 32, 64 or 128
  int chunk = 0;        // inputs
  int chunks = 0;       // per strip; k is padded with zeros to chunks * chunk
  int code_bytes = 0;   // per chunk
  int scale_bytes = 0;  // per chunk; 0 for fp16
  ES_HOST_DEVICE int chunk_bytes() const { return code_bytes + scale_bytes; }
  ES_HOST_DEVICE size_t strip_bytes() const { return size_t(chunk_bytes()) * chunks; }
  size_t bytes() const { return strip_bytes() * strips; }
  ES_HOST_DEVICE int flushes() const { return chunks * (chunk / flush); }  // per strip
};

inline int weight_bits(Precision precision) {
  return precision == Precision::fp16 ? 16 : precision == Precision::int8 ? 8 : 4;
}

// Layout of an [n, k] matrix; group is a multiple of 32 (ignored for fp16). Groups other than 32, 64 and 128 store their
// scale once per `flush` inputs, the largest of these three that divides them.
inline StripLayout strip_layout(Precision precision, int n, int k, int group) {
  StripLayout layout;
  bool quantized = precision != Precision::fp16;
  layout.strips = (n + kStripRows - 1) / kStripRows;
  layout.flush = !quantized ? 64 : group % 128 == 0 ? 128 : group % 64 == 0 ? 64 : 32;
  int wide = 1024 / weight_bits(precision), narrow = std::max(kTileInputs, layout.flush);
  auto padded = [&](int chunk) { return (size_t(k) + chunk - 1) / chunk * chunk; };
  layout.chunk = padded(wide) * 15 <= padded(narrow) * 16 ? wide : narrow;
  layout.chunks = int(padded(layout.chunk) / layout.chunk);
  layout.code_bytes = kStripRows * layout.chunk * weight_bits(precision) / 8;
  layout.scale_bytes = quantized ? 64 * (layout.chunk / layout.flush) : 0;
  return layout;
}

}  // namespace edgeshift::cuda
