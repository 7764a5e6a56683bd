#include "addon/task.h"

#include <exception>
#include <new>

namespace edgeshift::addon {

void Task::guarded(Status (Task::*part)()) noexcept {
  try {
    status_ = (this->*part)();
  } catch (const std::bad_alloc&) {
    status_ = Status(Code::out_of_memory, "out of memory");
  } catch (const std::exception& e) {
    status_ = Status(Code::device_failed, e.what());
  }
}

void Task::settle(Napi::Env env) {
  try {
    if (!status_.ok()) failed();
    status_.ok() ? deferred_.Resolve(result(env)) : deferred_.Reject(to_error(env, status_).Value());
  } catch (const Napi::Error&) {
    // JavaScript can't run any more: its thread is being terminated, nobody waits for the promise.
  }
}

TaskThread::TaskThread(void (Task::*part)() noexcept, std::function<void(std::unique_ptr<Task>)> done)
    : part_(part), done_(std::move(done)), thread_([this] { loop(); }) {}

TaskThread::~TaskThread() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void TaskThread::push(std::unique_ptr<Task> task) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void TaskThread::loop() {
  for (;;) {
    std::unique_ptr<Task> task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (stop_) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    (task.get()->*part_)();
    done_(std::move(task));
  }
}

}  // namespace edgeshift::addon
