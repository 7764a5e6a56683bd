// Root mean square norm, fused with the residual addition before it (Zhang and Sennrich 2019).
#pragma once

namespace edgeshift {

// residual += delta (when delta is set); out = residual / sqrt(mean(residual^2) + eps) * weight.
// The residual stream is fp32 on every backend; Act is the backend's activation type.
template <class Act>
struct RmsNormArgs {
  float* residual = nullptr;      // [t, hidden], updated in place
  const Act* delta = nullptr;     // [t, hidden] or null
  const float* weight = nullptr;  // [hidden]
  Act* out = nullptr;             // [t, hidden]
  int t = 0;
  int hidden = 0;
  float eps = 0;
};

}  // namespace edgeshift
