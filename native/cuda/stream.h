// What stream_matmul hands to its kernels, one file per precision.
#pragma once

#include "cuda/tiled_kernel.cuh"

namespace edgeshift::cuda {

struct StreamParams {
  TiledParams product;    // x in tiles (input_tiles.h)
  size_t x_tile_bytes;
  size_t out_tile_bytes;  // of the outputs in tiles, or 0: rows
  bool leave_parts;       // where blocks share tiles: the parts stay in product.partials, as OutputParts has them
  int splits = 0;         // blocks that share a tile, each with one part of k; 0: an equal share of all stages for each block
};

// Each chooses `splits`; parts are left where there is more than one.
Status stream_int4(StreamParams& params, const Launch& on);
Status stream_int8(StreamParams& params, const Launch& on);
Status stream_fp16(StreamParams& params, const Launch& on);

}  // namespace edgeshift::cuda
