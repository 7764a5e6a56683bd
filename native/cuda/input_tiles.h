// Activations as the wide products read them: tiles of 64 inputs, in each the tokens one after another with 128 bytes a
// token, inputs in the order of a weight fragment (strip_layout.h). A block's tokens of a stage are then one run of bytes
// that already lies as shared memory wants it: the 16-byte pieces of a token are swapped by the lowest three bits of its
// number, which is free of bank conflicts for ldmatrix and what wgmma calls its 128-byte swizzle.
//
// With step s of a tile and pair p of its fragment, piece 2s + p of a token holds inputs 32 (s / 2) + 8t + 4 (s % 2) + 2p + {0,1}
// for t = 0..3, and stands at place (2s + p) ^ (token % 8).
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "cuda/strip_layout.h"

namespace edgeshift::cuda {

// Tokens are padded to a multiple of this; what stands there is never used.
inline constexpr int kTokenPadding = 256;

inline size_t padded_tokens(int t) { return (size_t(t) + kTokenPadding - 1) / kTokenPadding * kTokenPadding; }

// Bytes of a tile of t tokens.
inline size_t input_tile_bytes(int t) { return padded_tokens(t) * kTileInputs * 2; }

// Tiles of 64 inputs of a weight, padding included.
inline int input_tiles(const StripLayout& layout) { return layout.chunks * (layout.chunk / kTileInputs); }

// Bytes of t tokens with up to k inputs in tiles, whatever weight of that width they go to.
inline size_t tiled_input_bytes(int t, int k) { return padded_tokens(t) * 2 * ((size_t(k) * 16 / 15 + 256) / 64 * 64); }

// Bytes from the start to input `k` of a token, with tile_bytes from tile to tile. Inputs 2i and 2i + 1 are neighbours.
ES_HOST_DEVICE inline size_t tiled_input(int token, int k, size_t tile_bytes) {
  const int piece = k / 32 % 2 * 4 + k / 4 % 2 * 2 + k / 2 % 2;
  return size_t(k / kTileInputs) * tile_bytes + size_t(token) * 128 + (piece ^ token % 8) * 16 + k / 8 % 4 * 4 + k % 2 * 2;
}

// Writes x [t, k] in tiles, zeros past k. `order` [k] or null: input i of the tiles is x's order[i].
Status tile_inputs(const f16* x, const int32_t* order, int t, int k, int tiles, void* out, const Launch& on);

}  // namespace edgeshift::cuda
