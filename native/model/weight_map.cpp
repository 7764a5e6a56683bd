#include "model/weight_map.h"

#include <algorithm>
#include <string_view>

#include "core/text.h"

namespace edgeshift {

namespace {

constexpr std::string_view kLayerSlots[] = {
    "attn_norm", "q",      "k",      "v",      "qkv",            "o",        "q_bias",  "k_bias",    "v_bias",
    "qkv_bias",  "o_bias", "q_norm", "k_norm", "post_attn_norm", "ffn_norm", "gate",    "up",        "gate_up",
    "down",      "gate_bias", "up_bias", "gate_up_bias", "down_bias", "post_ffn_norm"};

bool known_slot(std::string_view slot, int layers) {
  if (slot == "embed" || slot == "final_norm" || slot == "head") return true;
  constexpr std::string_view prefix = "layers.";
  if (!slot.starts_with(prefix)) return false;
  slot.remove_prefix(prefix.size());
  const size_t dot = slot.find('.');
  if (dot == 0 || dot == std::string_view::npos || dot > 5) return false;
  int layer = 0;
  for (char c : slot.substr(0, dot)) {
    if (c < '0' || c > '9') return false;
    layer = layer * 10 + (c - '0');
  }
  if (layer >= layers || std::to_string(layer) != slot.substr(0, dot)) return false;
  return std::ranges::find(kLayerSlots, slot.substr(dot + 1)) != std::end(kLayerSlots);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (int64_t d : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(d);
  return out + "]";
}

}  // namespace

std::string layer_slot(int layer, const char* name) { return join("layers.", layer, ".", name); }

Result<WeightMap> WeightMap::create(const ModelSpec& spec, const std::vector<WeightSource>& weights) {
  WeightMap map;
  for (const WeightSource& weight : weights) {
    if (!known_slot(weight.slot, spec.layers)) {
      return error(Code::invalid_argument, "weight slot ", quoted(weight.slot), " is not one of this model");
    }
    if (!map.by_slot_.emplace(weight.slot, &weight).second) {
      return error(Code::invalid_argument, "weight slot ", quoted(weight.slot), " occurs twice");
    }
  }
  return map;
}

Result<const WeightSource*> WeightMap::find(const std::string& slot, const std::vector<int64_t>& shape) const {
  const auto it = by_slot_.find(slot);
  if (it == by_slot_.end()) return error(Code::invalid_file, "weight ", slot, " is missing");
  if (it->second->shape == shape) return it->second;
  return error(Code::invalid_file, "weight ", slot, " has shape ", shape_text(it->second->shape),
               ", the model needs ", shape_text(shape));
}

Result<std::unique_ptr<WeightReader>> WeightMap::matrix(const std::string& slot, int rows, int columns) const {
  Result<const WeightSource*> source = find(slot, {rows, columns});
  if (!source.ok()) return source.status();
  return open_weight(*source.value(), rows, columns);
}

Result<std::vector<float>> WeightMap::vector(const std::string& slot, int length) const {
  Result<const WeightSource*> source = find(slot, {length});
  if (!source.ok()) return source.status();
  Result<std::unique_ptr<WeightReader>> reader = open_weight(*source.value(), 1, length);
  if (!reader.ok()) return reader.status();
  std::vector<float> values(static_cast<size_t>(length));
  if (Status status = reader.value()->dequantize(0, 1, values.data()); !status.ok()) return status;
  return values;
}

}  // namespace edgeshift
