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

// Created, settled and destroyed on the JavaScript thread; only work() runs elsewhere.
class Task {
 public:
  explicit Task(Napi::Env env) : deferred_(Napi::Promise::Deferred::New(env)) {}
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  Napi::Promise promise() const { return deferred_.Promise(); }

  // Runs work(); an exception (out of memory) becomes the task's status.
  void run() noexcept;

  // Resolves or rejects the promise.
  void settle(Napi::Env env);

 protected:
  // On a device thread. May not touch JavaScript.
  virtual Status work() = 0;
  // On the JavaScript thread after work() succeeded.
  virtual Napi::Value result(Napi::Env env) { return env.Undefined(); }
  // On the JavaScript thread after work() failed.
  virtual void failed() {}

 private:
  Napi::Promise::Deferred deferred_;
  Status status_;
};

// One thread that runs tasks in order and hands each back when it is done. Parks when idle.
class TaskThread {
 public:
  // `done` is called on the thread for every task that has run.
  explicit TaskThread(std::function<void(std::unique_ptr<Task>)> done);
  // Waits for the task that runs now; the queued ones are dropped without running.
  ~TaskThread();

  void push(std::unique_ptr<Task> task);

 private:
  void loop();

  std::function<void(std::unique_ptr<Task>)> done_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Task>> queue_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace edgeshift::addon
