// The whole forward pass on tiny random models against a slow double-precision one.
#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "model/backend.h"
#include "model/spec_check.h"
#include "ops/kv_layout.h"
#include "test/check.h"

using namespace edgeshift;

namespace {

constexpr int kBlock = 16;

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct Net {
  ModelSpec spec;
  std::map<std::string, Tensor> tensors;

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
};

Net make_net(const Options& o) {
  Net net;
  ModelSpec& s = net.spec;
  s.vocab = 80, s.hidden = 64, s.layers = 2, s.heads = 4, s.kv_heads = 2, s.head_dim = o.head_dim, s.ffn = 96;
  s.norm_eps = 1e-5f;
  s.attention_scale = 1 / std::sqrt(float(o.head_dim));
  s.rope_interleaved = o.interleaved;
  s.ropes.resize(1);
  for (int i = 0; i < o.rotary / 2; ++i) s.ropes[0].inv_freq.push_back(std::pow(100.0f, -2.0f * i / o.rotary));
  s.layer_ropes = {0, 0};
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
    add(p + "gate", {s.ffn, s.hidden}, 0, 0.1f), add(p + "up", {s.ffn, s.hidden}, 0, 0.1f);
    add(p + "down", {s.hidden, s.ffn}, 0, 0.1f);
    if (o.bias) add(p + "q_bias", {q}, 0, 0.5f), add(p + "v_bias", {kv}, 0, 0.5f);
    if (o.qk_norm) add(p + "q_norm", {s.head_dim}, 1, 0.2f), add(p + "k_norm", {s.head_dim}, 1, 0.2f);
  }
  return net;
}

using Vec = std::vector<double>;

// The definition, token by token, nothing shared with the product.
class Reference {
 public:
  explicit Reference(const Net& net) : net_(net), s_(net.spec), keys_(s_.layers), values_(s_.layers) {}

  // Logits after the token.
  Vec next(int token) {
    Vec x(w("embed") + token * s_.hidden, w("embed") + (token + 1) * s_.hidden);
    for (int i = 0; i < s_.layers; ++i) {
      const std::string p = "layers." + std::to_string(i) + ".";
      add(x, attention(i, p, norm(x, p + "attn_norm")));
      const Vec h = norm(x, p + "ffn_norm");
      Vec gate = times(p + "gate", h, s_.ffn), up = times(p + "up", h, s_.ffn);
      for (int j = 0; j < s_.ffn; ++j) gate[j] = gate[j] / (1 + std::exp(-gate[j])) * up[j];
      add(x, times(p + "down", gate, s_.hidden));
    }
    ++position_;
    return times(net_.tensors.contains("head") ? "head" : "embed", norm(x, "final_norm"), s_.vocab);
  }

 private:
  const float* w(const std::string& slot) const { return net_.tensors.at(slot).values.data(); }
  static void add(Vec& x, const Vec& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  static Vec normed(const double* x, int n, const float* weight, double eps) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    Vec out(n);
    for (int i = 0; i < n; ++i) out[i] = x[i] / std::sqrt(sum / n + eps) * weight[i];
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
  Vec project(const std::string& slot, const Vec& x, int heads) const {
    Vec y = times(slot, x, heads * s_.head_dim);
    if (net_.tensors.contains(slot + "_bias")) {
      for (size_t i = 0; i < y.size(); ++i) y[i] += w(slot + "_bias")[i];
    }
    return y;
  }
  void rotate(double* head) const {
    const int half = int(s_.ropes[0].inv_freq.size());
    for (int i = 0; i < half; ++i) {
      const double angle = position_ * double(s_.ropes[0].inv_freq[i]), c = std::cos(angle), n = std::sin(angle);
      double& a = head[s_.rope_interleaved ? 2 * i : i];
      double& b = head[s_.rope_interleaved ? 2 * i + 1 : i + half];
      const double a0 = a, b0 = b;
      a = a0 * c - b0 * n, b = b0 * c + a0 * n;
    }
  }
  void finish_heads(Vec& y, const std::string& norm_slot) const {
    for (size_t h = 0; h < y.size(); h += s_.head_dim) {
      if (net_.tensors.contains(norm_slot)) {
        const Vec n = normed(&y[h], s_.head_dim, w(norm_slot), s_.norm_eps);
        std::copy(n.begin(), n.end(), y.begin() + long(h));
      }
      rotate(&y[h]);
    }
  }
  Vec attention(int layer, const std::string& p, const Vec& h) {
    Vec q = project(p + "q", h, s_.heads), k = project(p + "k", h, s_.kv_heads);
    finish_heads(q, p + "q_norm");
    finish_heads(k, p + "k_norm");
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
        sum += p_of[t] = std::exp(score * s_.attention_scale);
      }
      for (int t = first; t <= position_; ++t) {
        for (int i = 0; i < d; ++i) out[head * d + i] += p_of[t] / sum * values_[layer][t][kv + i];
      }
    }
    return times(p + "o", out, s_.hidden);
  }

  const Net& net_;
  const ModelSpec& s_;
  std::vector<std::vector<Vec>> keys_, values_;
  int position_ = 0;
};

std::unique_ptr<Backend> open() {
  auto backend = open_cpu(2, 4 << 20);
  ES_CHECK(backend.ok());
  return std::move(backend.value());
}

std::unique_ptr<Model> load(Backend& backend, const Net& net, Precision precision) {
  auto model = backend.load(net.spec, net.sources(), {precision, 4, 64, kBlock, {}});
  if (model.ok()) return std::move(model.value());
  test::report(__FILE__, __LINE__, model.status().message());
  return nullptr;
}

// A batch of one sequence in slot 0 whose last token's whole distribution is scored.
StepBatch scoring_batch(const Model& model, int vocab, const std::vector<int32_t>& tokens, int first) {
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

double worst_difference(const Net& net, Precision precision, double& spread) {
  auto backend = open();
  auto model = load(*backend, net, precision);
  if (!model) return INFINITY;
  Reference reference(net);
  std::mt19937 rng(11);
  ES_CHECK(model->set_slot(0, SamplingState()).ok());
  double worst = 0;
  int position = 0;
  for (int count : {5, 1, 30, 1, 17, 1}) {
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
      worst = std::max(worst, std::abs(result.rows[i].logprob - (logits[i] - std::log(sum))));
    }
  }
  return worst;
}

void matches_the_reference() {
  const std::pair<const char*, Options> cases[] = {
      {"tied", {}},
      {"untied, bias", {.tied = false, .bias = true}},
      {"q and k norm", {.qk_norm = true}},
      {"interleaved rotary", {.interleaved = true}},
      {"sliding window", {.window = 7}},
      {"partial rotary", {.head_dim = 32, .rotary = 16}},
      {"padded heads", {.bias = true, .head_dim = 24, .rotary = 24}},
      {"padded interleaved heads", {.interleaved = true, .head_dim = 8, .rotary = 8}},
  };
  for (const auto& [name, options] : cases) {
    const Net net = make_net(options);
    // Tolerances as shares of the logits' standard deviation: rounding of the cache to fp16, of activations to int8,
    // and of these random (worst case) weights to 4 bits.
    const std::pair<Precision, double> rungs[] = {
        {Precision::fp16, 0.005}, {Precision::int8, 0.3}, {Precision::int4, 2.5}};
    for (const auto& [precision, tolerance] : rungs) {
      double spread = 1;
      const double worst = worst_difference(net, precision, spread);
      std::printf("%-26s rung %d: worst difference %.5f of the logits' spread\n", name, int(precision), worst / spread);
      if (!(worst < tolerance * spread)) test::report(__FILE__, __LINE__, std::string(name) + " is off");
    }
  }
}

void refuses_bad_loads() {
  auto backend = open();
  auto expect = [&](const Net& net, std::vector<WeightSource> sources, Code code, const std::string& part) {
    auto model = backend->load(net.spec, sources, {Precision::int8, 4, 64, kBlock, {}});
    const Status status = model.status();
    if (status.code() != code || status.message().find(part) == std::string::npos) {
      test::report(__FILE__, __LINE__, "got: " + status.message() + "\n  wanted: " + part);
    }
  };
  const Net net = make_net({});
  auto with = [&](const std::string& slot, auto change) {
    auto sources = net.sources();
    for (auto& source : sources) {
      if (source.slot == slot) change(source);
    }
    return sources;
  };
  expect(net, with("layers.1.q", [](auto& w) { w.slot = "layers.7.q"; }), Code::invalid_argument, "layers.7.q");
  expect(net, with("layers.1.q", [](auto& w) { w.slot = "layers.0.q"; }), Code::invalid_argument, "twice");
  expect(net, with("layers.1.up", [](auto& w) { w.shape[0] = 95; }), Code::invalid_file, "layers.1.up has shape");
  expect(net, with("layers.1.up", [](auto& w) { w.values.bytes -= 4; }), Code::invalid_file, "its shape needs");
  expect(net, with("embed", [](auto& w) { w.values.type = "q9_k"; }), Code::unsupported, "q9_k");
  auto sources = net.sources();
  std::erase_if(sources, [](const WeightSource& w) { return w.slot == "final_norm"; });
  expect(net, sources, Code::invalid_file, "final_norm is missing");
  Net bad = make_net({});
  bad.spec.kv_heads = 3;
  expect(bad, bad.sources(), Code::invalid_argument, "not a multiple");
}

void refuses_bad_batches() {
  const BatchLimits limits{80, 4, 64, kBlock, 4096, 1 << 20};
  auto valid = [] {
    StepBatch b;
    b.tokens = {1, 2, 3};
    b.seq_starts = {0, 2, 3};
    b.first_positions = {0, 16};
    b.slots = {0, 3};
    b.block_starts = {0, 1, 3};
    b.blocks = {0, 16, 32};
    b.row_tokens = {1, 2}, b.row_seqs = {0, 1}, b.row_targets = {-1, 5}, b.row_top = {-1, 20};
    return b;
  };
  ES_CHECK(check_batch(valid(), limits).ok());
  auto expect = [&](auto change, const std::string& part) {
    StepBatch b = valid();
    change(b);
    const Status status = check_batch(b, limits);
    if (status.ok() || status.message().find(part) == std::string::npos) {
      test::report(__FILE__, __LINE__, "got: " + status.message() + "\n  wanted: " + part);
    }
  };
  expect([](auto& b) { b.tokens = {}; }, "no tokens");
  expect([](auto& b) { b.tokens[0] = 80; }, "tokens[0] = 80");
  expect([](auto& b) { b.tokens[0] = -2; }, "tokens[0] = -2");
  expect([](auto& b) { b.tokens.resize(65); }, "max_batch_tokens");
  expect([](auto& b) { b.seq_starts = {0, 3, 2}; }, "seq_starts[2]");
  expect([](auto& b) { b.seq_starts = {0, 0, 3}; }, "seq_starts[1]");
  expect([](auto& b) { b.seq_starts = {INT32_MIN, 1, 3}; }, "seq_starts[0]");
  expect([](auto& b) { b.slots[1] = 4; }, "slots[1] = 4");
  expect([](auto& b) { b.slots[1] = 0; }, "slot 0 occurs twice");
  expect([](auto& b) { b.first_positions[0] = -1; }, "negative");
  expect([](auto& b) { b.first_positions[1] = 32; }, "cover 32");
  expect([](auto& b) { b.first_positions[1] = INT32_MAX; }, "cover 32");
  expect([](auto& b) { b.block_starts = {0, 3, 1}; }, "block_starts[2]");
  expect([](auto& b) { b.block_starts = {0, 1, 2}; }, "ends at 2");
  expect([](auto& b) { b.blocks[2] = (1 << 20) / 256 - 15; }, "blocks[2]");
  expect([](auto& b) { b.blocks[2] = UINT32_MAX; }, "blocks[2]");
  expect([](auto& b) { b.row_tokens[0] = 3; }, "row_tokens[0]");
  expect([](auto& b) { b.row_seqs[0] = 2; }, "row_seqs[0]");
  expect([](auto& b) { b.row_targets[1] = 80; }, "row_targets[1]");
  expect([](auto& b) { b.row_top[1] = 21; }, "row_top[1]");
  expect([](auto& b) { b.row_top.pop_back(); }, "differ in length");
  expect([](auto& b) { b.row_targets[1] = -1, b.row_seqs[1] = 0; }, "two rows");
}

void samples_and_continues() {
  const Net net = make_net({});
  auto backend = open();
  auto model = load(*backend, net, Precision::fp16);
  StepBatch b = scoring_batch(*model, 1, {3, 4}, 0);
  b.row_targets = {-1};
  StepResult result;
  ES_CHECK(model->step(b, result).code() == Code::invalid_argument);  // the slot was never set
  ES_CHECK(model->set_slot(4, {}).code() == Code::invalid_argument);
  SamplingState state;
  state.tokens = {3, 4};
  state.prompt_length = 2;
  ES_CHECK(model->set_slot(0, state).ok());
  ES_CHECK(model->step(b, result).ok());
  const int32_t first = result.rows[0].token;
  StepBatch implicit = scoring_batch(*model, 1, {-1}, 2), explicit_ = scoring_batch(*model, 1, {first}, 2);
  StepResult left, right;
  ES_CHECK(model->step(implicit, left).ok() && model->step(explicit_, right).ok());
  ES_CHECK(left.rows[0].logprob == right.rows[0].logprob);
}

}  // namespace

int main() {
  refuses_bad_batches();
  refuses_bad_loads();
  matches_the_reference();
  samples_and_continues();
  return test::failures == 0 ? 0 : 1;
}
