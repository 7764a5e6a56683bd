// A library to load before a program (LD_PRELOAD): while the environment has THREADS_LEFT, so many threads can still be made.
#include <dlfcn.h>
#include <pthread.h>

#include <cerrno>
#include <cstdlib>
#include <string>

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  if (const char* left = std::getenv("THREADS_LEFT")) {
    const int count = std::atoi(left);
    if (count == 0) return EAGAIN;
    setenv("THREADS_LEFT", std::to_string(count - 1).c_str(), 1);
  }
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  return reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"))(thread, attributes, start, argument);
}
