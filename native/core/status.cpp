#include "core/status.h"

namespace edgeshift {

const char* code_name(Code code) {
  switch (code) {
    case Code::ok: return "ok";
    case Code::invalid_file: return "invalid_file";
    case Code::unsupported: return "unsupported";
    case Code::out_of_memory: return "out_of_memory";
    case Code::invalid_argument: return "invalid_argument";
    case Code::device_failed: return "device_failed";
    case Code::io_error: return "io_error";
    case Code::disk_full: return "disk_full";
  }
  return "unknown";
}

}  // namespace edgeshift
