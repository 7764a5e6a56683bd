#include "model/weight_map.h"

#include <algorithm>
#include <string_view>

#include "core/text.h"
#include "loader/tensor_type.h"

namespace edgeshift {

namespace {

constexpr std::string_view kLayerSlots[] = {"attn_norm", "q",      "k",      "v",        "o",    "q_bias", "k_bias",
                                            "v_bias",    "q_norm", "k_norm", "ffn_norm", "gate", "up",     "down"};

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

Result<CheckedWeight> WeightMap::find(const std::string& slot, std::initializer_list<int64_t> shape) const {
  const auto it = by_slot_.find(slot);
  if (it == by_slot_.end()) return error(Code::invalid_file, "weight ", slot, " is missing");
  const WeightSource& source = *it->second;
  if (!std::ranges::equal(source.shape, shape)) {
    return error(Code::invalid_file, "weight ", slot, " has shape ", shape_text(source.shape), ", the model needs ",
                 shape_text(shape));
  }
  Result<BlockType> type = parse_block_type(source.type);
  if (!type.ok()) {
    return error(Code::unsupported, "weight ", slot, " has type ", quoted(source.type), "; supported are ",
                 loadable_tensor_types());
  }
  const int64_t columns = shape.end()[-1];
  const int64_t rows = shape.size() == 1 ? 1 : *shape.begin();
  if (columns % block_weights(type.value()) != 0) {
    return error(Code::invalid_file, "weight ", slot, " has rows of ", columns, " values, not whole blocks of ",
                 source.type);
  }
  const size_t bytes = size_t(rows) * row_bytes(type.value(), columns);
  if (bytes != source.bytes) {
    return error(Code::invalid_file, "weight ", slot, " has ", source.bytes, " bytes, its shape needs ", bytes);
  }
  return CheckedWeight{&source, type.value(), int(rows), int(columns)};
}

Result<CheckedWeight> WeightMap::matrix(const std::string& slot, int rows, int columns) const {
  return find(slot, {rows, columns});
}

Status WeightMap::append_vector(const std::string& slot, int length, std::vector<float>& out) const {
  Result<CheckedWeight> found = find(slot, {length});
  if (!found.ok()) return found.status();
  const size_t at = out.size();
  out.resize(at + size_t(length));
  return dequantize_rows(found.value().type, found.value().source->data, 1, length, out.data() + at);
}

}  // namespace edgeshift
