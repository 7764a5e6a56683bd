// The gate of a gated feed-forward layer.
#pragma once

#include "core/dtype.h"
#include "cuda/launch.h"
#include "ops/gated_activation.h"

namespace edgeshift::cuda {

// For rows in plain order; the fused path is Epilogue::gate.
Status gated_activation(const GatedActivationArgs<f16>& args, const Launch& on);

}  // namespace edgeshift::cuda
