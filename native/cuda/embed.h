// Token embedding lookup from a packed table.
#pragma once

#include "cuda/launch.h"
#include "ops/embed.h"

namespace edgeshift::cuda {

// Rows of the table, dequantized; tokens out of range give zeros.
Status embed(const EmbedArgs& args, const Launch& on);

}  // namespace edgeshift::cuda
