// The kernels of cpu/pointwise_kernels.h over a register set S (cpu/simd.h).
#pragma once

#include "cpu/pointwise_kernels.h"
#include "cpu/simd.h"

namespace edgeshift::cpu {

template <class S>
struct Pointwise {
  using V = typename S::V;
  static constexpr int W = S::width;

  static float sum_of_squares(const float* x, int count) {
    V acc[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
    int i = 0;
    for (; i + 4 * W <= count; i += 4 * W) {
      for (int j = 0; j < 4; ++j) {
        V v = S::load(x + i + j * W);
        acc[j] = S::fma(v, v, acc[j]);
      }
    }
    for (; i + W <= count; i += W) {
      V v = S::load(x + i);
      acc[0] = S::fma(v, v, acc[0]);
    }
    float total = S::sum(S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3])));
    for (; i < count; ++i) total += x[i] * x[i];
    return total;
  }

  static void scale_rows(const float* x, const float* weight, float factor, float* out, int count) {
    V f = S::set(factor);
    int i = 0;
    for (; i + W <= count; i += W) S::store(out + i, S::mul(S::mul(S::load(x + i), f), S::load(weight + i)));
    for (; i < count; ++i) out[i] = x[i] * factor * weight[i];
  }

  static void rms_norm(float* residual, const float* delta, const float* weight, float* out, int hidden, float eps) {
    if (delta) {
      int i = 0;
      for (; i + W <= hidden; i += W) S::store(residual + i, S::add(S::load(residual + i), S::load(delta + i)));
      for (; i < hidden; ++i) residual[i] += delta[i];
    }
    float factor = 1.0f / std::sqrt(sum_of_squares(residual, hidden) / float(hidden) + eps);
    scale_rows(residual, weight, factor, out, hidden);
  }

  // Both activations are x * sigmoid(z): z = x for SiLU; tanh(u) = 2 * sigmoid(2u) - 1 gives z = 2u for GELU.
  static V activate(V x, Activation activation) {
    V z = x;
    if (activation == Activation::gelu_tanh) {
      V cube = S::mul(S::mul(x, x), x);
      z = S::mul(S::set(1.5957691216f), S::fma(S::set(0.044715f), cube, x));
    }
    return S::div(x, S::add(S::set(1.0f), exp_of<S>(S::sub(S::zero(), z))));
  }

  static void gate(const float* gate, const float* up, float* out, int count, Activation activation) {
    int i = 0;
    for (; i + W <= count; i += W) S::store(out + i, S::mul(activate(S::load(gate + i), activation), S::load(up + i)));
    if (i == count) return;
    float g[W] = {}, u[W] = {}, o[W];
    for (int j = i; j < count; ++j) {
      g[j - i] = gate[j];
      u[j - i] = up[j];
    }
    S::store(o, S::mul(activate(S::load(g), activation), S::load(u)));
    for (int j = i; j < count; ++j) out[j] = o[j - i];
  }

  static void rotate_halves(const RotateArgs& a) {
    int half = a.rotary_dim / 2;
    float* low = a.head;
    float* high = a.head + half;
    int i = 0;
    for (; i + W <= half; i += W) {
      V x = S::load(low + i), y = S::load(high + i), c = S::load(a.cos + i), s = S::load(a.sin + i);
      S::store(low + i, S::sub(S::mul(x, c), S::mul(y, s)));
      S::store(high + i, S::add(S::mul(y, c), S::mul(x, s)));
    }
    for (; i < half; ++i) {
      float x = low[i], y = high[i];
      low[i] = x * a.cos[i] - y * a.sin[i];
      high[i] = y * a.cos[i] + x * a.sin[i];
    }
  }

  static void rotate_pairs(const RotateArgs& a) {
    for (int i = 0; i < a.rotary_dim / 2; ++i) {
      float x = a.head[2 * i], y = a.head[2 * i + 1];
      a.head[2 * i] = x * a.cos[i] - y * a.sin[i];
      a.head[2 * i + 1] = y * a.cos[i] + x * a.sin[i];
    }
  }

  static void rotate(const RotateArgs& a) {
    if (a.norm) {
      float factor = 1.0f / std::sqrt(sum_of_squares(a.head, a.head_dim) / float(a.head_dim) + a.eps);
      scale_rows(a.head, a.norm, factor, a.head, a.head_dim);
    }
    if (a.interleaved) rotate_pairs(a);
    else rotate_halves(a);
  }

  static void to_half(const float* from, f16* to, int count) {
    int i = 0;
    for (; i + W <= count; i += W) S::store_half(to + i, S::load(from + i));
    if (i == count) return;
    float padded[W] = {};
    f16 halves[W];
    for (int j = i; j < count; ++j) padded[j - i] = from[j];
    S::store_half(halves, S::load(padded));
    for (int j = i; j < count; ++j) to[j] = halves[j - i];
  }

  static constexpr PointwiseKernels kernels() { return {rms_norm, gate, rotate, to_half}; }
};

}  // namespace edgeshift::cpu
