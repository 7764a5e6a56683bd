#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/cpu_info.h"
#include "core/text.h"
#include "cpu/buffer.h"
#include "cpu/ops.h"
#include "cpu/read_bandwidth.h"
#include "cpu/thread_pool.h"
#include "model/backend.h"
#include "model/cpu_model.h"
#include "model/head_padding.h"
#include "ops/kv_layout.h"

namespace edgeshift {

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxHeadDim = 256;
constexpr int kBlockUnit = 16;
// To be raised whenever a load of the same files gives other bytes (cpu/tile.h, cpu/pack.cpp, model/weights.cpp, quant/).
constexpr int kPackedVersion = 2;

// The general checks, and what the kernels (cpu/ops.h) take.
Status check(const ModelSpec& spec, const LoadOptions& options) {
  ES_RETURN_IF_ERROR(check_spec(spec, options));
  if (spec.head_dim > kMaxHeadDim) {
    return error(Code::unsupported, "heads of ", spec.head_dim, " values; the CPU backend takes up to ", kMaxHeadDim);
  }
  if (options.block_size % kBlockUnit != 0) {
    return error(Code::unsupported, "a block size of ", options.block_size, "; the CPU backend takes multiples of ",
                 kBlockUnit);
  }
  return Status();
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, cpu::Buffer arena, cpu::Buffer swap)
      : pool_(threads), arena_(std::move(arena)), swap_(std::move(swap)) {}

  Result<std::unique_ptr<Model>> load(const ModelSpec& spec, const std::vector<WeightSource>& sources,
                                      const LoadOptions& options) override {
    if (Status status = check(spec, options); !status.ok()) return status;
    // Threads of its own: a step may be using the device's, and goes first.
    cpu::ThreadPool loaders(pool_.threads(), pool_.isa(), &pool_);
    Result<CpuWeights> weights = load_cpu_weights(loaders, spec, sources, options);
    if (!weights.ok()) return weights.status();
    ModelSpec padded = spec;
    padded.head_dim = padded_head_dim(spec.head_dim);
    Result<CpuWorkspace> workspace = CpuWorkspace::create(padded, options.max_batch_tokens, scratch_bytes(padded, options));
    if (!workspace.ok()) return workspace.status();
    const KvArena arena{arena_.data(), arena_.bytes()};
    return std::unique_ptr<Model>(std::make_unique<CpuModel>(
        pool_, arena, std::move(padded), options, std::move(weights.value()), std::move(workspace.value())));
  }

  // Every instruction set has the same tiles; the set is named so that no doubt about its conversions can arise.
  std::string packed_layout() const override { return join("cpu ", kPackedVersion, " ", cpu::isa_name(pool_.isa())); }
  bool elastic_kv() const override { return true; }
  void discard_kv(size_t offset, size_t bytes) override { arena_.discard(offset, bytes); }
  Result<double> read_bandwidth() override { return cpu::read_bandwidth(pool_); }

  Result<std::unique_ptr<PendingStep>> copy_kv(const KvCopy& copy) override {
    if (Status status = check_copy(copy, arena_.bytes(), swap_.bytes()); !status.ok()) return status;
    const auto start = std::chrono::steady_clock::now();
    for (size_t i = 0; i < copy.device_blocks.size(); ++i) {
      char* device = static_cast<char*>(arena_.data()) + size_t(copy.device_blocks[i]) * kKvUnitBytes;
      char* host = static_cast<char*>(swap_.data()) + size_t(copy.host_blocks[i]) * kKvUnitBytes;
      std::memcpy(copy.to_host ? host : device, copy.to_host ? device : host, copy.block_bytes);
    }
    const auto elapsed = std::chrono::steady_clock::now() - start;
    return finished_step({{}, std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count()});
  }

 private:
  // Products of halves take floats as they are.
  size_t scratch_bytes(const ModelSpec& spec, const LoadOptions& options) const {
    if (options.precision == Precision::fp16) return 0;
    const int widest = std::max({spec.hidden, spec.ffn, spec.heads * spec.head_dim});
    return cpu::matmul_scratch_bytes(options.max_batch_tokens, widest, pool_.threads());
  }

  cpu::ThreadPool pool_;
  cpu::Buffer arena_;
  cpu::Buffer swap_;
};

}  // namespace

Result<std::unique_ptr<Backend>> open_cpu(int threads, size_t kv_bytes, size_t swap_bytes) {
  if (threads < 1 || threads > kMaxThreads) {
    return error(Code::invalid_argument, "threads must be from 1 to ", kMaxThreads, ", not ", threads);
  }
  if (swap_bytes > physical_memory()) {
    return error(Code::out_of_memory, "swap memory of ", swap_bytes, " bytes is larger than the machine's ", physical_memory());
  }
  // The mapping would succeed: Linux gives memory out before it has it.
  if (kv_bytes > physical_memory()) {
    return error(Code::out_of_memory, "a KV arena of ", kv_bytes, " bytes is larger than the machine's ",
                 physical_memory(), " bytes of memory");
  }
  Result<cpu::Buffer> arena = cpu::Buffer::allocate(kv_bytes);
  if (!arena.ok()) return arena.status();
  Result<cpu::Buffer> swap = cpu::Buffer::allocate(swap_bytes);
  if (!swap.ok()) return swap.status();
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(threads, std::move(arena.value()), std::move(swap.value())));
}

}  // namespace edgeshift
