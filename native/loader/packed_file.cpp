#include "loader/packed_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "core/text.h"

namespace edgeshift {

namespace {

constexpr char kMagic[] = "ESPACK01";
constexpr size_t kWord = 8;
constexpr size_t kPage = 4096;
// What is written at a time: a save that is told to stop does so after this much.
constexpr size_t kPiece = size_t(1) << 20;
// Magic, bytes, two doubles, key length; two words at the end.
constexpr size_t kHead = 5 * kWord, kTail = 2 * kWord;
constexpr uint64_t kMaxTrailer = uint64_t(1) << 24;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

Status failure(const std::string& path, const char* what, int reason) {
  const bool full = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
  return error(full ? Code::disk_full : Code::io_error, path, ": ", what, ": ", std::strerror(reason));
}

uint64_t word_at(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, kWord);
  return word;
}

void put(std::vector<uint8_t>& out, const void* bytes, size_t count) {
  const auto* from = static_cast<const uint8_t*>(bytes);
  out.insert(out.end(), from, from + count);
}

template <class T>
void put(std::vector<uint8_t>& out, T value) {
  static_assert(sizeof(T) == kWord);
  put(out, &value, kWord);
}

// Four lanes that each turn, mix in a word and multiply: a changed word changes its lane for good.
class Checksum {
 public:
  // What comes before the last call is a multiple of 32 bytes.
  void add(std::span<const uint8_t> bytes) {
    bytes_ += bytes.size();
    size_t at = 0;
    for (; at + 4 * kWord <= bytes.size(); at += 4 * kWord) {
      for (size_t l = 0; l < 4; ++l) lanes_[l] = mixed(lanes_[l], word_at(bytes.data() + at + l * kWord));
    }
    for (; at < bytes.size(); ++at) lanes_[0] = mixed(lanes_[0], bytes[at]);
  }
  uint64_t value() const {
    uint64_t sum = bytes_;
    for (uint64_t lane : lanes_) sum = mixed(sum, lane);
    return sum ^ sum >> 32;
  }

 private:
  static uint64_t mixed(uint64_t sum, uint64_t word) { return (std::rotl(sum, 29) ^ word) * 0x9e3779b97f4a7c15; }

  uint64_t lanes_[4] = {1, 2, 3, 4};
  uint64_t bytes_ = 0;
};

// Finds damage, not forgery: the file is as trustworthy as the folder that it is in.
uint64_t checksum(std::span<const uint8_t> bytes) {
  Checksum sum;
  sum.add(bytes);
  return sum.value();
}

std::vector<uint8_t> make_trailer(const PackedInfo& info, const std::vector<uint64_t>& checksums) {
  std::vector<uint8_t> out;
  put(out, kMagic, kWord);
  put(out, info.bytes);
  put(out, info.rounding.error);
  put(out, info.rounding.weights);
  put(out, uint64_t(info.key.size()));
  put(out, info.key.data(), info.key.size());
  out.resize(round_up(out.size(), kWord));
  for (uint64_t sum : checksums) put(out, sum);
  put(out, checksum(out));
  put(out, uint64_t(round_up(info.bytes, kPage)));
  return out;
}

// False when the file ends before.
bool read_fully(int file, void* to, size_t bytes, uint64_t offset) {
  auto* place = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::pread(file, place, bytes, off_t(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    place += got, offset += size_t(got), bytes -= size_t(got);
  }
  return true;
}

// A file that is being written; removed unless it is finished.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path) {
    // Beyond a limit of the process a write is to fail, not to end it.
    sigset_t limit;
    sigemptyset(&limit);
    sigaddset(&limit, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &limit, nullptr);
    file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  }
  ~NewFile() {
    if (file_ < 0) return;
    ::close(file_);
    ::unlink(path_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // Takes the room at once: a full disk then shows before anything is written.
  Status reserve(size_t bytes) {
    if (file_ < 0) return failure(path_, "cannot create", errno);
#ifdef FALLOC_FL_KEEP_SIZE
    if (::fallocate(file_, FALLOC_FL_KEEP_SIZE, 0, off_t(bytes)) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
      return failure(path_, "cannot reserve room", errno);
    }
#endif
    return {};
  }

  Status write(std::span<const uint8_t> bytes, uint64_t offset) {
    while (!bytes.empty()) {
      const ssize_t put = ::pwrite(file_, bytes.data(), bytes.size(), off_t(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return failure(path_, "cannot write", put < 0 ? errno : ENOSPC);
      bytes = bytes.subspan(size_t(put)), offset += size_t(put);
    }
    return {};
  }

  Status finish() {
    if (::fsync(file_) != 0) return failure(path_, "cannot write", errno);
    ::close(std::exchange(file_, -1));
    return {};
  }

 private:
  const std::string path_;
  int file_ = -1;
};

}  // namespace

PackedFile::~PackedFile() {
  if (file_ >= 0) ::close(file_);
}

void PackedFile::swap(PackedFile& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(info_, other.info_);
  std::swap(checksums_, other.checksums_);
}

Status PackedFile::damaged(const char* what) const { return error(Code::invalid_file, path_, ": ", what); }

Result<PackedFile> PackedFile::open(const std::string& path, const std::string& key) {
  PackedFile packed;
  packed.path_ = path;
  packed.file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (packed.file_ < 0) return failure(path, "cannot open", errno);
  struct stat stat;
  if (::fstat(packed.file_, &stat) != 0) return failure(path, "cannot stat", errno);
  const auto size = uint64_t(stat.st_size);
  uint64_t start = 0;
  if (!S_ISREG(stat.st_mode) || size < kHead + kTail || !read_fully(packed.file_, &start, kWord, size - kWord)) {
    return packed.damaged("it is too short");
  }
  if (start >= size || size - start < kHead + kTail || size - start > kMaxTrailer) return packed.damaged("it is torn");
  std::vector<uint8_t> trailer(size - start);
  if (!read_fully(packed.file_, trailer.data(), trailer.size(), start)) return packed.damaged("it is torn");
  if (std::memcmp(trailer.data(), kMagic, kWord) != 0) return packed.damaged("it is not of this version");
  const std::span<const uint8_t> summed(trailer.data(), trailer.size() - kTail);
  if (word_at(trailer.data() + summed.size()) != checksum(summed)) return packed.damaged("its description is damaged");
  PackedInfo& info = packed.info_;
  info.bytes = word_at(trailer.data() + kWord);
  info.rounding = {std::bit_cast<double>(word_at(trailer.data() + 2 * kWord)), std::bit_cast<double>(word_at(trailer.data() + 3 * kWord))};
  const uint64_t length = word_at(trailer.data() + 4 * kWord);
  const uint64_t chunks = (info.bytes + kPackedChunk - 1) / kPackedChunk;
  if (length > kMaxTrailer || chunks > kMaxTrailer || round_up(info.bytes, kPage) != start ||
      summed.size() != kHead + round_up(length, kWord) + chunks * kWord) {
    return packed.damaged("its description is damaged");
  }
  info.key.assign(reinterpret_cast<const char*>(trailer.data()) + kHead, length);
  if (info.key != key) return packed.damaged("it was made of other files, or for another device");
  const uint8_t* sums = trailer.data() + kHead + round_up(length, kWord);
  for (uint64_t i = 0; i < chunks; ++i) packed.checksums_.push_back(word_at(sums + i * kWord));
  return packed;
}

size_t PackedFile::chunk_bytes(size_t chunk) const { return std::min(kPackedChunk, size_t(info_.bytes) - chunk * kPackedChunk); }

Status PackedFile::read(size_t chunk, void* to) const {
  const size_t bytes = chunk_bytes(chunk);
  if (!read_fully(file_, to, bytes, uint64_t(chunk) * kPackedChunk)) return damaged("it is torn, or cannot be read");
  const std::span<const uint8_t> read(static_cast<const uint8_t*>(to), bytes);
  return checksum(read) == checksums_[chunk] ? Status() : damaged("its content is damaged");
}

Status write_packed_file(const std::string& path, const PackedInfo& info, const ImagePiece& image,
                         const std::function<bool()>& stop) {
  std::vector<uint64_t> checksums;
  NewFile file(path);
  const size_t trailer_at = round_up(info.bytes, kPage);
  ES_RETURN_IF_ERROR(file.reserve(trailer_at + kPage));
  for (size_t at = 0; at < info.bytes; at += kPackedChunk) {
    Checksum sum;
    const size_t end = std::min(at + kPackedChunk, size_t(info.bytes));
    for (size_t piece = at; piece < end; piece += kPiece) {
      if (stop()) return error(Code::invalid_argument, path, ": stopped");
      Result<std::span<const uint8_t>> bytes = image(piece, std::min(kPiece, end - piece));
      if (!bytes.ok()) return bytes.status();
      ES_RETURN_IF_ERROR(file.write(bytes.value(), piece));
      sum.add(bytes.value());
    }
    checksums.push_back(sum.value());
  }
  const std::vector<uint8_t> trailer = make_trailer(info, checksums);
  ES_RETURN_IF_ERROR(file.write(trailer, trailer_at));
  return file.finish();
}

}  // namespace edgeshift
