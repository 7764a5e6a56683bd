// Root mean square norm fused with the residual addition before it.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "ops/rms_norm.h"

namespace edgeshift::cuda {

// Writes rows, or with tile_bytes above 0 tiles of that many bytes (input_tiles.h).
// unsupported: hidden not a multiple of 4, or over 32,768.
Status rms_norm(const RmsNormArgs<f16>& args, size_t tile_bytes, const Launch& on);

}  // namespace edgeshift::cuda
