// Every op in plain double arithmetic, straight from its definition in ops/*.h: what the backends are tested against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ops/attention.h"
#include "ops/gated_activation.h"
#include "ops/kv_codes.h"
#include "ops/packed_matrix.h"
#include "ops/rms_norm.h"
#include "ops/rope_kv.h"
#include "ops/sample.h"
#include "quant/half.h"

namespace edgeshift::ref {

// Weight of output feature `row` at position j along k.
inline double weight(const CanonicalMatrix& m, int row, int j) {
  if (m.precision == Precision::fp16) return to_float(m.values[size_t(row) * size_t(m.k) + size_t(j)]);
  size_t padded = size_t(m.padded_k());
  size_t place = size_t(row) * (padded / size_t(m.group)) + size_t(j / m.group);
  const uint8_t* codes = static_cast<const uint8_t*>(m.codes);
  int code = 0;
  if (m.precision == Precision::int8) code = int8_t(codes[size_t(row) * padded + size_t(j)]);
  else code = codes[size_t(row) * (padded / 2) + size_t(j / 2)] >> (j % 2 * 4) & 15;
  return code * double(to_float(m.scales[place])) + (m.minimums ? double(to_float(m.minimums[place])) : 0.0);
}

// y[t, n] = x[t, k] * W^T + bias.
inline void matmul(const float* x, const CanonicalMatrix& m, const float* bias, double* y, int t) {
  for (int row = 0; row < m.n; ++row) {
    std::vector<double> w(size_t(m.k));
    for (int j = 0; j < m.k; ++j) w[size_t(m.permutation ? m.permutation[j] : j)] = weight(m, row, j);
    for (int i = 0; i < t; ++i) {
      double sum = bias ? double(bias[row]) : 0.0;
      for (int j = 0; j < m.k; ++j) sum += w[size_t(j)] * double(x[size_t(i) * size_t(m.k) + size_t(j)]);
      y[size_t(i) * size_t(m.n) + size_t(row)] = sum;
    }
  }
}

inline void rms_norm(double* residual, const float* delta, const float* weight, double* out, int hidden, double eps) {
  double squares = 0;
  for (int i = 0; i < hidden; ++i) {
    if (delta) residual[i] += double(delta[i]);
    squares += residual[i] * residual[i];
  }
  double factor = 1 / std::sqrt(squares / hidden + eps);
  for (int i = 0; i < hidden; ++i) out[i] = residual[i] * factor * double(weight[i]);
}

inline double activate(double x, Activation activation) {
  if (activation == Activation::silu) return x / (1 + std::exp(-x));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

inline void gated_activation(const float* gate_up, double* out, int ffn, Activation activation) {
  for (int j = 0; j < ffn; ++j) out[j] = activate(double(gate_up[j]), activation) * double(gate_up[ffn + j]);
}

// One head of RopeKvArgs at a position: optional norm, then rotation.
inline std::vector<double> rotate(const RopeKvArgs<float>& a, const float* head, const float* norm, int position) {
  int dim = a.kv->head_dim;
  std::vector<double> h(head, head + dim);
  if (norm) {
    std::vector<double> residual = h;
    rms_norm(residual.data(), nullptr, norm, h.data(), dim, double(a.norm_eps));
  }
  int half = a.rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    double angle = double(float(position) * a.inv_freq[i]);
    double c = std::cos(angle) * double(a.scale), s = std::sin(angle) * double(a.scale);
    double& x = h[size_t(a.interleaved ? 2 * i : i)];
    double& y = h[size_t(a.interleaved ? 2 * i + 1 : i + half)];
    double old = x;
    x = old * c - y * s;
    y = y * c + old * s;
  }
  return h;
}

// A key or value of the cache (ops/kv_layout.h).
inline double cached(const KvLayout& kv, const void* arena, const uint32_t* blocks, int layer, int head, int position, int d, bool key) {
  const char* block = static_cast<const char*>(arena) + size_t(blocks[position / kv.block_size]) * kKvUnitBytes;
  size_t inside = size_t(position % kv.block_size);
  size_t at = key ? size_t(d) * size_t(kv.block_size) + inside : inside * size_t(kv.head_dim) + size_t(d);
  const char* from = block + (key ? kv.key_offset(layer, head) : kv.value_offset(layer, head)) + at * kv.element_bytes();
  if (!kv.scaled()) return to_float(*reinterpret_cast<const f16*>(from));
  const char* scales = block + (key ? kv.key_scale_offset(layer, head) : kv.value_scale_offset(layer, head));
  const double scale = double(bf16_to_float(reinterpret_cast<const uint16_t*>(scales)[inside]));
  return scale * double(kv_code_value(uint8_t(*from), kv.dtype));
}

// One query head of one token.
inline std::vector<double> attend(const AttentionArgs<float>& a, int sequence, int position, int head, const float* q) {
  const KvLayout& kv = *a.kv;
  const uint32_t* blocks = a.batch->blocks + a.batch->block_starts[sequence];
  int kv_head = head / (a.heads / kv.kv_heads);
  int first = a.window > 0 ? std::max(0, position - a.window + 1) : 0;
  std::vector<double> scores, out(size_t(kv.head_dim));
  double top = -INFINITY, sum = 0;
  for (int p = first; p <= position; ++p) {
    double dot = 0;
    for (int d = 0; d < kv.head_dim; ++d) dot += double(q[d]) * cached(kv, a.arena, blocks, a.layer, kv_head, p, d, true);
    dot *= double(a.scale);
    if (a.softcap > 0) dot = double(a.softcap) * std::tanh(dot / double(a.softcap));
    scores.push_back(dot);
    top = std::max(top, dot);
  }
  for (double& s : scores) sum += s = std::exp(s - top);
  for (int p = first; p <= position; ++p) {
    double w = scores[size_t(p - first)] / sum;
    for (int d = 0; d < kv.head_dim; ++d) out[size_t(d)] += w * cached(kv, a.arena, blocks, a.layer, kv_head, p, d, false);
  }
  return out;
}

// Steps 1 and 2 of ops/sample.h, in double; `mask`: [mask_words(vocab)], null = none.
inline std::vector<double> adjusted_logits(const float* logits, int vocab, const SamplingState& s, const uint32_t* mask = nullptr) {
  std::vector<double> out(logits, logits + vocab);
  for (int token = 0; token < vocab; ++token) {
    int all = int(std::count(s.tokens.begin(), s.tokens.end(), token));
    int output = int(std::count(s.tokens.begin() + s.prompt_length, s.tokens.end(), token));
    double& l = out[size_t(token)];
    if (all) l = l > 0 ? l / double(s.repetition_penalty) : l * double(s.repetition_penalty);
    if (output) l -= double(s.presence_penalty) + double(s.frequency_penalty) * output;
  }
  for (size_t i = 0; i < s.bias_tokens.size(); ++i) out[size_t(s.bias_tokens[i])] += double(s.bias_values[i]);
  if (int(s.tokens.size()) - s.prompt_length < s.min_tokens) {
    for (int32_t token : s.stop_tokens) out[size_t(token)] = -INFINITY;
  }
  for (int token = 0; mask && token < vocab; ++token) {
    if (!(mask[token / 32] >> token % 32 & 1)) out[size_t(token)] = -INFINITY;
  }
  return out;
}

// Tokens that step 4 leaves, likeliest first.
inline std::vector<int> candidates(const std::vector<double>& logits, const SamplingState& s) {
  std::vector<int> order;
  for (int i = 0; i < int(logits.size()); ++i) {
    if (logits[size_t(i)] > -INFINITY) order.push_back(i);
  }
  auto z = [&](int i) { return float(logits[size_t(i)]) / s.temperature; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return z(a) > z(b); });
  size_t keep = order.size();
  float top = z(order[0]);
  while (s.min_p > 0 && keep > 1 && z(order[keep - 1]) < top + std::log(s.min_p)) --keep;
  if (s.top_k > 0) keep = std::min(keep, size_t(s.top_k));
  if (s.top_p < 1) {
    double total = 0, sum = 0;
    for (size_t i = 0; i < keep; ++i) total += std::exp(double(z(order[i]) - top));
    size_t n = 0;
    while (n < keep && (n == 0 || sum < double(s.top_p) * total)) sum += std::exp(double(z(order[n++]) - top));
    keep = n;
  }
  order.resize(keep);
  return order;
}

// The token that steps 1 to 5 give.
inline int sample(const float* logits, int vocab, const SamplingState& s, const uint32_t* mask = nullptr) {
  std::vector<double> l = adjusted_logits(logits, vocab, s, mask);
  const auto largest = std::max_element(l.begin(), l.end());
  if (!(s.temperature > 0) || std::isinf(float(*largest) / s.temperature)) return int(largest - l.begin());
  DrawKey key = draw_key(s.seed, s.tokens.size());
  int winner = -1;
  double best = -INFINITY;
  for (int token : candidates(l, s)) {
    double u = draw_uniform(draw_bits(key, uint32_t(token)));
    double score = double(float(l[size_t(token)]) / s.temperature) - std::log(-std::log(u));
    if (score > best || (score == best && token < winner)) {
      best = score;
      winner = token;
    }
  }
  return winner;
}

}  // namespace edgeshift::ref
