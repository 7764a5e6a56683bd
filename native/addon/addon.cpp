// The addon's module object (NativeAddon of engine/native.ts).
#include <napi.h>

#include "addon/convert.h"
#include "addon/device.h"
#include "addon/errors.h"
#include "addon/instance.h"
#include "addon/model.h"
#include "core/cpu_info.h"
#include "cpu/isa.h"

namespace edgeshift::addon {

namespace {

Napi::Value version(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), EDGESHIFT_VERSION); }

Napi::Object device_object(Napi::Env env, const char* kind, int index, const std::string& name, size_t memory,
                           const std::string& feature) {
  Napi::Object device = Napi::Object::New(env);
  device.Set("kind", kind);
  device.Set("index", index);
  device.Set("name", name);
  device.Set("memoryBytes", static_cast<double>(memory));
  Napi::Array features = Napi::Array::New(env, 1);
  features.Set(uint32_t(0), feature);
  device.Set("features", features);
  return device;
}

Napi::Value devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Array all = Napi::Array::New(env);
  all.Set(uint32_t(0), device_object(env, "cpu", 0, cpu_name(), physical_memory(), cpu::isa_name(cpu::default_isa())));
  for (const CudaDevice& gpu : cuda_devices()) {
    const std::string capability = join("sm_", gpu.major, gpu.minor);
    all.Set(all.Length(), device_object(env, "cuda", gpu.index, gpu.name, gpu.memory_bytes, capability));
  }
  return all;
}

Napi::Value read_gguf(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (info.Length() < 1 || !info[0].IsString()) throw_argument(env, "path is not a string");
  const std::string path = info[0].As<Napi::String>().Utf8Value();
  Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) throw_status(env, file.status());
  const Result<GgufFile> parsed = parse_gguf(file.value().data(), file.value().size());
  // Names and texts of `parsed` lie in the file: only what has been copied out of it can be vouched for.
  const Napi::Value object = parsed.ok() ? to_object(env, parsed.value()) : env.Undefined();
  if (Status status = file.value().intact(); !status.ok()) throw_status(env, status);
  if (!parsed.ok()) throw_status(env, error(parsed.status().code(), path, ": ", parsed.status().message()));
  return object;
}

Napi::Value used_bytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (info.Length() < 1 || !info[0].IsNumber()) throw_argument(env, "index is not a number");
  Result<size_t> used = cuda_used_bytes(info[0].As<Napi::Number>().Int32Value());
  if (!used.ok()) throw_status(env, used.status());
  return Napi::Number::New(env, static_cast<double>(used.value()));
}

Napi::Value open_device(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (info.Length() < 1 || !info[0].IsObject()) throw_argument(env, "options is not an object");
  return env.GetInstanceData<Instance>()->device.New({info[0]});
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  auto instance = std::make_unique<Instance>();
  instance->device = Napi::Persistent(DeviceObject::define(env));
  instance->model = Napi::Persistent(ModelObject::define(env));
  env.SetInstanceData(instance.release());
  exports.Set("version", Napi::Function::New(env, version, "version"));
  exports.Set("devices", Napi::Function::New(env, devices, "devices"));
  exports.Set("readGguf", Napi::Function::New(env, read_gguf, "readGguf"));
  exports.Set("usedBytes", Napi::Function::New(env, used_bytes, "usedBytes"));
  exports.Set("openDevice", Napi::Function::New(env, open_device, "openDevice"));
  return exports;
}

}  // namespace

NODE_API_MODULE(edgeshift, initialize)

}  // namespace edgeshift::addon
