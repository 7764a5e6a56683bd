// Model files that are truncated while they are mapped: a marked mapping that reads as zeros, not the end of the process.
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loader/mapped_file.h"
#include "model/backend.h"
#include "test/check.h"
#include "test/tiny_model.h"

using namespace edgeshift;
using namespace edgeshift::test;

namespace {

const size_t kPage = size_t(::sysconf(_SC_PAGESIZE));

// A file in the temporary folder, gone with its owner.
struct TemporaryFile {
  std::string path;
  int fd;

  explicit TemporaryFile(const std::string& content) {
    path = std::filesystem::temp_directory_path() / "edgeshift-mapped-XXXXXX";
    fd = ::mkstemp(path.data());
    ES_CHECK(fd >= 0 && ::write(fd, content.data(), content.size()) == ssize_t(content.size()));
  }
  ~TemporaryFile() {
    ::close(fd);
    ::unlink(path.c_str());
  }
  void truncate(size_t bytes) const { ES_CHECK(::ftruncate(fd, off_t(bytes)) == 0); }
};

bool is_torn(const MappedFile& file) {
  const Status status = file.intact();
  return status.code() == Code::invalid_file && status.message().find("truncated") != std::string::npos;
}

void reads_zeros_where_the_file_is_gone() {
  const TemporaryFile disk(std::string(4 * kPage, 'x'));
  Result<MappedFile> file = MappedFile::open(disk.path);
  Result<MappedFile> other = MappedFile::open(disk.path);
  ES_CHECK(file.ok() && other.ok() && file.value().intact().ok());
  disk.truncate(kPage + 1);
  const volatile uint8_t* data = file.value().data();
  // The page that holds the new end is still there, zeros from the end on.
  ES_CHECK(data[0] == 'x' && data[kPage] == 'x' && data[kPage + 1] == 0 && file.value().intact().ok());
  ES_CHECK(data[2 * kPage] == 0 && data[4 * kPage - 1] == 0 && data[0] == 'x');
  ES_CHECK(is_torn(file.value()) && other.value().intact().ok());
  MappedFile moved = std::move(file.value());
  ES_CHECK(is_torn(moved));
  ES_CHECK(MappedFile::open(disk.path).value().intact().ok());
}

void survives_it_on_many_threads() {
  const TemporaryFile disk(std::string(64 * kPage, 'x'));
  Result<MappedFile> file = MappedFile::open(disk.path);
  disk.truncate(kPage);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      const volatile uint8_t* data = file.value().data();
      for (size_t page = 63; page > 0; --page) ES_CHECK(data[page * kPage] == 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ES_CHECK(is_torn(file.value()));
}

// A SIGBUS that no mapped model file explains still ends the process.
void leaves_other_faults_alone() {
  const TemporaryFile disk(std::string(2 * kPage, 'x'));
  Result<MappedFile> watched = MappedFile::open(disk.path);
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
    const auto* data = static_cast<const volatile uint8_t*>(::mmap(nullptr, 2 * kPage, PROT_READ, MAP_SHARED, disk.fd, 0));
    (void)::ftruncate(disk.fd, 0);
    ::_exit(data[kPage]);
  }
  int status = 0;
  ES_CHECK(::waitpid(child, &status, 0) == child);
  ES_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

// The tensors of a net behind one another, in a file; the sources point into its mapping.
std::string bytes_of(const Net& net) {
  std::string bytes;
  for (const WeightSource& source : net.sources()) {
    bytes.append(reinterpret_cast<const char*>(source.values.data), source.values.bytes);
  }
  return bytes;
}

std::vector<WeightSource> sources_in(const Net& net, const MappedFile& file) {
  std::vector<WeightSource> sources = net.sources();
  size_t offset = 0;
  for (WeightSource& source : sources) {
    source.values.data = file.data() + offset;
    offset += source.values.bytes;
  }
  return sources;
}

// Truncated by the loader's own report of the first bytes that it is through with.
void a_load_ends_although_its_file_is_truncated() {
  const Net net = make_net({.hidden = 256, .ffn = 512});
  for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
    const TemporaryFile disk(bytes_of(net));
    Result<MappedFile> file = MappedFile::open(disk.path);
    LoadOptions options{precision, 1, 16, kBlock, {}};
    std::atomic<int> told{0};
    options.done_reading = [&](std::span<const uint8_t> bytes) {
      if (told++ == 0) disk.truncate(kPage);
      MappedFile::done_reading(bytes);
    };
    auto backend = open_cpu(2, 1 << 20);
    (void)backend.value()->load(net.spec, sources_in(net, file.value()), options);
    ES_CHECK(told > 1 && is_torn(file.value()));
  }
}

}  // namespace

int main() {
  reads_zeros_where_the_file_is_gone();
  survives_it_on_many_threads();
  leaves_other_faults_alone();
  a_load_ends_although_its_file_is_truncated();
  return failures == 0 ? 0 : 1;
}
