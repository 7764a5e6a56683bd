#include "core/cpu_info.h"

#include <unistd.h>

#include <fstream>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

namespace edgeshift {

std::string cpu_name() {
#ifdef __APPLE__
  char name[256] = "CPU";
  size_t size = sizeof(name);
  ::sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0);
  return name;
#else
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
#endif
}

uint64_t physical_memory() { return uint64_t(::sysconf(_SC_PHYS_PAGES)) * uint64_t(::sysconf(_SC_PAGESIZE)); }

}  // namespace edgeshift
