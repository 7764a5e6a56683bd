#include "addon/errors.h"

namespace edgeshift::addon {

Napi::Error to_error(Napi::Env env, const Status& status) {
  Napi::Error error = Napi::Error::New(env, status.message());
  error.Value().Set("code", code_name(status.code()));
  return error;
}

void throw_status(Napi::Env env, const Status& status) { throw to_error(env, status); }

}  // namespace edgeshift::addon
