// The thread pool: every index once, no CPU when idle, many short jobs, the caller never stuck.
#include <sys/resource.h>

#include <chrono>
#include <numeric>
#include <stdexcept>
#include <string>

#include "cpu/thread_pool.h"
#include "test/check.h"

using namespace edgeshift;

namespace {

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](timeval t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void check_cover(int threads) {
  cpu::ThreadPool pool(threads);
  for (int count : {0, 1, 2, 7, 64, 1000}) {
    for (int chunk : {1, 3, 100, 5000}) {
      std::vector<std::atomic<int>> hits(size_t(count) + 1);
      pool.for_ranges(count, chunk, [&](int64_t begin, int64_t end, int worker) {
        ES_CHECK(worker >= 0 && worker < threads && begin < end);
        for (int64_t i = begin; i < end; ++i) ++hits[size_t(i)];
      });
      for (int i = 0; i < count; ++i) ES_CHECK(hits[size_t(i)] == 1);
    }
  }
}

// Jobs in quick succession, whose memory is the caller's stack: a worker that is late must not touch an old job.
void check_succession() {
  cpu::ThreadPool pool(4);
  for (int i = 0; i < 30000; ++i) {
    std::atomic<int> sum{0};
    pool.for_ranges(8, 1, [&](int64_t begin, int64_t, int) { sum += int(begin) + i; });
    ES_CHECK(sum == 28 + 8 * i);
  }
}

// A body that throws, on a worker or on the caller, throws at the caller when nobody is inside any more.
void check_throwing() {
  cpu::ThreadPool pool(4);
  for (int i = 0; i < 3000; ++i) {
    std::atomic<int> inside{0};
    std::string caught;
    try {
      pool.for_ranges(8, 1, [&](int64_t begin, int64_t, int) {
        ++inside;
        if (begin == i % 8) {
          --inside;
          throw std::runtime_error("range " + std::to_string(begin));
        }
        --inside;
      });
    } catch (const std::runtime_error& error) {
      caught = error.what();
    }
    ES_CHECK(caught == "range " + std::to_string(i % 8) && inside == 0);
  }
  std::atomic<int> sum{0};
  pool.for_ranges(100, 1, [&](int64_t, int64_t, int) { ++sum; });
  ES_CHECK(sum == 100);
}

void check_idle() {
  cpu::ThreadPool pool(4);
  std::atomic<int> sum{0};
  pool.for_ranges(100, 1, [&](int64_t, int64_t, int) { ++sum; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // past the spinning
  double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  ES_CHECK(cpu_seconds() - before < 0.01);
  pool.for_ranges(100, 1, [&](int64_t, int64_t, int) { ++sum; });
  ES_CHECK(sum == 200);
}

void check_use() {
  cpu::ThreadPool pool(2);
  const auto before = std::chrono::steady_clock::now(), later = before + std::chrono::hours(1);
  ES_CHECK(!pool.used(before - std::chrono::hours(1)));
  pool.for_ranges(100, 1, [&](int64_t, int64_t, int) { ES_CHECK(pool.used(later)); });
  ES_CHECK(pool.used(before) && !pool.used(later));
}

// Of four workers two do all of a job while another pool works; afterwards all four are there at a time.
void check_giving_way() {
  cpu::ThreadPool ahead(2);
  cpu::ThreadPool pool(4, cpu::default_isa(), &ahead);
  std::atomic<int> first{0}, last{0};
  ahead.for_ranges(2, 1, [&](int64_t begin, int64_t, int) {
    if (begin == 0) pool.for_ranges(64, 1, [&](int64_t, int64_t, int worker) { ++(worker < 2 ? first : last); });
  });
  ES_CHECK(first == 64 && last == 0);
  using Clock = std::chrono::steady_clock;
  while (ahead.used(Clock::now() - std::chrono::milliseconds(100))) std::this_thread::yield();
  std::atomic<int> inside{0};
  const auto give_up = Clock::now() + std::chrono::seconds(60);
  pool.for_ranges(4, 1, [&](int64_t, int64_t, int) {
    ++inside;
    while (inside < 4 && Clock::now() < give_up) std::this_thread::yield();
  });
  ES_CHECK(inside == 4 && Clock::now() < give_up);
}

void check_scratch() {
  cpu::ThreadPool pool(1);
  void* first = pool.scratch(1000).value();
  ES_CHECK(first && pool.scratch(500).value() == first);
  ES_CHECK(pool.scratch(size_t(1) << 62).status().code() == Code::out_of_memory);
  ES_CHECK(pool.scratch(1000).value() == first);
  // The caller's memory, as far as it goes.
  std::byte own[2000];
  pool.lend(own);
  ES_CHECK(pool.scratch(2000).value() == own && pool.scratch(2001).value() != own);
  pool.lend({});
  ES_CHECK(pool.scratch(1000).value() != own);
}

}  // namespace

int main() {
  for (int threads : {1, 2, 5}) check_cover(threads);
  check_succession();
  check_throwing();
  check_idle();
  check_use();
  check_giving_way();
  check_scratch();
  return test::failures ? 1 : 0;
}
