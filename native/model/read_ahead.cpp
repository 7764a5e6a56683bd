#include "model/read_ahead.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace edgeshift {

namespace {

constexpr size_t kPiece = size_t(2) << 20;
// As much as is read faster than a thread starts.
constexpr size_t kLittle = size_t(8) << 20;

size_t bytes_of(const std::vector<FileBytes>& stretches) {
  size_t total = 0;
  for (const FileBytes& stretch : stretches) total += stretch.size();
  return total;
}

// Bytes [begin, end) of stretches that are thought of as one behind the other.
void append(const std::vector<FileBytes>& stretches, size_t begin, size_t end, std::vector<FileBytes>& out) {
  size_t at = 0;
  for (const FileBytes& stretch : stretches) {
    const size_t from = std::max(begin, at), to = std::min(end, at + stretch.size());
    if (from < to) out.push_back(stretch.subspan(from - at, to - from));
    at += stretch.size();
  }
}

}  // namespace

std::vector<FileBytes> reading_order(const std::vector<FileBytes>& stretches, int workers) {
  const size_t total = bytes_of(stretches), count = size_t(std::max(workers, 1)), share = (total + count - 1) / count;
  std::vector<FileBytes> pieces;
  for (size_t done = 0; done < share; done += kPiece) {
    for (size_t worker = 0; worker < count; ++worker) {
      append(stretches, share * worker + done, share * worker + std::min(share, done + kPiece), pieces);
    }
  }
  return pieces;
}

ReadAhead::ReadAhead(std::vector<Job> jobs, const WillRead& will_read) : jobs_(std::move(jobs)), will_read_(will_read) {
  if (!will_read_) return;
  size_t total = 0;
  for (const Job& job : jobs_) total += bytes_of(job);
  limit_ = total;
  if (total > kLittle) {
    limit_ = std::min(total, kWindow);
    try {
      thread_ = std::thread([this] { run(); });
      return;
    } catch (const std::system_error&) {
      limit_ = total;
    }
  }
  run();
}

ReadAhead::~ReadAhead() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  moved_.notify_one();
  thread_.join();
}

void ReadAhead::begin() {
  if (!thread_.joinable() || begun_ == jobs_.size()) return;
  const size_t bytes = bytes_of(jobs_[begun_++]);
  {
    std::lock_guard lock(mutex_);
    limit_ += bytes;
  }
  moved_.notify_one();
}

bool ReadAhead::may_announce(size_t offset) {
  std::unique_lock lock(mutex_);
  moved_.wait(lock, [&] { return stopped_ || offset < limit_; });
  return !stopped_;
}

void ReadAhead::run() {
  size_t offset = 0;
  for (const Job& job : jobs_) {
    for (const FileBytes& piece : job) {
      if (!may_announce(offset)) return;
      will_read_(piece);
      offset += piece.size();
    }
  }
}

}  // namespace edgeshift
