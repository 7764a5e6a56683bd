// What the machine's processor is.
#pragma once

#include <cstdint>
#include <string>

namespace edgeshift {

// Marketing name from the operating system, "CPU" when it gives none.
std::string cpu_name();

// Physical memory, bytes.
uint64_t physical_memory();

}  // namespace edgeshift
