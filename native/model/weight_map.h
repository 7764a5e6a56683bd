// Finds the weights of a load by their logical names and checks them against the spec.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/status.h"
#include "model/backend.h"
#include "quant/weight_reader.h"

namespace edgeshift {

// The weights by slot. The sources must outlive the map.
class WeightMap {
 public:
  // invalid_argument for a slot that occurs twice or that no model of this spec has.
  static Result<WeightMap> create(const ModelSpec& spec, const std::vector<WeightSource>& weights);

  bool has(const std::string& slot) const { return by_slot_.contains(slot); }

  // A matrix of [rows, columns]. invalid_file when it is missing or has another shape; else what open_weight gives.
  Result<std::unique_ptr<WeightReader>> matrix(const std::string& slot, int rows, int columns) const;

  // A vector's values as float, all finite. Same errors.
  Result<std::vector<float>> vector(const std::string& slot, int length) const;

 private:
  Result<const WeightSource*> find(const std::string& slot, const std::vector<int64_t>& shape) const;

  std::unordered_map<std::string, const WeightSource*> by_slot_;
};

// "layers.3.q"
std::string layer_slot(int layer, const char* name);

}  // namespace edgeshift
