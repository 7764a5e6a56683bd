// Root mean square norm fused with the residual addition before it.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "ops/rms_norm.h"

namespace edgeshift::cuda {

// unsupported: hidden not a multiple of 4, or over 32,768.
Status rms_norm(const RmsNormArgs<f16>& args, const Launch& on);

}  // namespace edgeshift::cuda
