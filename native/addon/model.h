// A resident variant as JavaScript sees it.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "addon/device.h"
#include "model/backend.h"

namespace edgeshift::addon {

// A model and the device that it runs on. Its Model is used on the device's step thread and freed on its wait thread, behind
// the steps that were begun before.
struct ResidentModel {
  ResidentModel(std::shared_ptr<Device> device, std::unique_ptr<Model> model, int vocab, const LoadOptions& options)
      : device(std::move(device)), model(std::move(model)), vocab(vocab), max_slots(options.max_slots) {}

  const std::shared_ptr<Device> device;
  std::unique_ptr<Model> model;  // step thread
  const int vocab;
  const int max_slots;
  bool unloaded = false;    // JavaScript thread: unload() was called
  int masks_owed = 0;       // JavaScript thread: steps whose masks were not given yet
  Status pending_failure;  // step thread: a setSlot that failed; the next step reports it
  std::string packed_fault;  // what was wrong with the repacked file; empty = nothing, or there was none
  std::atomic<bool> stop_saving{false};  // it is about to be unloaded
  std::mutex saving;  // held while a save reads a piece of the model, and to free it
};

// NativeModel of engine/native.ts.
class ModelObject : public Napi::ObjectWrap<ModelObject> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value create(Napi::Env env, std::shared_ptr<ResidentModel> model);
  explicit ModelObject(const Napi::CallbackInfo& info);
  // Frees a model that was forgotten.
  ~ModelObject() override;

 private:
  Napi::Value weight_bytes(const Napi::CallbackInfo& info);
  Napi::Value rounding_error(const Napi::CallbackInfo& info);
  Napi::Value workspace_bytes(const Napi::CallbackInfo& info);
  Napi::Value block_bytes(const Napi::CallbackInfo& info);
  void set_slot(const Napi::CallbackInfo& info);
  Napi::Value origin(const Napi::CallbackInfo& info);
  Napi::Value packed_bytes(const Napi::CallbackInfo& info);
  Napi::Value packed_fault(const Napi::CallbackInfo& info);
  Napi::Value save_packed(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  void give_masks(const Napi::CallbackInfo& info);
  Napi::Value unload(const Napi::CallbackInfo& info);
  void check_loaded(Napi::Env env) const;

  std::shared_ptr<ResidentModel> resident_;
  double weight_bytes_ = 0;
  double rounding_error_ = 0;
  double workspace_bytes_ = 0;
  double block_bytes_ = 0;
  double packed_bytes_ = 0;
  Origin origin_ = Origin::files;
};

}  // namespace edgeshift::addon
