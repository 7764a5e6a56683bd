#include "model/cpu_weights.h"

#include <mutex>

#include "core/text.h"
#include "cpu/pack.h"
#include "model/head_padding.h"

namespace edgeshift {

namespace {

class CpuPacker final : public WeightPacker {
 public:
  CpuPacker(cpu::ThreadPool& pool, const LoadOptions& options, CpuWeights& out) : pool_(pool), options_(options), out_(out) {}

  int head_dim(int head_dim) const override { return padded_head_dim(head_dim); }
  bool one_matrix() const override { return false; }
  int workers() const override { return pool_.threads(); }
  bool reads_files() const override { return out_.origin == Origin::files; }

  Status reserve(std::span<const PackJob> jobs) override {
    size_t bytes = 0;
    for (const PackJob& job : jobs) bytes += bytes_of(job);
    Result<cpu::Buffer> memory = cpu::Buffer::allocate(bytes);
    if (!memory.ok()) return memory.status();
    out_.matrices = std::move(memory.value());
    out_.packed_bytes = bytes;
    if (options_.packed) restore(*options_.packed);
    return Status();
  }

  Status pack(const PackJob& job, RoundingSums& rounding) override {
    char* place = static_cast<char*>(out_.matrices.data()) + used_;
    used_ += bytes_of(job);
    if (out_.origin == Origin::files) return cpu::pack(pool_, job.parts, job.form, place, *job.out, rounding, options_.done_reading);
    cpu::describe_packed(job.form, job.rows(), job.k(), job.order(), place, *job.out);
    return Status();
  }

 private:
  static size_t bytes_of(const PackJob& job) {
    return cpu::packed_bytes(job.form, job.rows(), job.k(), !job.order().empty());
  }

  // Where the file cannot be used, everything is packed as without it.
  void restore(PackedSource& packed) {
    if (packed.fault.ok() && packed.file.info().bytes != out_.packed_bytes) {
      packed.fault = error(Code::invalid_file, "the repacked file has ", packed.file.info().bytes, " bytes, not ", out_.packed_bytes);
    }
    if (!packed.fault.ok()) return;
    std::mutex mutex;
    pool_.for_ranges(int64_t(packed.file.chunks()), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        Status status = packed.file.read(size_t(chunk), static_cast<char*>(out_.matrices.data()) + size_t(chunk) * kPackedChunk);
        if (status.ok()) continue;
        std::lock_guard lock(mutex);
        packed.fault = std::move(status);
      }
    });
    if (packed.fault.ok()) out_.origin = Origin::packed_file;
  }

  cpu::ThreadPool& pool_;
  const LoadOptions& options_;
  CpuWeights& out_;
  size_t used_ = 0;
};

}  // namespace

size_t CpuWeights::bytes() const {
  size_t total = matrices.bytes();
  for (const auto& v : vectors) total += v.size() * sizeof(float);
  return total;
}

Result<CpuWeights> load_cpu_weights(cpu::ThreadPool& pool, const ModelSpec& spec,
                                    const std::vector<WeightSource>& sources, const LoadOptions& options) {
  CpuWeights weights;
  CpuPacker packer(pool, options, weights);
  if (Status status = load_weights(spec, sources, options, packer, weights); !status.ok()) return status;
  if (weights.origin == Origin::packed_file) weights.rounding = options.packed->file.info().rounding;
  return weights;
}

}  // namespace edgeshift
