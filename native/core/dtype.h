// Element types that cross module borders.
#pragma once

#include <cstdint>

namespace edgeshift {

// IEEE binary16 bits. Arithmetic happens in float; backends convert with their own instructions.
struct f16 {
  uint16_t bits;
};

// The width that a variant's matrices are kept in: a rung of the ladder.
enum class Precision { fp16, int8, int4 };

// What keys and values are cached as; fp8 is e4m3.
enum class KvDtype { fp16, fp8, int8 };

}  // namespace edgeshift
