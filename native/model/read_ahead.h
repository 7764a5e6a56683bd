// Tells the system what a load reads next, while it works on what came before.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace edgeshift {

using FileBytes = std::span<const uint8_t>;
using WillRead = std::function<void(FileBytes)>;

// The bytes of some stretches in the order in which `workers` read them that share them out evenly, all at once from the
// start of their shares: pieces of some mebibytes, in turns.
std::vector<FileBytes> reading_order(const std::vector<FileBytes>& stretches, int workers);

// Announces the pieces of each of some jobs, in order, from a thread of its own: an announcement may wait for the disk's
// queue. Keeps at most kWindow bytes ahead of the job that has begun, so that what is read early is still in memory when
// it is needed. Without a thread (none to be had, or too little to read) all is announced at once.
class ReadAhead {
 public:
  using Job = std::vector<FileBytes>;

  ReadAhead(std::vector<Job> jobs, const WillRead& will_read);
  // Whatever has not been announced will not be.
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // The next job begins.
  void begin();

  static constexpr size_t kWindow = size_t(128) << 20;

 private:
  void run();
  bool may_announce(size_t offset);

  const std::vector<Job> jobs_;
  const WillRead& will_read_;
  std::mutex mutex_;
  std::condition_variable moved_;
  size_t begun_ = 0;  // jobs
  size_t limit_ = 0;  // bytes of all jobs together that may be announced
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace edgeshift
