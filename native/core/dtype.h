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

}  // namespace edgeshift
