#include "model/backend.h"

#include <algorithm>
#include <utility>

#include "ops/kv_layout.h"

namespace edgeshift {

namespace {

class FinishedStep final : public PendingStep {
 public:
  explicit FinishedStep(StepResult result) : result_(std::move(result)) {}
  bool ready() const override { return true; }
  Status wait(StepResult& result) override {
    result = std::move(result_);
    return Status();
  }

 private:
  StepResult result_;
};

bool inside(const std::vector<uint32_t>& blocks, size_t block_bytes, size_t bytes) {
  return std::ranges::all_of(blocks, [&](uint32_t block) {
    const size_t offset = size_t(block) * kKvUnitBytes;
    return offset <= bytes && block_bytes <= bytes - offset;
  });
}

}  // namespace

int mask_count(const StepBatch& batch) {
  int count = 0;
  for (int32_t mask : batch.row_masks) count = std::max(count, mask + 1);
  return count;
}

Status PendingStep::give_masks(std::span<const uint32_t>) { return {Code::invalid_argument, "the step takes no masks"}; }

std::unique_ptr<PendingStep> finished_step(StepResult result) { return std::make_unique<FinishedStep>(std::move(result)); }

Status check_copy(const KvCopy& copy, size_t arena_bytes, size_t swap_bytes) {
  if (copy.device_blocks.size() != copy.host_blocks.size()) return {Code::invalid_argument, "a copy of blocks to fewer or more blocks"};
  if (!inside(copy.device_blocks, copy.block_bytes, arena_bytes)) return {Code::invalid_argument, "a block outside of the arena"};
  if (!inside(copy.host_blocks, copy.block_bytes, swap_bytes)) return {Code::invalid_argument, "a block outside of the swap memory"};
  return {};
}

Result<std::unique_ptr<PendingStep>> Model::begin(const StepBatch& batch) {
  StepResult result;
  if (Status status = step(batch, result); !status.ok()) return status;
  return finished_step(std::move(result));
}

}  // namespace edgeshift
