// The kernels of the ops that work on one token at a time: norm, gate, rotary embedding.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "ops/gated_activation.h"

namespace edgeshift::cpu {

// One row of rms_norm (ops/rms_norm.h).
using RmsNormKernel = void (*)(float* residual, const float* delta, const float* weight, float* out, int hidden, float eps);

// out[i] = activation(gate[i]) * up[i] for i < count.
using GateKernel = void (*)(const float* gate, const float* up, float* out, int count, Activation activation);

// Optional RMS norm of one head, then the rotation of its first rotary_dim values; in place.
struct RotateArgs {
  float* head = nullptr;  // [head_dim]
  int head_dim = 0;
  const float* norm = nullptr;  // [head_dim] or null
  float eps = 0;
  const float* cos = nullptr;  // [rotary_dim / 2]
  const float* sin = nullptr;
  int rotary_dim = 0;
  bool interleaved = false;
};
using RotateKernel = void (*)(const RotateArgs& args);

// count floats to fp16, saturating.
using HalfKernel = void (*)(const float* from, f16* to, int count);

struct PointwiseKernels {
  RmsNormKernel rms_norm;
  GateKernel gate;
  RotateKernel rotate;
  HalfKernel to_half;
};

extern const PointwiseKernels pointwise_scalar;
extern const PointwiseKernels pointwise_avx2;
extern const PointwiseKernels pointwise_avx512;

}  // namespace edgeshift::cpu
