// Units of work that run on a device's threads and settle on the JavaScript thread.
#pragma once

#include <napi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "addon/errors.h"

namespace edgeshift::addon {

// Created, settled and destroyed on the JavaScript thread; only work() and wait() run elsewhere.
class Task {
 public:
  explicit Task(Napi::Env env) : deferred_(Napi::Promise::Deferred::New(env)) {}
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  Napi::Promise promise() const { return deferred_.Promise(); }

  // Run work() and wait(); an exception (out of memory) becomes the task's status.
  void run() noexcept { guarded(&Task::work); }
  void run_wait() noexcept { guarded(&Task::wait); }

  // After run(): whether wait() is to follow, on another thread.
  bool waits() const { return status_.ok() && must_wait(); }

  // Resolves or rejects the promise.
  void settle(Napi::Env env);

 protected:
  // On a device thread. May not touch JavaScript.
  virtual Status work() = 0;
  // Work that needs a second part, which may take long: wait(), on a thread that does nothing else.
  virtual bool must_wait() const { return false; }
  virtual Status wait() { return Status(); }
  // On the JavaScript thread after work() succeeded.
  virtual Napi::Value result(Napi::Env env) { return env.Undefined(); }
  // On the JavaScript thread after work() failed.
  virtual void failed() {}

 private:
  void guarded(Status (Task::*part)()) noexcept;

  Napi::Promise::Deferred deferred_;
  Status status_;
};

// One thread that runs tasks in order and hands each on when it is done. Parks when idle.
class TaskThread {
 public:
  // Runs `part` of every task and then calls `done` on the thread.
  TaskThread(void (Task::*part)() noexcept, std::function<void(std::unique_ptr<Task>)> done);
  // Waits for the task that runs now; the queued ones are dropped without running.
  ~TaskThread();

  void push(std::unique_ptr<Task> task);

 private:
  void loop();

  void (Task::*const part_)() noexcept;
  std::function<void(std::unique_ptr<Task>)> done_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Task>> queue_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace edgeshift::addon
