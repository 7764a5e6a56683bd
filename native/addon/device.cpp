#include "addon/device.h"

#include <system_error>

#include "addon/convert.h"
#include "addon/instance.h"
#include "addon/model.h"

namespace edgeshift::addon {

namespace {

// An environment that ends (process exit, a terminated worker) must not leave threads that call into it.
void on_environment_end(void* device) { static_cast<Device*>(device)->shut_down(); }

class LoadTask : public Task {
 public:
  LoadTask(Napi::Env env, std::shared_ptr<Device> device, MappedLoad load)
      : Task(env), device_(std::move(device)), load_(std::move(load)) {}

 protected:
  Status work() override {
    open_packed();
    ES_RETURN_IF_ERROR(map_weights(load_));
    load_.options.cache_key = content_key(load_);
    load_.options.done_reading = &MappedFile::done_reading;
    load_.options.will_read = &MappedFile::will_read;
    load_.options.intact = [this] { return intact(); };
    Result<std::unique_ptr<Model>> model = device_->backend().load(load_.spec, load_.weights, load_.options);
    // A torn file explains whatever else went wrong, and what seems right is not.
    ES_RETURN_IF_ERROR(intact());
    load_.files.clear();
    packed_.file = PackedFile();
    load_.options.packed = nullptr;
    if (!model.ok()) return model.status();
    model_ = std::move(model.value());
    return Status();
  }
  Napi::Value result(Napi::Env env) override {
    auto resident = std::make_shared<ResidentModel>(device_, std::move(model_), load_.spec.vocab, load_.options);
    resident->packed_fault = packed_.fault.message();
    return ModelObject::create(env, std::move(resident));
  }
  void failed() override { --device_->models; }

 private:
  Status intact() const {
    for (const MappedFile& file : load_.files) ES_RETURN_IF_ERROR(file.intact());
    return Status();
  }

  // One that cannot be used only means that the files are read.
  void open_packed() {
    if (load_.packed_path.empty()) return;
    Result<PackedFile> file = PackedFile::open(load_.packed_path, load_.packed_key);
    if (!file.ok()) {
      packed_.fault = file.status();
      return;
    }
    packed_.file = std::move(file.value());
    load_.options.packed = &packed_;
  }

  std::shared_ptr<Device> device_;
  MappedLoad load_;
  PackedSource packed_;
  std::unique_ptr<Model> model_;
};

class DiscardTask : public Task {
 public:
  DiscardTask(Napi::Env env, std::shared_ptr<Device> device, size_t offset, size_t bytes)
      : Task(env), device_(std::move(device)), offset_(offset), bytes_(bytes) {}

 protected:
  Status work() override {
    device_->backend().discard_kv(offset_, bytes_);
    return Status();
  }

 private:
  std::shared_ptr<Device> device_;
  size_t offset_, bytes_;
};

class BandwidthTask : public Task {
 public:
  BandwidthTask(Napi::Env env, std::shared_ptr<Device> device) : Task(env), device_(std::move(device)) {}

 protected:
  Status work() override {
    const Result<double> measured = device_->backend().read_bandwidth();
    if (measured.ok()) bytes_per_second_ = measured.value();
    return measured.status();
  }
  Napi::Value result(Napi::Env env) override { return Napi::Number::New(env, bytes_per_second_); }

 private:
  std::shared_ptr<Device> device_;
  double bytes_per_second_ = 0;
};

class UsedBytesTask : public Task {
 public:
  UsedBytesTask(Napi::Env env, std::shared_ptr<Device> device) : Task(env), device_(std::move(device)) {}

 protected:
  Status work() override {
    const Result<std::optional<size_t>> used = device_->backend().used_bytes();
    if (used.ok()) used_ = used.value();
    return used.status();
  }
  Napi::Value result(Napi::Env env) override {
    return used_ ? Napi::Value(Napi::Number::New(env, double(*used_))) : env.Undefined();
  }

 private:
  std::shared_ptr<Device> device_;
  std::optional<size_t> used_;
};

class HostCacheTask : public Task {
 public:
  HostCacheTask(Napi::Env env, std::shared_ptr<Device> device) : Task(env), device_(std::move(device)) {}

 protected:
  Status work() override {
    bytes_ = device_->backend().host_cache_bytes();
    return {};
  }
  Napi::Value result(Napi::Env env) override { return Napi::Number::New(env, double(bytes_)); }

 private:
  std::shared_ptr<Device> device_;
  size_t bytes_ = 0;
};

// Starts a copy of KV blocks in the order of the steps; resolves when it has ended.
class CopyTask : public Task {
 public:
  CopyTask(Napi::Env env, std::shared_ptr<Device> device, KvCopy copy)
      : Task(env), device_(std::move(device)), copy_(std::move(copy)) {}

 protected:
  Status work() override {
    Result<std::unique_ptr<PendingStep>> pending = device_->backend().copy_kv(copy_);
    if (!pending.ok()) return pending.status();
    pending_ = std::move(pending.value());
    return Status();
  }
  bool must_wait() const override { return true; }
  Status wait() override { return std::exchange(pending_, nullptr)->wait(result_); }
  Napi::Value result(Napi::Env env) override {
    Napi::Object out = Napi::Object::New(env);
    out.Set("deviceMicros", static_cast<double>(result_.device_micros));
    return out;
  }

 private:
  std::shared_ptr<Device> device_;
  KvCopy copy_;
  StepResult result_;
  std::unique_ptr<PendingStep> pending_;  // gone before the device
};

// Runs after everything that was queued before it; the device's memory goes with it.
class CloseTask : public Task {
 public:
  CloseTask(Napi::Env env, std::shared_ptr<Device> device) : Task(env), device_(std::move(device)) {}

 protected:
  Status work() override { return Status(); }
  bool must_wait() const override { return true; }
  Napi::Value result(Napi::Env env) override {
    device_->shut_down();
    return env.Undefined();
  }

 private:
  std::shared_ptr<Device> device_;
};

}  // namespace

Device::Device(Napi::Env env, std::unique_ptr<Backend> backend) : env_(env), backend_(std::move(backend)) {
  auto done = [this](std::unique_ptr<Task> task) { settled_.NonBlockingCall(task.release()); };
  waits_.emplace(&Task::run_wait, done);
  steps_.emplace(&Task::run, [this, done](std::unique_ptr<Task> task) {
    task->waits() ? waits_->push(std::move(task)) : done(std::move(task));
  });
  loads_.emplace(&Task::run, done);
  saves_.emplace(&Task::run, done);
  // Only when there are all threads: what is registered here would outlive a device without them.
  settled_ = Settled::New(env, "edgeshift device", 0, 1, this);
  settled_.Unref(env);
  // After the function above, so that it runs before the function's own clean-up.
  napi_add_env_cleanup_hook(env, on_environment_end, this);
}

Device::~Device() { shut_down(); }

void Device::shut_down() {
  if (stopped_) return;
  stopped_ = closing_ = true;
  saves_stop_ = true;
  masks_.close();
  saves_.reset();
  loads_.reset();
  // A step that is being started may have to wait until one before it has been read.
  steps_.reset();
  waits_.reset();
  // Otherwise the models free their memory first; each keeps this device until then.
  if (models == 0) backend_.reset();
  napi_remove_env_cleanup_hook(env_, on_environment_end, this);
  settled_.Release();
}

void Device::on_settled(Napi::Env env, Napi::Function, Device* device, Task* raw) {
  std::unique_ptr<Task> task(raw);
  if (env == nullptr) return;
  // The task may hold the last reference to the device.
  if (--device->pending_ == 0 && !device->stopped_) device->settled_.Unref(env);
  task->settle(env);
}

Napi::Value Device::run(Napi::Env env, std::optional<TaskThread>& thread, std::unique_ptr<Task> task) {
  if (stopped_) throw_argument(env, "the device is closed");
  const Napi::Promise promise = task->promise();
  if (pending_++ == 0) settled_.Ref(env);
  thread->push(std::move(task));
  return promise;
}

Napi::Value Device::run_step(Napi::Env env, std::unique_ptr<Task> task) { return run(env, steps_, std::move(task)); }

Napi::Value Device::run_load(Napi::Env env, std::unique_ptr<Task> task) { return run(env, loads_, std::move(task)); }

Napi::Value Device::run_save(Napi::Env env, std::unique_ptr<Task> task) { return run(env, saves_, std::move(task)); }

void Device::begin_close(Napi::Env env) {
  if (closing_) throw_argument(env, "the device is closed");
  if (models > 0) throw_argument(env, "unload all models first: ", models, " are loaded or loading");
  closing_ = true;
}

Napi::Function DeviceObject::define(Napi::Env env) {
  return DefineClass(env, "NativeDevice",
                     {InstanceAccessor<&DeviceObject::elastic_kv>("elasticKv", napi_enumerable),
                      InstanceAccessor<&DeviceObject::packed_layout>("packedLayout", napi_enumerable),
                      InstanceMethod("loadModel", &DeviceObject::load_model),
                      InstanceMethod("discardKv", &DeviceObject::discard_kv),
                      InstanceMethod("readBandwidth", &DeviceObject::read_bandwidth),
                      InstanceMethod("usedBytes", &DeviceObject::used_bytes),
                      InstanceMethod("hostCacheBytes", &DeviceObject::host_cache_bytes),
                      InstanceMethod("copyKv", &DeviceObject::copy_kv),
                      InstanceMethod("close", &DeviceObject::close)});
}

DeviceObject::DeviceObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceObject>(info) {
  const Napi::Env env = info.Env();
  if (info.Length() < 1 || !info[0].IsObject()) throw_argument(env, "options is not an object");
  const auto options = info[0].As<Napi::Object>();
  const std::string kind = read_string(options, "kind");
  if (kind != "cpu" && kind != "cuda") throw_status(env, error(Code::unsupported, "there is no backend for ", edgeshift::quoted(kind)));
  const int index = static_cast<int>(read_integer(options, "index", 0, kind == "cpu" ? 0 : 1023));
  const int threads = static_cast<int>(read_integer(options, "threads", 1, 1024));
  const auto arena = static_cast<size_t>(read_integer(options, "kvArenaBytes", 0, int64_t(1) << 50));
  const auto host_cache = static_cast<size_t>(
      options.Has("hostCacheBytes") ? read_integer(options, "hostCacheBytes", 0, int64_t(1) << 50) : 0);
  const auto swap = static_cast<size_t>(options.Has("swapBytes") ? read_integer(options, "swapBytes", 0, int64_t(1) << 50) : 0);
  try {
    Result<std::unique_ptr<Backend>> backend =
        kind == "cpu" ? open_cpu(threads, arena, swap) : open_cuda(index, arena, host_cache, swap);
    if (!backend.ok()) throw_status(env, backend.status());
    device_ = std::make_shared<Device>(env, std::move(backend.value()));
  } catch (const std::system_error& failure) {
    throw_status(env, error(Code::out_of_memory, "the threads of a device: ", failure.what()));
  }
}

// Models keep the device; the last of them frees it.
DeviceObject::~DeviceObject() = default;

Napi::Value DeviceObject::load_model(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    if (device_->closed()) throw_argument(env, "the device is closed");
    if (info.Length() < 1 || !info[0].IsObject()) throw_argument(env, "request is not an object");
    MappedLoad load = read_load_request(info[0].As<Napi::Object>());
    if (info.Length() > 1 && info[1].IsObject()) {
      load.packed_path = read_string(info[1].As<Napi::Object>(), "path");
      load.packed_key = read_string(info[1].As<Napi::Object>(), "key");
    }
    auto task = std::make_unique<LoadTask>(env, device_, std::move(load));
    ++device_->models;
    return device_->run_load(env, std::move(task));
  });
}

Napi::Value DeviceObject::elastic_kv(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !device_->closed() && device_->backend().elastic_kv());
}

Napi::Value DeviceObject::packed_layout(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), device_->closed() ? "" : device_->backend().packed_layout());
}

// In the order of the steps: those issued before may still write there.
Napi::Value DeviceObject::discard_kv(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&] {
    const Napi::Env env = info.Env();
    if (info.Length() < 1 || !info[0].IsObject()) throw_argument(env, "range is not an object");
    const auto range = info[0].As<Napi::Object>();
    const auto offset = static_cast<size_t>(read_integer(range, "offset", 0, int64_t(1) << 50));
    const auto bytes = static_cast<size_t>(read_integer(range, "bytes", 0, int64_t(1) << 50));
    return device_->run_step(env, std::make_unique<DiscardTask>(env, device_, offset, bytes));
  });
}

Napi::Value DeviceObject::read_bandwidth(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    if (device_->closed()) throw_argument(env, "the device is closed");
    return device_->run_step(env, std::make_unique<BandwidthTask>(env, device_));
  });
}

Napi::Value DeviceObject::used_bytes(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    if (device_->closed()) throw_argument(env, "the device is closed");
    return device_->run_load(env, std::make_unique<UsedBytesTask>(env, device_));
  });
}

// On the thread that writes files: neither loads nor steps wait for the memory.
Napi::Value DeviceObject::host_cache_bytes(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&]() -> Napi::Value {
    const Napi::Env env = info.Env();
    if (device_->closed()) throw_argument(env, "the device is closed");
    return device_->run_save(env, std::make_unique<HostCacheTask>(env, device_));
  });
}

Napi::Value DeviceObject::copy_kv(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&] {
    const Napi::Env env = info.Env();
    if (info.Length() < 1 || !info[0].IsObject()) throw_argument(env, "copy is not an object");
    return device_->run_step(env, std::make_unique<CopyTask>(env, device_, read_copy(info[0].As<Napi::Object>())));
  });
}

Napi::Value DeviceObject::close(const Napi::CallbackInfo& info) {
  return as_promise(info.Env(), [&] {
    const Napi::Env env = info.Env();
    device_->begin_close(env);
    return device_->run_step(env, std::make_unique<CloseTask>(env, device_));
  });
}

}  // namespace edgeshift::addon
