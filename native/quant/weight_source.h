// Where a logical weight's bytes are and how they are stored: what the registry tells a backend (engine/native.ts).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace edgeshift {

enum class Method { plain, gptq, awq, pack_quantized, int_quantized, float_quantized };
enum class AwqVersion { gemm, gemv, gemv_fast };

// Layouts as in FORMATS (docs) and quant/affine_codes.cpp.
struct Storage {
  Method method = Method::plain;
  AwqVersion version = AwqVersion::gemm;
  int bits = 0;
  int group_size = 0;                  // inputs that share a scale; 0 = all
  bool zero_points_minus_one = false;  // GPTQ v1
  bool symmetric = false;                // pack_quantized
  int block_rows = 0, block_inputs = 0;  // float_quantized: the block that shares a scale; 0 = a row's or all of it
};

// One tensor: mapped file memory, valid during the load, unaligned. Its size is checked by whoever reads it.
struct TensorBytes {
  std::string type;  // lower case: f32, f16, bf16, f8_e4m3, i8, i16, i32, q4_0, ...
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;  // null = the weight has no such tensor
  size_t bytes = 0;
};

// plain: `values`; the others: `codes`, `scales` and, where the method has them, `zero_points` and `group_index`.
struct WeightSource {
  std::string slot;            // named in engine/native.ts
  std::vector<int64_t> shape;  // logical: [N] or [N, K]
  Storage storage;
  TensorBytes values;
  TensorBytes codes;
  TensorBytes scales;
  TensorBytes zero_points;
  TensorBytes group_index;
};

}  // namespace edgeshift
