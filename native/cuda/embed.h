// Token embedding lookup from a packed table.
#pragma once

#include "cuda/launch.h"
#include "ops/embed.h"

namespace edgeshift::cuda {

// Rows of the table, dequantized; tokens out of range give zeros. A token below 0 stands for last_tokens[-1 - token]
// (device; may be null where there is none).
Status embed(const EmbedArgs& args, const int32_t* last_tokens, const Launch& on);

}  // namespace edgeshift::cuda
