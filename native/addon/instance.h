// What one JavaScript environment (main thread or worker) keeps of the addon.
#pragma once

#include <napi.h>

namespace edgeshift::addon {

struct Instance {
  Napi::FunctionReference device;  // class of NativeDevice
  Napi::FunctionReference model;   // class of NativeModel
};

}  // namespace edgeshift::addon
