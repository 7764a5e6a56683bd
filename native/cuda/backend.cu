#include <algorithm>
#include <string>
#include <thread>

#include "core/text.h"
#include "cuda/host_cache.h"
#include "cuda/model.h"
#include "cuda/read_bandwidth.h"
#include "model/backend.h"
#include "model/spec_check.h"

namespace edgeshift {
namespace {

constexpr int kMaxLoadThreads = 16;
constexpr int kMaxQueriesPerKvHead = 8;
// To be raised whenever a load of the same files gives other bytes (cuda/strip_layout.h, cuda/pack.cu, model/weights.cpp, quant/).
constexpr int kPackedVersion = 2;

int threads_up_to(int limit) { return std::clamp(int(std::thread::hardware_concurrency()), 1, limit); }

// The general checks, and what the kernels take.
Status check(const ModelSpec& spec, const LoadOptions& options) {
  ES_RETURN_IF_ERROR(check_spec(spec, options));
  auto no = [](const auto&... parts) { return error(Code::unsupported, parts..., " on a CUDA device"); };
  if (cuda::kernel_head_dim(spec.head_dim) == 0) return no("heads of ", spec.head_dim, " values");
  if (spec.heads / spec.kv_heads > kMaxQueriesPerKvHead) return no(spec.heads / spec.kv_heads, " query heads per kv head");
  if (options.block_size % 16 != 0) return no("a block size of ", options.block_size);
  if (spec.hidden % 8 != 0 || spec.ffn % 8 != 0) return no("a hidden or feed-forward size that is not a multiple of 8");
  return Status();
}

// 13000 is "13.0".
std::string version_text(int version) { return join(version / 1000, ".", version % 1000 / 10); }

Status with_place(const char* place, const Status& status) {
  return status.ok() ? status : error(status.code(), place, ": ", status.message());
}

Result<size_t> in_use(int index) {
  size_t free = 0, total = 0;
  ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(index));
  ES_CUDA_RETURN_IF_ERROR(cudaMemGetInfo(&free, &total));
  return total - free;
}

class PendingCopy final : public PendingStep {
 public:
  explicit PendingCopy(int device) : device_(device) {}
  ~PendingCopy() override {
    cudaSetDevice(device_);
    if (end_) cudaEventSynchronize(end_);
    if (begin_) cudaEventDestroy(begin_);
    if (end_) cudaEventDestroy(end_);
  }

  Status start(const KvCopy& copy, char* arena, char* swap, cudaStream_t stream) {
    ES_CUDA_RETURN_IF_ERROR(cudaEventCreate(&begin_));
    ES_CUDA_RETURN_IF_ERROR(cudaEventCreate(&end_));
    ES_CUDA_RETURN_IF_ERROR(cudaEventRecord(begin_, stream));
    const auto& from = copy.device_blocks;
    const auto& to = copy.host_blocks;
    const size_t units = copy.block_bytes / kKvUnitBytes;
    for (size_t i = 0, run = 1; i < from.size(); i += run) {
      for (run = 1; i + run < from.size() && from[i + run] == from[i] + run * units && to[i + run] == to[i] + run * units;) ++run;
      char* device = arena + size_t(from[i]) * kKvUnitBytes;
      char* host = swap + size_t(to[i]) * kKvUnitBytes;
      const size_t bytes = run * copy.block_bytes;
      ES_CUDA_RETURN_IF_ERROR(copy.to_host ? cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream)
                                           : cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
    }
    return cuda::to_status(cudaEventRecord(end_, stream), "a copy of KV blocks");
  }

  bool ready() const override { return cudaEventQuery(end_) == cudaSuccess; }

  // On a thread that may have no device yet, which would be the first one.
  Status wait(StepResult& result) override {
    ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_));
    ES_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(end_));
    float milliseconds = 0;
    ES_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, begin_, end_));
    result.device_micros = int64_t(milliseconds * 1e3f);
    return {};
  }

 private:
  const int device_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index) { state_.on.device.index = index; }
  ~CudaBackend() override {
    cudaSetDevice(state_.on.device.index);
    if (state_.on.stream) cudaStreamDestroy(state_.on.stream);
    if (loads_) cudaStreamDestroy(loads_);
    cudaFreeHost(swap_);
  }

  Status open(size_t kv_bytes, size_t host_cache_bytes, size_t swap_bytes) {
    const int index = state_.on.device.index;
    ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(index));
    Result<cuda::DeviceTraits> traits = cuda::device_traits(index);
    if (!traits.ok()) return traits.status();
    state_.on.device = traits.value();
    ES_RETURN_IF_ERROR(cuda::check_kernels());
    // Blocking streams would wait for each other's work.
    ES_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&state_.on.stream, cudaStreamNonBlocking));
    ES_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&loads_, cudaStreamNonBlocking));
    ES_RETURN_IF_ERROR(with_place("the KV arena", state_.arena.allocate(kv_bytes)));
    // Attention multiplies masked values by zero: they must be numbers.
    ES_CUDA_RETURN_IF_ERROR(cudaMemset(state_.arena.as<void>(), 0, state_.arena.bytes()));
    if (swap_bytes > 0) ES_RETURN_IF_ERROR(with_place("the swap memory", cuda::to_status(cudaMallocHost(&swap_, swap_bytes), "cudaMallocHost")));
    swap_bytes_ = swap_bytes;
    cache_.open(host_cache_bytes, index);
    return cuda::to_status(cudaDeviceSynchronize(), "the KV arena");
  }

  Result<std::unique_ptr<Model>> load(const ModelSpec& spec, const std::vector<WeightSource>& sources,
                                      const LoadOptions& options) override {
    if (Status status = check(spec, options); !status.ok()) return status;
    const int index = state_.on.device.index;
    if (Status status = cuda::to_status(cudaSetDevice(index), "cudaSetDevice"); !status.ok()) return status;
    Result<cuda::DeviceWeights> weights = weights_of(spec, sources, options);
    if (!weights.ok()) return weights.status();
    ModelSpec padded = spec;
    padded.head_dim = cuda::kernel_head_dim(spec.head_dim);
    auto model = std::make_unique<cuda::CudaModel>(state_, std::move(padded), options, std::move(weights.value()));
    if (Status status = with_place("the workspace", model->prepare()); !status.ok()) return status;
    return std::unique_ptr<Model>(std::move(model));
  }

  Result<double> read_bandwidth() override {
    ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(state_.on.device.index));
    return cuda::read_bandwidth(state_.on);
  }

  Result<std::optional<size_t>> used_bytes() override {
    Result<size_t> used = in_use(state_.on.device.index);
    if (!used.ok()) return used.status();
    return std::optional<size_t>(used.value());
  }

  size_t host_cache_bytes() override { return cache_.taken(); }

  // By the steps' stream: what was issued before has written the blocks, and what is issued later finds them copied. Neighbours
  // on both sides go as one copy.
  Result<std::unique_ptr<PendingStep>> copy_kv(const KvCopy& copy) override {
    if (Status status = check_copy(copy, state_.arena.bytes(), swap_bytes_); !status.ok()) return status;
    if (Status status = cuda::to_status(cudaSetDevice(state_.on.device.index), "cudaSetDevice"); !status.ok()) return status;
    auto pending = std::make_unique<PendingCopy>(state_.on.device.index);
    Status status = pending->start(copy, state_.arena.as<char>(), static_cast<char*>(swap_), state_.on.stream);
    if (!status.ok()) return status;
    return std::unique_ptr<PendingStep>(std::move(pending));
  }

  std::string packed_layout() const override { return join("cuda ", kPackedVersion); }

 private:
  // From the host cache where it has them, else from the sources.
  Result<cuda::DeviceWeights> weights_of(const ModelSpec& spec, const std::vector<WeightSource>& sources, const LoadOptions& options) {
    Result<std::optional<cuda::DeviceWeights>> kept = cache_.restore(options.cache_key, loads_);
    if (!kept.ok()) return kept.status();
    if (kept.value()) return Result<cuda::DeviceWeights>(std::move(*kept.value()));
    cpu::ThreadPool loaders(threads_up_to(kMaxLoadThreads));
    Result<cuda::DeviceWeights> weights = cuda::load_device_weights(loaders, spec, sources, options, staging_, state_.on.device.index, loads_);
    if (!weights.ok() || options.cache_key.empty()) return weights;
    // What was read of a torn file must not come back as if it were whole.
    Status status = options.intact ? options.intact() : Status();
    if (status.ok()) status = cache_.keep(options.cache_key, weights.value(), loads_);
    if (!status.ok()) return status;
    return weights;
  }

  cuda::DeviceState state_;
  cuda::HostCache cache_;
  cuda::Staging staging_;
  cudaStream_t loads_ = nullptr;
  void* swap_ = nullptr;
  size_t swap_bytes_ = 0;
};

// Why the runtime finds no device.
Status no_device(cudaError_t found) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  cudaGetLastError();
  if (driver == 0) return error(Code::unsupported, "there is no NVIDIA driver");
  if (found == cudaErrorInsufficientDriver) {
    return error(Code::unsupported, "the NVIDIA driver supports CUDA ", version_text(driver), ", this build needs ",
                 version_text(CUDART_VERSION), ": update the driver or build with an older toolkit");
  }
  return error(Code::unsupported, "no CUDA device: ", cudaGetErrorName(found), ": ", cudaGetErrorString(found));
}

Status check_index(int index) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess) return no_device(found);
  if (index < 0 || index >= count) return error(Code::unsupported, "there is no CUDA device ", index, ", only ", count);
  return {};
}

}  // namespace

std::vector<CudaDevice> cuda_devices() {
  std::vector<CudaDevice> out;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return out;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    out.push_back({i, properties.name, properties.totalGlobalMem, properties.major, properties.minor});
  }
  return out;
}

Result<size_t> cuda_used_bytes(int index) {
  if (Status status = check_index(index); !status.ok()) return status;
  return in_use(index);
}

Result<std::unique_ptr<Backend>> open_cuda(int index, size_t kv_bytes, size_t host_cache_bytes, size_t swap_bytes) {
  if (Status status = check_index(index); !status.ok()) return status;
  auto backend = std::make_unique<CudaBackend>(index);
  if (Status status = backend->open(kv_bytes, host_cache_bytes, swap_bytes); !status.ok()) return status;
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace edgeshift
