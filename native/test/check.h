// The assertions of the native tests: a failed check prints its place and makes the program's exit status 1.
#pragma once

#include <cstdio>
#include <string>

namespace edgeshift::test {

inline int failures = 0;

inline void report(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++failures;
}

}  // namespace edgeshift::test

#define ES_CHECK(condition) \
  do {                   \
    if (!(condition)) ::edgeshift::test::report(__FILE__, __LINE__, "failed: " #condition); \
  } while (false)
