// Builds GGUF bytes in memory for tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "loader/gguf.h"

namespace edgeshift::test {

class GgufBuilder {
 public:
  template <class T>
  GgufBuilder& put(T value) {
    auto p = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), p, p + sizeof(T));
    return *this;
  }
  GgufBuilder& text(const std::string& s) {
    put<uint64_t>(s.size());
    bytes.insert(bytes.end(), s.begin(), s.end());
    return *this;
  }
  GgufBuilder& header(uint64_t tensors, uint64_t entries, uint32_t version = 3) {
    return put<uint32_t>(0x46554747).put(version).put(tensors).put(entries);
  }
  GgufBuilder& key(const std::string& name, GgufType type) { return text(name).put(static_cast<uint32_t>(type)); }
  GgufBuilder& array(const std::string& name, GgufType element, uint64_t count) {
    return key(name, GgufType::array).put(static_cast<uint32_t>(element)).put(count);
  }
  GgufBuilder& tensor(const std::string& name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    text(name).put<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (uint64_t d : dims) put(d);
    return put(type).put(offset);
  }
  // Pads to the alignment and appends `count` bytes of tensor data.
  GgufBuilder& data(size_t count, size_t alignment = 32) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment + count, 0x11);
    return *this;
  }

  std::vector<uint8_t> bytes;
};

// A valid file with every kind of metadata value and two tensors.
inline std::vector<uint8_t> sample_gguf() {
  GgufBuilder b;
  b.header(2, 8);
  b.key("general.architecture", GgufType::string).text("llama");
  b.key("a.u32", GgufType::u32).put<uint32_t>(7);
  b.key("a.u64", GgufType::u64).put<uint64_t>(1ull << 40);
  b.key("a.f64", GgufType::f64).put<double>(0.5);
  b.key("a.bool", GgufType::boolean).put<uint8_t>(1);
  b.array("a.strings", GgufType::string, 2).text("x").text("\xc3\xa9");
  b.array("a.floats", GgufType::f32, 2).put<float>(1.5f).put<float>(-2);
  b.array("a.nested", GgufType::array, 2);
  b.put<uint32_t>(5).put<uint64_t>(1).put<int32_t>(-3);
  b.put<uint32_t>(8).put<uint64_t>(1).text("deep");
  b.tensor("m.weight", {32, 2}, 2, 0).tensor("n.weight", {4}, 0, 64);
  return b.data(64 + 16).bytes;
}

}  // namespace edgeshift::test
