#include "core/text.h"

#include <cstdint>
#include <cstring>

namespace edgeshift {

std::string quoted(std::string_view text) {
  constexpr size_t kLimit = 64;
  std::string out = "\"";
  for (char c : text.substr(0, kLimit)) out += (c >= 0x20 && c < 0x7f) ? c : '.';
  out += text.size() > kLimit ? "...\"" : "\"";
  return out;
}

namespace {

// Length of the well-formed sequence that starts a non-ASCII text, or 0.
size_t sequence_length(const uint8_t* p, size_t left) {
  auto continues = [&](size_t i) { return i < left && (p[i] & 0xc0) == 0x80; };
  const uint8_t lead = p[0];
  if (lead >= 0xc2 && lead <= 0xdf) return continues(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    if (!continues(1) || !continues(2)) return 0;
    if (lead == 0xe0 && p[1] < 0xa0) return 0;
    if (lead == 0xed && p[1] > 0x9f) return 0;
    return 3;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    if (!continues(1) || !continues(2) || !continues(3)) return 0;
    if (lead == 0xf0 && p[1] < 0x90) return 0;
    if (lead == 0xf4 && p[1] > 0x8f) return 0;
    return 4;
  }
  return 0;
}

}  // namespace

bool valid_utf8(std::string_view text) {
  auto p = reinterpret_cast<const uint8_t*>(text.data());
  size_t left = text.size();
  while (left > 0) {
    uint64_t word;
    if (left >= 8 && (std::memcpy(&word, p, 8), (word & 0x8080808080808080u) == 0)) {
      p += 8, left -= 8;
      continue;
    }
    const size_t n = p[0] < 0x80 ? 1 : sequence_length(p, left);
    if (n == 0) return false;
    p += n, left -= n;
  }
  return true;
}

}  // namespace edgeshift
