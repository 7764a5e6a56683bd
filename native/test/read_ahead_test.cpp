// The order in which a load announces what it reads, and how far ahead of itself it does.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "model/read_ahead.h"
#include "test/check.h"

using namespace edgeshift;

namespace {

constexpr size_t kMebi = size_t(1) << 20;

// Addresses that nothing reads.
FileBytes bytes(size_t offset, size_t size) { return {reinterpret_cast<const uint8_t*>(offset), size}; }

size_t offset_of(FileBytes piece) { return reinterpret_cast<size_t>(piece.data()); }

// Two stretches shared out between three workers: each byte once, each worker's share from its start on, in turns.
void pieces_follow_the_workers() {
  const std::vector<FileBytes> stretches = {bytes(100 * kMebi, 7 * kMebi + 5), bytes(300 * kMebi, 10 * kMebi)};
  const std::vector<FileBytes> pieces = reading_order(stretches, 3);
  std::vector<bool> seen(17 * kMebi + 5);
  for (const FileBytes& piece : pieces) {
    const bool second = offset_of(piece) >= 300 * kMebi;
    const size_t first = second ? offset_of(piece) - 300 * kMebi + 7 * kMebi + 5 : offset_of(piece) - 100 * kMebi;
    for (size_t i = first; i < first + piece.size(); ++i) {
      ES_CHECK(!seen[i]);
      seen[i] = true;
    }
  }
  for (bool byte : seen) ES_CHECK(byte);
  const size_t share = (17 * kMebi + 5 + 2) / 3;
  ES_CHECK(offset_of(pieces[0]) == 100 * kMebi);
  ES_CHECK(offset_of(pieces[1]) == 100 * kMebi + share);
  ES_CHECK(reading_order({}, 4).empty() && reading_order({bytes(1, 0)}, 4).empty());
  ES_CHECK(reading_order({bytes(64, 3)}, 8).size() == 3);
}

// Counts what is announced and wakes whoever waits for a count.
class Announced {
 public:
  WillRead hear() {
    return [this](FileBytes piece) {
      std::lock_guard lock(mutex_);
      bytes_ += piece.size();
      heard_.notify_all();
    };
  }
  void wait_for(size_t bytes) {
    std::unique_lock lock(mutex_);
    heard_.wait(lock, [&] { return bytes_ >= bytes; });
  }
  size_t bytes() {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable heard_;
  size_t bytes_ = 0;
};

void keeps_within_the_window() {
  const size_t half = ReadAhead::kWindow / 2;
  std::vector<ReadAhead::Job> jobs;
  for (size_t job = 0; job < 6; ++job) jobs.push_back(reading_order({bytes((job + 1) << 32, half)}, 2));
  Announced announced;
  const WillRead hear = announced.hear();
  {
    ReadAhead ahead(jobs, hear);
    announced.wait_for(2 * half);
    ahead.begin();
    announced.wait_for(3 * half);
    ahead.begin();
    announced.wait_for(4 * half);
    ES_CHECK(announced.bytes() == 4 * half);
  }
  // What was not announced when it ended is not announced later.
  ES_CHECK(announced.bytes() == 4 * half);
}

void announces_little_at_once() {
  Announced announced;
  const WillRead hear = announced.hear();
  const ReadAhead ahead({{bytes(64, 1000)}, {bytes(4096, 500)}}, hear);
  ES_CHECK(announced.bytes() == 1500);
  const WillRead nobody;
  ReadAhead silent({{bytes(64, 1000)}}, nobody);
  silent.begin();
}

}  // namespace

int main() {
  pieces_follow_the_workers();
  keeps_within_the_window();
  announces_little_at_once();
  return test::failures == 0 ? 0 : 1;
}
