#include "cuda/host_cache.h"

#include <algorithm>

namespace edgeshift::cuda {
namespace {

constexpr size_t kChunk = size_t(16) << 20;
constexpr size_t kAlignment = 4096;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// By chunks: what else wants the copy engine waits for some of them, not for a model. Steps do not want it (small_copy.h).
Status copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  for (size_t at = 0; at < bytes; at += kChunk) {
    ES_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(static_cast<char*>(to) + at, static_cast<const char*>(from) + at,
                                            std::min(kChunk, bytes - at), kind, stream));
  }
  return {};
}

// Pointers into old device memory, turned to the places that the same bytes have now.
class Move {
 public:
  Move(const char* from, size_t bytes, char* to) : from_(from), bytes_(bytes), to_(to) {}

  template <class T>
  bool operator()(T*& pointer) const {
    const char* at = reinterpret_cast<const char*>(pointer);
    if (!pointer || at < from_ || at >= from_ + bytes_) return false;
    pointer = reinterpret_cast<T*>(to_ + (at - from_));
    return true;
  }

 private:
  const char* from_;
  size_t bytes_;
  char* to_;
};

template <class T>
void move(const std::vector<Move>& moves, T*& pointer) {
  for (const Move& each : moves) {
    if (each(pointer)) return;
  }
}

void move(const std::vector<Move>& moves, PackedMatrix& matrix) {
  move(moves, matrix.data);
  move(moves, matrix.permutation);
}

void move(const std::vector<Move>& moves, TransformerWeights& w) {
  for (PackedMatrix* matrix : {&w.embed, &w.head}) move(moves, *matrix);
  move(moves, w.final_norm);
  for (const float*& frequencies : w.inv_freq) move(moves, frequencies);
  for (LayerWeights& layer : w.layers) {
    for (PackedMatrix* matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) move(moves, *matrix);
    for (const float** vector : {&layer.attention_norm, &layer.ffn_norm, &layer.qkv_bias, &layer.q_norm, &layer.k_norm, &layer.o_bias,
                                 &layer.gate_up_bias, &layer.down_bias, &layer.post_attention_norm, &layer.post_ffn_norm}) {
      move(moves, *vector);
    }
  }
}

}  // namespace

HostCache::~HostCache() {
  if (opening_.valid()) opening_.wait();
  cudaFreeHost(memory_);
}

void HostCache::open(size_t bytes, int device) {
  if (bytes == 0) return;
  bytes_ = bytes / kAlignment * kAlignment;
  opening_ = std::async(std::launch::async, [this, device]() -> Status {
    ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(device));
    void* memory = nullptr;
    ES_CUDA_RETURN_IF_ERROR(cudaMallocHost(&memory, bytes_));
    memory_ = static_cast<char*>(memory);
    return {};
  });
}

// Without the memory there is no cache, and everything works as without one.
size_t HostCache::taken() const {
  // Each thread waits through a copy of its own.
  const std::shared_future<Status> opening = opening_;
  return opening.valid() && opening.get().ok() ? bytes_ : 0;
}

std::optional<size_t> HostCache::find_room(size_t bytes) const {
  std::vector<const Entry*> sorted;
  for (const Entry& entry : entries_) sorted.push_back(&entry);
  std::ranges::sort(sorted, {}, &Entry::offset);
  size_t free_from = 0;
  for (const Entry* entry : sorted) {
    if (entry->offset - free_from >= bytes) return free_from;
    free_from = entry->offset + entry->bytes;
  }
  if (bytes_ - free_from >= bytes) return free_from;
  return std::nullopt;
}

std::optional<size_t> HostCache::make_room(size_t bytes) {
  if (bytes > bytes_) return std::nullopt;
  for (;;) {
    if (std::optional<size_t> room = find_room(bytes)) return room;
    entries_.pop_back();
  }
}

Result<std::optional<DeviceWeights>> HostCache::restore(const std::string& key, cudaStream_t stream) {
  const auto found = std::ranges::find(entries_, key, &Entry::key);
  if (found == entries_.end()) return std::optional<DeviceWeights>();
  entries_.splice(entries_.begin(), entries_, found);
  DeviceWeights out;
  out.weights = found->weights;
  out.rounding = found->rounding;
  out.packed_bytes = found->packed_bytes;
  out.origin = Origin::host_copy;
  std::vector<Move> moves;
  const char* from = memory_ + found->offset;
  Status status;
  for (const Entry::Region& region : found->regions) {
    Buffer& buffer = out.buffers.emplace_back();
    if (status.ok()) status = buffer.allocate(region.bytes);
    if (status.ok()) status = copy(buffer.as<void>(), from, region.bytes, cudaMemcpyHostToDevice, stream);
    moves.emplace_back(region.base, region.bytes, buffer.as<char>());
    from += aligned(region.bytes);
  }
  // Also on error: nothing may be freed while a copy still writes to it.
  const Status settled = to_status(cudaStreamSynchronize(stream), "weights from the host cache");
  if (!status.ok()) return status;
  if (!settled.ok()) return settled;
  move(moves, out.weights);
  return std::optional<DeviceWeights>(std::move(out));
}

Status HostCache::keep(const std::string& key, const DeviceWeights& weights, cudaStream_t stream) {
  if (!ready() || std::ranges::find(entries_, key, &Entry::key) != entries_.end()) return {};
  size_t bytes = 0;
  for (const Buffer& buffer : weights.buffers) bytes += aligned(buffer.bytes());
  const std::optional<size_t> room = make_room(bytes);
  if (!room) return {};
  Entry entry{key, *room, bytes, {}, weights.weights, weights.rounding, weights.packed_bytes};
  char* to = memory_ + *room;
  for (const Buffer& buffer : weights.buffers) {
    entry.regions.push_back({buffer.as<char>(), buffer.bytes()});
    ES_RETURN_IF_ERROR(copy(to, buffer.as<void>(), buffer.bytes(), cudaMemcpyDeviceToHost, stream));
    to += aligned(buffer.bytes());
  }
  ES_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream));
  entries_.push_front(std::move(entry));
  return {};
}

}  // namespace edgeshift::cuda
