// Packed weights of variants in page-locked host memory: a variant that comes back needs one copy and no file.
#pragma once

#include <future>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "cuda/load.h"

namespace edgeshift::cuda {

// One contiguous stretch of page-locked memory for all variants of a device, taken once. Not thread-safe: loads use it, one
// at a time.
class HostCache {
 public:
  HostCache() = default;
  HostCache(const HostCache&) = delete;
  HostCache& operator=(const HostCache&) = delete;
  ~HostCache();

  // Starts to take `bytes`: it takes about a second for a gigabyte, and nobody waits before the first use. 0 = no cache.
  void open(size_t bytes, int device);

  // The weights kept under `key`, copied to new device memory; nothing when there are none, or no cache. The copies are
  // done when it returns. out_of_memory: the device has no room; the copy stays kept.
  Result<std::optional<DeviceWeights>> restore(const std::string& key, cudaStream_t stream);

  // Keeps a copy under `key`; others that were longest unused make room. Does nothing when it never fits.
  Status keep(const std::string& key, const DeviceWeights& weights, cudaStream_t stream);

  // What was taken of what open() was asked for: all or nothing. Waits until that is known; from any thread.
  size_t taken() const;

 private:
  struct Entry {
    std::string key;
    size_t offset = 0, bytes = 0;
    // As they were on the device: where each buffer began, and pointers into them.
    struct Region {
      const char* base;
      size_t bytes;
    };
    std::vector<Region> regions;
    TransformerWeights weights;
    RoundingSums rounding;
    size_t packed_bytes = 0;
  };
  using Entries = std::list<Entry>;

  bool ready() const { return taken() > 0; }
  std::optional<size_t> find_room(size_t bytes) const;
  std::optional<size_t> make_room(size_t bytes);

  std::shared_future<Status> opening_;
  char* memory_ = nullptr;
  size_t bytes_ = 0;
  Entries entries_;  // last used first
};

}  // namespace edgeshift::cuda
