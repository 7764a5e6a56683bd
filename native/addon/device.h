// An open device: its backend, its threads, and what is still to be done on them.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>
#include <optional>

#include "addon/mask_queue.h"
#include "addon/task.h"
#include "model/backend.h"

namespace edgeshift::addon {

// Four threads per device: one starts the steps, one waits for their results, so that the device never waits for the
// host, one runs the loads, so that decoding goes on while another model loads, and one writes repacked files. Each runs its tasks in order. All members are for the JavaScript thread except where said.
class Device {
 public:
  Device(Napi::Env env, std::unique_ptr<Backend> backend);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Queues a task and returns its promise; the event loop stays alive until it settles.
  // Throws invalid_argument when the device is closed.
  Napi::Value run_step(Napi::Env env, std::unique_ptr<Task> task);
  Napi::Value run_load(Napi::Env env, std::unique_ptr<Task> task);
  Napi::Value run_save(Napi::Env env, std::unique_ptr<Task> task);

  // Whether saves are to end now; any thread.
  bool saves_stop() const { return saves_stop_; }

  bool closed() const { return closing_; }
  // From here on tasks are refused; those that were queued still run. Throws when models are loaded.
  void begin_close(Napi::Env env);

  // Joins the threads, drops what is queued, frees the backend. Idempotent.
  void shut_down();

  // For tasks, on a device thread.
  Backend& backend() { return *backend_; }

  // What its steps wait for in the midst of their work; any thread. Closed by shut_down().
  MaskQueue& masks() { return masks_; }

  // Models that are loading or loaded.
  int models = 0;

 private:
  static void on_settled(Napi::Env env, Napi::Function, Device* device, Task* task);
  using Settled = Napi::TypedThreadSafeFunction<Device, Task, on_settled>;

  Napi::Value run(Napi::Env env, std::optional<TaskThread>& thread, std::unique_ptr<Task> task);

  const napi_env env_;
  std::unique_ptr<Backend> backend_;
  Settled settled_;
  int pending_ = 0;
  bool closing_ = false;
  bool stopped_ = false;
  std::atomic<bool> saves_stop_{false};
  MaskQueue masks_;
  // Last: they use everything above.
  std::optional<TaskThread> waits_;
  std::optional<TaskThread> steps_;
  std::optional<TaskThread> loads_;
  std::optional<TaskThread> saves_;
};

// NativeDevice of engine/native.ts.
class DeviceObject : public Napi::ObjectWrap<DeviceObject> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit DeviceObject(const Napi::CallbackInfo& info);
  ~DeviceObject() override;

 private:
  Napi::Value load_model(const Napi::CallbackInfo& info);
  Napi::Value discard_kv(const Napi::CallbackInfo& info);
  Napi::Value read_bandwidth(const Napi::CallbackInfo& info);
  Napi::Value used_bytes(const Napi::CallbackInfo& info);
  Napi::Value host_cache_bytes(const Napi::CallbackInfo& info);
  Napi::Value copy_kv(const Napi::CallbackInfo& info);
  Napi::Value elastic_kv(const Napi::CallbackInfo& info);
  Napi::Value packed_layout(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  std::shared_ptr<Device> device_;
};

}  // namespace edgeshift::addon
