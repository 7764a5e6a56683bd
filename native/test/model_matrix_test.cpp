// Families by formats: tiny models whose matrices are stored as checkpoints store them, against the slow forward pass
// over the values that their codes stand for.
#include <cstdio>
#include <functional>

#include "test/stored_builder.h"
#include "test/tiny_model.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

struct Format {
  std::string name;
  Storage storage;
  bool act_order = false, symmetric = false;
};

Storage stored(Method method, int bits, int group) {
  Storage s;
  s.method = method;
  s.bits = bits;
  s.group_size = group;
  return s;
}

std::vector<Format> formats() {
  std::vector<Format> out;
  for (int group : {32, 64, 128, 0}) {
    const std::string suffix = " group " + std::to_string(group);
    for (int bits : {2, 3, 4, 8}) {
      out.push_back({"gptq " + std::to_string(bits) + " bits" + suffix, stored(Method::gptq, bits, group)});
      if (group) out.push_back({"gptq act-order " + std::to_string(bits) + " bits" + suffix, stored(Method::gptq, bits, group), true});
    }
    for (AwqVersion version : {AwqVersion::gemm, AwqVersion::gemv, AwqVersion::gemv_fast}) {
      Format f{"awq " + std::to_string(int(version)) + suffix, stored(Method::awq, 4, group)};
      f.storage.version = version;
      if (group) out.push_back(f);
    }
    out.push_back({"awq 8 bits" + suffix, stored(Method::awq, 8, group)});
    for (int bits : {4, 8}) {
      Format f{"pack-quantized " + std::to_string(bits) + " bits" + suffix, stored(Method::pack_quantized, bits, group), false, true};
      f.storage.symmetric = true;
      out.push_back(f);
    }
  }
  out.push_back({"gptq act-order 4 bits group 16", stored(Method::gptq, 4, 16), true});
  Format f{"int8 channel", stored(Method::int_quantized, 8, 0), false, true};
  f.storage.symmetric = true;
  out.push_back(f);
  return out;
}

const std::pair<const char*, Options>* families(size_t& count) {
  static const std::pair<const char*, Options> list[] = {
      {"Llama", {.head_dim = 32, .rotary = 32, .hidden = 128, .ffn = 256}},
      {"Mistral", {.tied = false, .window = 7, .head_dim = 32, .rotary = 32, .hidden = 128, .ffn = 256}},
      {"Qwen2", {.bias = true, .head_dim = 32, .rotary = 32, .hidden = 128, .ffn = 256}},
      {"Qwen3", {.qk_norm = true, .head_dim = 32, .rotary = 32, .hidden = 128, .ffn = 256}},
      {"Gemma 2", {.window = 7, .head_dim = 32, .rotary = 32, .hidden = 128, .ffn = 256, .gelu = true,
                   .post_norms = true, .norm_offset = 1, .embedding_scale = 8, .attention_softcap = 5, .final_softcap = 3}},
      {"Gemma 3", {.qk_norm = true, .window = 9, .head_dim = 32, .rotary = 32, .hidden = 128, .ffn = 256, .gelu = true,
                   .post_norms = true, .local_rope = true, .norm_offset = 1, .embedding_scale = 8}},
      {"Phi-3", {.head_dim = 32, .rotary = 16, .hidden = 128, .ffn = 256}},
      {"SmolLM3", {.head_dim = 32, .rotary = 32, .hidden = 128, .ffn = 256, .nope = true}},
  };
  count = std::size(list);
  return list;
}

bool is_matrix(const std::string& slot, const Tensor& t) { return t.shape.size() == 2 && slot.starts_with("layers."); }

// Stores the matrices of the layers in formats chosen by slot, and puts what they stand for into the net.
std::vector<WeightSource> store(Net& net, std::deque<Stored>& keep, const std::function<const Format*(const std::string&)>& format_of) {
  Random random(17);
  std::map<std::string, WeightSource> changed;
  for (auto& [slot, tensor] : net.tensors) {
    const Format* format = is_matrix(slot, tensor) ? format_of(slot) : nullptr;
    if (!format) continue;
    const int n = int(tensor.shape[0]), k = int(tensor.shape[1]);
    const float scale = 0.4f / float(1 << format->storage.bits);
    keep.push_back(StoredBuilder(format->storage, n, k, format->act_order, format->symmetric, random, scale).take());
    Stored& s = keep.back();
    s.source.slot = slot;
    for (int i = 0; i < n * k; ++i) tensor.values[size_t(i)] = float(s.value(i / k, i % k));
    changed[slot] = s.source;
  }
  std::vector<WeightSource> sources = net.sources();
  for (WeightSource& source : sources) {
    if (changed.contains(source.slot)) source = changed[source.slot];
  }
  return sources;
}

// A share of the logits' spread: weights, cache and sums in binary16 and binary32.
constexpr double kTolerance = 0.02;
// The same of codes that are rounded anew; inputs in another order than the weights' are off by more than 1.5.
constexpr double kRounded = 1;

void check(const std::string& name, const Options& options, const std::function<const Format*(const std::string&)>& format_of,
           Precision own, bool rounded) {
  Net net = make_net(options);
  std::deque<Stored> keep;
  const std::vector<WeightSource> sources = store(net, keep, format_of);
  for (const Precision precision : {Precision::fp16, own}) {
    double spread = 1;
    const double worst = worst_difference(net, sources, precision, spread, {9, 1}) / spread;
    if (worst < kTolerance) continue;
    std::printf("%s at rung %d: %.4f of the logits' spread\n", name.c_str(), int(precision), worst);
    report(__FILE__, __LINE__, name + " is off");
  }
  if (!rounded) return;
  for (const Precision precision : {Precision::int8, Precision::int4}) {
    double spread = 1;
    if (worst_difference(net, sources, precision, spread, {9, 1}) / spread >= kRounded) report(__FILE__, __LINE__, name + " is off when rounded");
  }
}

}  // namespace

// Every combination with "all"; without, all formats with one family and some with each of the others.
int main(int argc, char** argv) {
  const bool every = argc > 2 && std::string(argv[2]) == "all";
  size_t count = 0;
  const auto* list = families(count);
  const std::vector<Format> all = formats();
  int cases = 0;
  for (size_t f = 0; f < count; ++f) {
    for (size_t i = 0; i < all.size(); ++i) {
      const Format& format = all[i];
      if (!every && f > 0 && i % count != f) continue;
      const bool kept = format.storage.group_size % 32 == 0;
      const Precision own = !kept ? Precision::fp16 : format.storage.bits <= 4 ? Precision::int4 : Precision::int8;
      check(std::string(list[f].first) + ", " + format.name, list[f].second, [&](const std::string&) { return &format; }, own, format.act_order);
      ++cases;
    }
    // Every matrix in another format, some of them plain: no two neighbours can be stacked.
    size_t next = f;
    auto mixed = [&](const std::string&) { return ++next % 5 == 0 ? nullptr : &all[next * 7 % all.size()]; };
    check(std::string(list[f].first) + ", mixed", list[f].second, mixed, Precision::int4, false);
    ++cases;
  }
  std::printf("%d combinations\n", cases);
  return failures ? 1 : 0;
}
