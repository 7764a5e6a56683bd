// Errors of the native side: returned, never thrown across a module border, never fatal to the process.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace edgeshift {

enum class Code { ok, invalid_file, unsupported, out_of_memory, invalid_argument, device_failed, io_error, disk_full };

// Stable lower-case name, e.g. "out_of_memory"; the addon gives it to JavaScript as error.code.
const char* code_name(Code code);

// Success, or a code with a message that names the place and the reason.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == Code::ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::ok;
  std::string message_;
};

// A value or the Status that explains its absence.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}
  Result(Status status) : state_(std::move(status)) {}
  bool ok() const { return state_.index() == 0; }
  T& value() { return std::get<0>(state_); }
  const T& value() const { return std::get<0>(state_); }
  Status status() const { return ok() ? Status() : std::get<1>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace edgeshift

// Returns the Status of `expr` from the enclosing function unless it is ok.
#define ES_RETURN_IF_ERROR(expr)                             \
  do {                                                       \
    if (::edgeshift::Status es_status_ = (expr); !es_status_.ok()) return es_status_; \
  } while (false)
