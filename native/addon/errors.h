// Status to JavaScript errors (NativeError in engine/native.ts).
#pragma once

#include <napi.h>

#include "core/status.h"
#include "core/text.h"

namespace edgeshift::addon {

// An Error whose `code` is the stable name of the status' code.
Napi::Error to_error(Napi::Env env, const Status& status);

// Throws into JavaScript; only on the JavaScript thread.
[[noreturn]] void throw_status(Napi::Env env, const Status& status);

// Throws invalid_argument with the joined parts.
template <class... Parts>
[[noreturn]] void throw_argument(Napi::Env env, const Parts&... parts) {
  throw_status(env, error(Code::invalid_argument, parts...));
}

// Runs a function that returns a promise; what it throws becomes a rejected promise.
template <class Body>
Napi::Value as_promise(Napi::Env env, const Body& body) {
  try {
    return body();
  } catch (const Napi::Error& e) {
    auto deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(e.Value());
    return deferred.Promise();
  }
}

}  // namespace edgeshift::addon
