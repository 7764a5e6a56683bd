// Tiny random models and the slow double-precision forward pass that they are held against.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/backend.h"
#include "ops/kv_layout.h"
#include "test/check.h"

namespace edgeshift::test {

inline constexpr int kBlock = 16;

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct Net {
  ModelSpec spec;
  std::map<std::string, Tensor> tensors;
  KvDtype kv_dtype = KvDtype::fp16;

  std::vector<WeightSource> sources() const {
    std::vector<WeightSource> out;
    for (const auto& [slot, t] : tensors) {
      WeightSource& source = out.emplace_back();
      source.slot = slot;
      source.shape = t.shape;
      source.values = {"f32", t.shape, reinterpret_cast<const uint8_t*>(t.values.data()), t.values.size() * sizeof(float)};
    }
    return out;
  }
};

struct Options {
  bool tied = true, bias = false, qk_norm = false, interleaved = false;
  int window = 0, head_dim = 16, rotary = 16;
  int hidden = 64, ffn = 96;
  bool all_biases = false, gelu = false, post_norms = false, local_rope = false, nope = false;
  float norm_offset = 0, embedding_scale = 1, attention_softcap = 0, final_softcap = 0;
  float gate_up_gain = 1, down_gain = 1;  // what these weights are larger by
  KvDtype kv_dtype = KvDtype::fp16;
};

inline Net make_net(const Options& o) {
  Net net;
  net.kv_dtype = o.kv_dtype;
  ModelSpec& s = net.spec;
  s.vocab = 80, s.hidden = o.hidden, s.layers = 2, s.heads = 4, s.kv_heads = 2, s.head_dim = o.head_dim, s.ffn = o.ffn;
  s.norm_eps = 1e-5f;
  s.attention_scale = 1 / std::sqrt(float(o.head_dim));
  s.rope_interleaved = o.interleaved;
  s.ropes.resize(1);
  for (int i = 0; i < o.rotary / 2; ++i) s.ropes[0].inv_freq.push_back(std::pow(100.0f, -2.0f * i / o.rotary));
  s.layer_ropes = {0, o.nope ? -1 : 0};
  if (o.local_rope) {
    s.ropes.push_back({{0.5f, 0.25f, 0.125f, 0.0625f}, 0.9f});
    s.layer_ropes[0] = 1;
  }
  s.activation = o.gelu ? Activation::gelu_tanh : Activation::silu;
  s.norm_offset = o.norm_offset, s.embedding_scale = o.embedding_scale, s.post_norms = o.post_norms;
  s.attention_softcap = o.attention_softcap, s.final_softcap = o.final_softcap;
  s.windows = {o.window, 0};
  std::mt19937 rng(7);
  auto add = [&](const std::string& slot, std::vector<int64_t> shape, float mean, float spread) {
    int64_t count = 1;
    for (int64_t d : shape) count *= d;
    std::normal_distribution<float> draw(mean, spread);
    Tensor t{std::move(shape), std::vector<float>(size_t(count))};
    // Values that binary16 holds: the difference that is left is the arithmetic's.
    for (float& v : t.values) v = std::round(draw(rng) * 1024) / 1024;
    net.tensors.emplace(slot, std::move(t));
  };
  const int q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  add("embed", {s.vocab, s.hidden}, 0, 1);
  add("final_norm", {s.hidden}, 1, 0.1f);
  if (!o.tied) add("head", {s.vocab, s.hidden}, 0, 0.3f);
  for (int i = 0; i < s.layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    add(p + "attn_norm", {s.hidden}, 1, 0.1f), add(p + "ffn_norm", {s.hidden}, 1, 0.1f);
    add(p + "q", {q, s.hidden}, 0, 0.2f), add(p + "k", {kv, s.hidden}, 0, 0.2f), add(p + "v", {kv, s.hidden}, 0, 0.2f);
    add(p + "o", {s.hidden, q}, 0, 0.1f);
    add(p + "gate", {s.ffn, s.hidden}, 0, 0.1f * o.gate_up_gain), add(p + "up", {s.ffn, s.hidden}, 0, 0.1f * o.gate_up_gain);
    add(p + "down", {s.hidden, s.ffn}, 0, 0.1f * o.down_gain);
    if (o.bias) add(p + "q_bias", {q}, 0, 0.5f), add(p + "v_bias", {kv}, 0, 0.5f);
    if (o.all_biases) {
      add(p + "k_bias", {kv}, 0, 0.5f), add(p + "o_bias", {s.hidden}, 0, 0.2f), add(p + "gate_bias", {s.ffn}, 0, 0.2f);
      add(p + "up_bias", {s.ffn}, 0, 0.2f), add(p + "down_bias", {s.hidden}, 0, 0.2f);
    }
    if (o.post_norms) add(p + "post_attn_norm", {s.hidden}, 0.5f, 0.1f), add(p + "post_ffn_norm", {s.hidden}, 0.5f, 0.1f);
    if (o.qk_norm) add(p + "q_norm", {s.head_dim}, 1, 0.2f), add(p + "k_norm", {s.head_dim}, 1, 0.2f);
  }
  return net;
}

// What rounding keys and values of these random models to a cache's codes may add to a difference, as a share of the logits'
// standard deviation.
inline double cache_tolerance(KvDtype dtype) { return dtype == KvDtype::fp8 ? 0.2 : dtype == KvDtype::int8 ? 0.06 : 0; }

using Vec = std::vector<double>;

// The definition, token by token, nothing shared with the product.
class Reference {
 public:
  explicit Reference(const Net& net) : net_(net), s_(net.spec), keys_(s_.layers), values_(s_.layers) {}

  // Logits after the token.
  Vec next(int token) {
    Vec x(w("embed") + token * s_.hidden, w("embed") + (token + 1) * s_.hidden);
    for (double& v : x) v *= double(s_.embedding_scale);
    for (int i = 0; i < s_.layers; ++i) {
      const std::string p = "layers." + std::to_string(i) + ".";
      add(x, post(attention(i, p, norm(x, p + "attn_norm")), p + "post_attn_norm"));
      const Vec h = norm(x, p + "ffn_norm");
      Vec gate = linear(p + "gate", h, s_.ffn), up = linear(p + "up", h, s_.ffn);
      for (int j = 0; j < s_.ffn; ++j) gate[j] = activate(gate[j]) * up[j];
      add(x, post(linear(p + "down", gate, s_.hidden), p + "post_ffn_norm"));
    }
    ++position_;
    Vec logits = times(net_.tensors.contains("head") ? "head" : "embed", norm(x, "final_norm"), s_.vocab);
    for (double& l : logits) l = capped(l, double(s_.final_softcap));
    return logits;
  }

 private:
  const float* w(const std::string& slot) const { return net_.tensors.at(slot).values.data(); }
  static void add(Vec& x, const Vec& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  static double capped(double x, double cap) { return cap > 0 ? cap * std::tanh(x / cap) : x; }
  double activate(double x) const {
    if (s_.activation == Activation::silu) return x / (1 + std::exp(-x));
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
  }
  Vec post(const Vec& y, const std::string& slot) const { return s_.post_norms ? norm(y, slot) : y; }
  Vec normed(const double* x, int n, const float* weight, double eps) const {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    Vec out(n);
    for (int i = 0; i < n; ++i) out[i] = x[i] / std::sqrt(sum / n + eps) * (double(weight[i]) + double(s_.norm_offset));
    return out;
  }
  Vec norm(const Vec& x, const std::string& slot) const {
    return normed(x.data(), int(x.size()), w(slot), s_.norm_eps);
  }
  Vec times(const std::string& slot, const Vec& x, int n) const {
    Vec y(n);
    for (int i = 0; i < n; ++i) {
      for (size_t j = 0; j < x.size(); ++j) y[i] += x[j] * double(w(slot)[i * x.size() + j]);
    }
    return y;
  }
  Vec project(const std::string& slot, const Vec& x, int heads) const { return linear(slot, x, heads * s_.head_dim); }
  Vec linear(const std::string& slot, const Vec& x, int n) const {
    Vec y = times(slot, x, n);
    if (net_.tensors.contains(slot + "_bias")) {
      for (size_t i = 0; i < y.size(); ++i) y[i] += w(slot + "_bias")[i];
    }
    return y;
  }
  void rotate(double* head, int layer) const {
    if (s_.layer_ropes[size_t(layer)] < 0) return;
    const RopeTable& rope = s_.ropes[size_t(s_.layer_ropes[size_t(layer)])];
    const int half = int(rope.inv_freq.size());
    for (int i = 0; i < half; ++i) {
      const double angle = position_ * double(rope.inv_freq[i]);
      const double c = std::cos(angle) * double(rope.scale), n = std::sin(angle) * double(rope.scale);
      double& a = head[s_.rope_interleaved ? 2 * i : i];
      double& b = head[s_.rope_interleaved ? 2 * i + 1 : i + half];
      const double a0 = a, b0 = b;
      a = a0 * c - b0 * n, b = b0 * c + a0 * n;
    }
  }
  void finish_heads(Vec& y, const std::string& norm_slot, int layer) const {
    for (size_t h = 0; h < y.size(); h += s_.head_dim) {
      if (net_.tensors.contains(norm_slot)) {
        const Vec n = normed(&y[h], s_.head_dim, w(norm_slot), s_.norm_eps);
        std::copy(n.begin(), n.end(), y.begin() + long(h));
      }
      rotate(&y[h], layer);
    }
  }
  Vec attention(int layer, const std::string& p, const Vec& h) {
    Vec q = project(p + "q", h, s_.heads), k = project(p + "k", h, s_.kv_heads);
    finish_heads(q, p + "q_norm", layer);
    finish_heads(k, p + "k_norm", layer);
    keys_[layer].push_back(k);
    values_[layer].push_back(project(p + "v", h, s_.kv_heads));
    const int d = s_.head_dim, first = s_.windows[layer] ? std::max(0, position_ - s_.windows[layer] + 1) : 0;
    Vec out(s_.heads * d);
    for (int head = 0; head < s_.heads; ++head) {
      const int kv = head / (s_.heads / s_.kv_heads) * d;
      Vec p_of(position_ + 1);
      double sum = 0;
      for (int t = first; t <= position_; ++t) {
        double score = 0;
        for (int i = 0; i < d; ++i) score += q[head * d + i] * keys_[layer][t][kv + i];
        sum += p_of[t] = std::exp(capped(score * double(s_.attention_scale), double(s_.attention_softcap)));
      }
      for (int t = first; t <= position_; ++t) {
        for (int i = 0; i < d; ++i) out[head * d + i] += p_of[t] / sum * values_[layer][t][kv + i];
      }
    }
    return linear(p + "o", out, s_.hidden);
  }

  const Net& net_;
  const ModelSpec& s_;
  std::vector<std::vector<Vec>> keys_, values_;
  int position_ = 0;
};

inline std::unique_ptr<Backend> open() {
  auto backend = open_cpu(2, 4 << 20);
  ES_CHECK(backend.ok());
  return std::move(backend.value());
}

inline std::unique_ptr<Model> load(Backend& backend, const Net& net, const std::vector<WeightSource>& sources, Precision precision) {
  LoadOptions options{precision, 4, 64, kBlock, {}};
  options.kv_dtype = net.kv_dtype;
  auto model = backend.load(net.spec, sources, options);
  if (model.ok()) return std::move(model.value());
  test::report(__FILE__, __LINE__, model.status().message());
  return nullptr;
}

// A batch of one sequence in slot 0 whose last token's whole distribution is scored.
inline StepBatch scoring_batch(const Model& model, int vocab, const std::vector<int32_t>& tokens, int first) {
  StepBatch b;
  b.tokens = tokens;
  b.seq_starts = {0, int32_t(tokens.size())};
  b.first_positions = {first};
  b.slots = {0};
  const int blocks = (first + int(tokens.size()) + kBlock - 1) / kBlock;
  // Backwards, so that neighbouring positions lie apart.
  for (int i = 0; i < blocks; ++i) b.blocks.push_back(uint32_t((20 - i) * model.block_bytes() / kKvUnitBytes));
  b.block_starts = {0, blocks};
  for (int32_t id = 0; id < vocab; ++id) {
    b.row_tokens.push_back(int32_t(tokens.size()) - 1);
    b.row_seqs.push_back(0);
    b.row_targets.push_back(id);
    b.row_top.push_back(0);
  }
  return b;
}

// Largest difference of a log probability over a prefill in pieces and decode steps; `spread`: of the last logits.
inline double worst_difference(Backend& backend, const Net& net, const std::vector<WeightSource>& sources,
                               Precision precision, double& spread,
                               std::initializer_list<int> counts = {5, 1, 30, 1, 17, 1}) {
  auto model = load(backend, net, sources, precision);
  if (!model) return INFINITY;
  Reference reference(net);
  std::mt19937 rng(11);
  ES_CHECK(model->set_slot(0, SamplingState()).ok());
  double worst = 0;
  int position = 0;
  for (int count : counts) {
    std::vector<int32_t> tokens;
    Vec logits;
    for (int i = 0; i < count; ++i) {
      tokens.push_back(int32_t(rng() % unsigned(net.spec.vocab)));
      logits = reference.next(tokens.back());
    }
    StepResult result;
    Status status = model->step(scoring_batch(*model, net.spec.vocab, tokens, position), result);
    if (!status.ok()) test::report(__FILE__, __LINE__, status.message());
    if (!status.ok()) return INFINITY;
    position += count;
    double sum = 0, mean = 0, square = 0;
    for (double l : logits) sum += std::exp(l), mean += l / double(logits.size());
    for (double l : logits) square += (l - mean) * (l - mean) / double(logits.size());
    spread = std::sqrt(square);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double difference = std::abs(result.rows[i].logprob - (logits[i] - std::log(sum)));
      if (!std::isfinite(difference)) return INFINITY;
      worst = std::max(worst, difference);
    }
  }
  return worst;
}

// The same on the CPU.
inline double worst_difference(const Net& net, const std::vector<WeightSource>& sources, Precision precision, double& spread,
                               std::initializer_list<int> counts = {5, 1, 30, 1, 17, 1}) {
  auto backend = open();
  return worst_difference(*backend, net, sources, precision, spread, counts);
}

}  // namespace edgeshift::test
