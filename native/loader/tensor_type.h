// Element and block types of checkpoint tensors (ggml's type ids).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace edgeshift {

struct TensorType {
  uint32_t id = 0;
  std::string_view name;  // lower case, e.g. "q4_0"
  uint32_t block = 0;     // elements of a row that are stored together
  uint32_t bytes = 0;     // bytes of a block
  bool loadable = false;  // whether weights of this type can be loaded; others can only be listed
};

// Null for ids that ggml never had or has removed.
const TensorType* find_tensor_type(uint32_t id);
const TensorType* find_tensor_type(std::string_view name);

// "f32, f16, ...": for messages.
std::string loadable_tensor_types();

}  // namespace edgeshift
