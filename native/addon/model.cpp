#include "addon/model.h"

#ifdef __linux__
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cmath>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "addon/convert.h"
#include "addon/instance.h"
#include "core/text.h"
#include "loader/packed_file.h"

namespace edgeshift::addon {

namespace {

// The next entry of a device's masks, which is taken whatever becomes of the step: those that follow belong to other steps.
class AwaitedMasks {
 public:
  explicit AwaitedMasks(MaskQueue& queue) : queue_(&queue) {}
  ~AwaitedMasks() {
    if (queue_) queue_->take();
  }
  AwaitedMasks(const AwaitedMasks&) = delete;
  AwaitedMasks& operator=(const AwaitedMasks&) = delete;

  std::optional<std::vector<uint32_t>> take() { return std::exchange(queue_, nullptr)->take(); }

 private:
  MaskQueue* queue_;
};

// One whose batch names masks holds its thread until they come: nothing else may run in between.
class StepTask : public Task {
 public:
  StepTask(Napi::Env env, std::shared_ptr<ResidentModel> resident, StepBatch batch)
      : Task(env), resident_(std::move(resident)), batch_(std::move(batch)) {}

 protected:
  Status work() override {
    Result<std::unique_ptr<PendingStep>> pending = mask_count(batch_) == 0 ? begin() : begin_masked();
    if (!pending.ok()) return pending.status();
    pending_ = std::move(pending.value());
    return pending_->ready() ? wait() : Status();
  }
  bool must_wait() const override { return pending_ != nullptr; }
  Status wait() override { return std::exchange(pending_, nullptr)->wait(result_); }
  Napi::Value result(Napi::Env env) override { return to_object(env, result_, batch_); }

 private:
  Result<std::unique_ptr<PendingStep>> begin() {
    if (!resident_->pending_failure.ok()) return std::exchange(resident_->pending_failure, Status());
    return resident_->model->begin(batch_);
  }

  // A step that fails is gone on return: the model may be when the task ends.
  Result<std::unique_ptr<PendingStep>> begin_masked() {
    AwaitedMasks awaited(resident_->device->masks());
    Result<std::unique_ptr<PendingStep>> pending = begin();
    if (!pending.ok()) return pending;
    const std::optional<std::vector<uint32_t>> masks = awaited.take();
    if (!masks) return error(Code::invalid_argument, "the device is closed");
    if (Status status = pending.value()->give_masks(*masks); !status.ok()) return status;
    return pending;
  }

  std::shared_ptr<ResidentModel> resident_;
  StepBatch batch_;
  StepResult result_;
  std::unique_ptr<PendingStep> pending_;  // gone before the model
};

class SetSlotTask : public Task {
 public:
  SetSlotTask(Napi::Env env, std::shared_ptr<ResidentModel> resident, int slot, SamplingState state,
              std::vector<RopeTable> ropes)
      : Task(env), resident_(std::move(resident)), slot_(slot), state_(std::move(state)), ropes_(std::move(ropes)) {}

 protected:
  Status work() override {
    Status status = resident_->model->set_slot(slot_, std::move(state_), std::move(ropes_));
    if (!status.ok()) resident_->pending_failure = std::move(status);
    return Status();
  }

 private:
  std::shared_ptr<ResidentModel> resident_;
  int slot_;
  SamplingState state_;
  std::vector<RopeTable> ropes_;
};

// Writes a repacked file while the model serves, in what time and bandwidth others leave. The model is locked only while a
// piece is copied out of it: an unload must not wait for the disk, as others' steps wait behind it.
class SaveTask : public Task {
 public:
  SaveTask(Napi::Env env, std::shared_ptr<ResidentModel> resident, std::string path, std::string key)
      : Task(env), resident_(std::move(resident)), path_(std::move(path)), key_(std::move(key)) {}

 protected:
  Status work() override {
    lower_priority();
    Result<PackedInfo> packed = describe();
    if (!packed.ok()) return packed.status();
    auto stop = [&] { return stops(); };
    return write_packed_file(path_, packed.value(), [&](size_t offset, size_t bytes) { return copy(offset, bytes); }, stop);
  }

 private:
  bool stops() const { return resident_->stop_saving || resident_->device->saves_stop(); }
  Status stopped() const { return error(Code::invalid_argument, path_, ": stopped"); }

  Result<PackedInfo> describe() {
    std::lock_guard lock(resident_->saving);
    if (stops() || !resident_->model) return stopped();
    return PackedInfo{key_, resident_->model->packed_bytes(), resident_->model->rounding()};
  }

  Result<std::span<const uint8_t>> copy(size_t offset, size_t bytes) {
    std::lock_guard lock(resident_->saving);
    if (!resident_->model) return stopped();
    Result<std::span<const uint8_t>> piece = resident_->model->packed_piece(offset, bytes);
    if (!piece.ok()) return piece.status();
    piece_.assign(piece.value().begin(), piece.value().end());
    return std::span<const uint8_t>(piece_);
  }

  // Of this thread alone, for good: it does nothing else.
  static void lower_priority() {
#ifdef __linux__
    constexpr int kProcess = 1, kIdleClass = 3 << 13;
    setpriority(PRIO_PROCESS, 0, 19);
    syscall(SYS_ioprio_set, kProcess, 0, kIdleClass);
#endif
  }

  std::shared_ptr<ResidentModel> resident_;
  const std::string path_, key_;
  std::vector<uint8_t> piece_;
};

class UnloadTask : public Task {
 public:
  UnloadTask(Napi::Env env, std::shared_ptr<ResidentModel> resident) : Task(env), resident_(std::move(resident)) {}

 protected:
  Status work() override { return Status(); }
  // Behind every step that was begun before.
  bool must_wait() const override { return true; }
  Status wait() override {
    std::lock_guard lock(resident_->saving);
    resident_->model.reset();
    return Status();
  }

 private:
  std::shared_ptr<ResidentModel> resident_;
};

// Frees the model after the steps that were queued before.
Napi::Value unload_resident(Napi::Env env, const std::shared_ptr<ResidentModel>& resident) {
  resident->unloaded = resident->stop_saving = true;
  // Nobody can give them any more: steps that wait for some fail, or this would wait for ever.
  for (; resident->masks_owed > 0; --resident->masks_owed) resident->device->masks().give({});
  --resident->device->models;
  return resident->device->run_step(env, std::make_unique<UnloadTask>(env, resident));
}

}  // namespace

Napi::Function ModelObject::define(Napi::Env env) {
  return DefineClass(env, "NativeModel",
                     {InstanceAccessor<&ModelObject::weight_bytes>("weightBytes", napi_enumerable),
                      InstanceAccessor<&ModelObject::workspace_bytes>("workspaceBytes", napi_enumerable),
                      InstanceAccessor<&ModelObject::block_bytes>("blockBytes", napi_enumerable),
                      InstanceAccessor<&ModelObject::rounding_error>("roundingError", napi_enumerable),
                      InstanceAccessor<&ModelObject::origin>("origin", napi_enumerable),
                      InstanceAccessor<&ModelObject::packed_bytes>("packedBytes", napi_enumerable),
                      InstanceAccessor<&ModelObject::packed_fault>("packedFault", napi_enumerable),
                      InstanceMethod("savePacked", &ModelObject::save_packed),
                      InstanceMethod("setSlot", &ModelObject::set_slot), InstanceMethod("step", &ModelObject::step),
                      InstanceMethod("giveMasks", &ModelObject::give_masks),
                      InstanceMethod("unload", &ModelObject::unload)});
}

Napi::Value ModelObject::create(Napi::Env env, std::shared_ptr<ResidentModel> model) {
  auto handle = Napi::External<std::shared_ptr<ResidentModel>>::New(env, &model);
  return env.GetInstanceData<Instance>()->model.New({handle});
}

ModelObject::ModelObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelObject>(info) {
  if (info.Length() < 1 || !info[0].IsExternal()) throw_argument(info.Env(), "models are made by loadModel");
  resident_ = std::move(*info[0].As<Napi::External<std::shared_ptr<ResidentModel>>>().Data());
  weight_bytes_ = static_cast<double>(resident_->model->weight_bytes());
  workspace_bytes_ = static_cast<double>(resident_->model->workspace_bytes());
  block_bytes_ = static_cast<double>(resident_->model->block_bytes());
  packed_bytes_ = static_cast<double>(resident_->model->packed_bytes());
  origin_ = resident_->model->origin();
  const RoundingSums rounding = resident_->model->rounding();
  rounding_error_ = rounding.weights > 0 ? std::sqrt(rounding.error / rounding.weights) : 0;
}

ModelObject::~ModelObject() {
  if (resident_ == nullptr || resident_->unloaded || resident_->device->closed()) return;
  try {
    unload_resident(Env(), resident_);
  } catch (const Napi::Error&) {
    // The environment is ending; the device frees the model with everything else.
  }
}

Napi::Value ModelObject::weight_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), weight_bytes_);
}

Napi::Value ModelObject::workspace_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), workspace_bytes_);
}

Napi::Value ModelObject::block_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), block_bytes_);
}

Napi::Value ModelObject::rounding_error(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), rounding_error_);
}

Napi::Value ModelObject::origin(const Napi::CallbackInfo& info) {
  static constexpr const char* kNames[] = {"files", "packed_file", "host_copy"};
  return Napi::String::New(info.Env(), kNames[static_cast<int>(origin_)]);
}

Napi::Value ModelObject::packed_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), packed_bytes_);
}

Napi::Value ModelObject::packed_fault(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), resident_->packed_fault);
}

Napi::Value ModelObject::save_packed(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&] {
    const Napi::Env env = info.Env();
    check_loaded(env);
    if (info.Length() < 1 || !info[0].IsObject()) throw_argument(env, "savePacked({ path, key })");
    const auto to = info[0].As<Napi::Object>();
    return resident_->device->run_save(env, std::make_unique<SaveTask>(env, resident_, read_string(to, "path"), read_string(to, "key")));
  });
}

void ModelObject::check_loaded(Napi::Env env) const {
  if (resident_->unloaded) throw_argument(env, "the model is unloaded");
}

void ModelObject::set_slot(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  check_loaded(env);
  if (info.Length() < 2 || !info[0].IsNumber() || !info[1].IsObject()) throw_argument(env, "setSlot(slot, state)");
  const double slot = info[0].As<Napi::Number>().DoubleValue();
  if (!(slot >= 0 && slot < resident_->max_slots) || slot != static_cast<int>(slot)) {
    throw_argument(env, "slot must be an integer below ", resident_->max_slots);
  }
  SamplingState state = read_slot_state(info[1].As<Napi::Object>(), resident_->vocab);
  resident_->device->run_step(env, std::make_unique<SetSlotTask>(env, resident_, static_cast<int>(slot),
                                                                 std::move(state), read_ropes(info[1].As<Napi::Object>())));
}

Napi::Value ModelObject::step(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&] {
    const Napi::Env env = info.Env();
    check_loaded(env);
    if (info.Length() < 1 || !info[0].IsObject()) throw_argument(env, "batch is not an object");
    StepBatch batch = read_batch(info[0].As<Napi::Object>());
    const bool masked = mask_count(batch) > 0;
    const Napi::Value promise = resident_->device->run_step(env, std::make_unique<StepTask>(env, resident_, std::move(batch)));
    if (masked) ++resident_->masks_owed;
    return promise;
  });
}

void ModelObject::give_masks(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  check_loaded(env);
  std::vector<uint32_t> masks = read_masks(info[0]);
  if (resident_->masks_owed == 0) throw_argument(env, "no step waits for masks");
  --resident_->masks_owed;
  resident_->device->masks().give(std::move(masks));
}

Napi::Value ModelObject::unload(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&] {
    check_loaded(info.Env());
    return unload_resident(info.Env(), resident_);
  });
}

}  // namespace edgeshift::addon
