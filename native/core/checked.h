// Integer arithmetic on values from untrusted files.
#pragma once

#include <cstdint>

namespace edgeshift {

// out = a * b; false when the product does not fit 64 bits.
inline bool checked_mul(uint64_t a, uint64_t b, uint64_t& out) { return !__builtin_mul_overflow(a, b, &out); }

// out = a + b; false when the sum does not fit 64 bits.
inline bool checked_add(uint64_t a, uint64_t b, uint64_t& out) { return !__builtin_add_overflow(a, b, &out); }

// Largest integer that JavaScript's number holds exactly, with all below it.
inline constexpr uint64_t kMaxSafeInteger = (uint64_t(1) << 53) - 1;

}  // namespace edgeshift
