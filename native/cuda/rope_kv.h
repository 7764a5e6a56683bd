// Rotary embedding, q/k norm and cache write of a fused qkv row.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "ops/rope_kv.h"

namespace edgeshift::cuda {

// unsupported: head_dim over 256.
Status rope_kv(const RopeKvArgs<f16>& args, const Launch& on);

}  // namespace edgeshift::cuda
