// Rows of stored matrices to canonical form on the device: what WeightReader::read does, for the formats that big models
// come in.
#pragma once

#include <array>
#include <optional>

#include "cuda/launch.h"
#include "quant/weight_reader.h"

namespace edgeshift::cuda {

// A matrix as its file has it; pointers to device memory. GPTQ, AWQ gemm and gemv, and pack-quantized, at 4 and 8 bits.
struct StoredCodes {
  Method method = Method::gptq;
  bool interleaved = false;  // AWQ gemm: words hold outputs
  bool minus_one = false;    // GPTQ v1's zero points
  int bits = 4;
  int n = 0, k = 0, group = 0, groups = 0;
  BlockType scale_type = BlockType::f16;
  int64_t row_scales = 0;  // scales of a row where rows are outermost, 0 where groups are
  int64_t row_zeros = 0;   // AWQ gemv: words of a row's zero points
  const uint32_t* codes = nullptr;
  const void* scales = nullptr;
  const uint32_t* zeros = nullptr;  // null = the middle code everywhere
  const int32_t* order = nullptr;   // [k], null = identity
};

// How the device converts one part of a matrix: the tensors that it needs, in the file's memory.
struct StoredPlan {
  StoredCodes codes;  // pointers unset
  BlockType floats = BlockType::f16;
  bool is_floats = false;
  std::span<const uint8_t> main, scales, zeros;  // `main`: codes or floats
  std::span<const int32_t> order;

  // In the order in which the device wants them, each on a boundary of 256 bytes; some may be empty.
  std::array<std::span<const uint8_t>, 4> tensors() const;
  // Device bytes for all of them.
  size_t bytes() const;
  // Halves are only looked at, where they are to be.
  bool in_place() const { return is_floats && floats == BlockType::f16; }
};

// Nothing where WeightReader::read has to do it: forms that round, padded heads, formats that few files have.
std::optional<StoredPlan> plan_stored(const WeightReader& reader, CanonicalForm form);

// Where the rows go, device memory.
struct CanonicalRows {
  void* codes = nullptr;  // or f16 values
  f16* scales = nullptr;
  f16* minimums = nullptr;  // null = the form has none
};

// Converts the tensors of `plan`, which lie at `raw` as StoredPlan::bytes says. Sets *bad (device-writable) where read() would
// have failed: it then says why.
Status convert_stored(const StoredPlan& plan, const char* raw, const CanonicalRows& out, int32_t* bad, const Launch& on);

}  // namespace edgeshift::cuda
