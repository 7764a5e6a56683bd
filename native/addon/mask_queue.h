// Masks on their way from the JavaScript thread to the steps that wait for them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace edgeshift::addon {

// One entry for each step with masks, in the order of the steps. Any thread.
class MaskQueue {
 public:
  void give(std::vector<uint32_t> masks) {
    {
      std::lock_guard lock(mutex_);
      given_.push_back(std::move(masks));
    }
    changed_.notify_one();
  }

  // Waits for the next entry; nothing once the queue is closed.
  std::optional<std::vector<uint32_t>> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || !given_.empty(); });
    if (closed_) return std::nullopt;
    std::optional<std::vector<uint32_t>> next = std::move(given_.front());
    given_.pop_front();
    return next;
  }

  // Wakes who waits; nobody waits from here on.
  void close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::vector<uint32_t>> given_;
  bool closed_ = false;
};

}  // namespace edgeshift::addon
