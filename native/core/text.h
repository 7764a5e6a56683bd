// Helpers for error messages.
#pragma once

#include <string>
#include <string_view>

#include "core/status.h"

namespace edgeshift {

// Concatenates strings and numbers: join("byte ", 12, ": bad").
template <class... Parts>
std::string join(const Parts&... parts) {
  std::string out;
  auto append = [&out](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>) {
      out += std::to_string(part);
    } else {
      out += part;
    }
  };
  (append(parts), ...);
  return out;
}

// A Status whose message is join(parts...).
template <class... Parts>
Status error(Code code, const Parts&... parts) {
  return Status(code, join(parts...));
}

// The text in double quotes, unprintable bytes as '.', at most 64 bytes of it: names from files go into messages.
std::string quoted(std::string_view text);

// Whether the bytes are well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates).
bool valid_utf8(std::string_view text);

}  // namespace edgeshift
