// Reader of GGUF headers, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "loader/tensor_type.h"

namespace edgeshift {

// Metadata value types by their id in the file.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// One metadata value; text and elements point into the file's bytes. 64-bit integers are within +-(2^53 - 1).
struct GgufValue {
  GgufType type = GgufType::u8;
  GgufType element = GgufType::u8;        // array: type of its elements
  double number = 0;                      // numeric and boolean scalars
  std::string_view text;                  // string
  uint64_t count = 0;                     // array: number of elements
  const uint8_t* elements = nullptr;      // array of numbers or booleans: packed, little-endian, unaligned
  std::vector<std::string_view> strings;  // array of strings
  std::vector<GgufValue> items;           // array of arrays
};

struct GgufEntry {
  std::string_view key;
  GgufValue value;
};

struct GgufTensor {
  std::string_view name;
  const TensorType* type = nullptr;
  uint32_t rank = 0;
  uint64_t dims[4] = {1, 1, 1, 1};  // fastest-moving first, as in the file
  uint64_t offset = 0;              // absolute byte offset in the file
  uint64_t bytes = 0;
};

struct GgufFile {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::vector<GgufEntry> metadata;
  std::vector<GgufTensor> tensors;
};

// Bytes of one packed element; 0 for strings and arrays.
size_t gguf_element_bytes(GgufType type);

// Numeric value of a packed element of the given type.
double gguf_number(GgufType type, const uint8_t* element);

// Parses and checks the header of a file of `size` bytes: every count, length, offset and shape against the size,
// before memory is taken for it; tensors lie inside the file, aligned and without overlap; names are unique and UTF-8.
// invalid_file with the byte offset, the key or tensor and the reason. The result points into `data`.
Result<GgufFile> parse_gguf(const uint8_t* data, size_t size);

}  // namespace edgeshift
