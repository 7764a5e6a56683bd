// Rotary embedding, q/k norm and cache write of a fused qkv row.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "ops/rope_kv.h"

namespace edgeshift::cuda {

// Rotary tables that sequences have of their own (rope scaling by the prompt's length). Device pointers.
struct SequenceRopes {
  const float* tables = nullptr;   // [slots, width]; null = no sequence has any
  const int32_t* slots = nullptr;  // [s] row of `tables`, -1 = the model's table
  int width = 0;
  int offset = 0;  // of the layer's table in a row: inverse frequencies, then the scale
};

struct RopeArgs : RopeKvArgs<f16> {
  RopeArgs() = default;
  RopeArgs(const RopeKvArgs<f16>& base) : RopeKvArgs<f16>(base) {}

  SequenceRopes own;
};

// unsupported: head_dim over 256.
Status rope_kv(const RopeArgs& args, const Launch& on);

}  // namespace edgeshift::cuda
