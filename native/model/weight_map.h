// Finds the weights of a load by their logical names and checks them against the spec.
#pragma once

#include <initializer_list>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/status.h"
#include "model/backend.h"
#include "quant/block_type.h"

namespace edgeshift {

// One weight, checked: `rows` rows of `columns` values of `type`, all inside the mapped file.
struct CheckedWeight {
  const WeightSource* source = nullptr;
  BlockType type = BlockType::f32;
  int rows = 0;
  int columns = 0;
};

// The weights by slot. The sources must outlive the map.
class WeightMap {
 public:
  // invalid_argument for a slot that occurs twice or that no model of this spec has.
  static Result<WeightMap> create(const ModelSpec& spec, const std::vector<WeightSource>& weights);

  bool has(const std::string& slot) const { return by_slot_.contains(slot); }

  // A matrix of [rows, columns]. invalid_file when it is missing or has another shape; unsupported for its type.
  Result<CheckedWeight> matrix(const std::string& slot, int rows, int columns) const;

  // Appends a vector's values as float. Same errors.
  Status append_vector(const std::string& slot, int length, std::vector<float>& out) const;

 private:
  Result<CheckedWeight> find(const std::string& slot, std::initializer_list<int64_t> shape) const;

  std::unordered_map<std::string, const WeightSource*> by_slot_;
};

// "layers.3.q"
std::string layer_slot(int layer, const char* name);

}  // namespace edgeshift
