// Root mean square norm fused with the residual addition before it, also of a product whose parts nobody has added up.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "cuda/matmul.h"
#include "ops/rms_norm.h"

namespace edgeshift::cuda {

// Writes rows, or with tile_bytes above 0 tiles of that many bytes (input_tiles.h). The residual stream is first given the sum of
// `parts` [count, t, hidden].
// unsupported: hidden not a multiple of 4, or over 32,768.
Status rms_norm(const RmsNormArgs<f16>& args, const OutputParts& parts, size_t tile_bytes, const Launch& on);

}  // namespace edgeshift::cuda
