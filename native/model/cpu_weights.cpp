#include "model/cpu_weights.h"

#include "cpu/pack.h"
#include "model/head_padding.h"

namespace edgeshift {

namespace {

class CpuPacker final : public WeightPacker {
 public:
  CpuPacker(cpu::ThreadPool& pool, const cpu::DoneReading& done, cpu::Buffer& memory)
      : pool_(pool), done_(done), memory_(memory) {}

  int head_dim(int head_dim) const override { return padded_head_dim(head_dim); }
  bool one_matrix() const override { return false; }

  Status reserve(std::span<const PackJob> jobs) override {
    size_t bytes = 0;
    for (const PackJob& job : jobs) bytes += bytes_of(job);
    Result<cpu::Buffer> memory = cpu::Buffer::allocate(bytes);
    if (!memory.ok()) return memory.status();
    memory_ = std::move(memory.value());
    return Status();
  }

  Status pack(const PackJob& job, RoundingSums& rounding) override {
    char* place = static_cast<char*>(memory_.data()) + used_;
    used_ += bytes_of(job);
    return cpu::pack(pool_, job.parts, job.form, place, *job.out, rounding, done_);
  }

 private:
  static size_t bytes_of(const PackJob& job) {
    return cpu::packed_bytes(job.form, job.rows(), job.k(), !job.order().empty());
  }

  cpu::ThreadPool& pool_;
  const cpu::DoneReading& done_;
  cpu::Buffer& memory_;
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
  CpuPacker packer(pool, options.done_reading, weights.matrices);
  if (Status status = load_weights(spec, sources, options.precision, packer, weights); !status.ok()) return status;
  return weights;
}

}  // namespace edgeshift
