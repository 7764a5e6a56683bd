#include "model/backend.h"

#include <utility>

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

}  // namespace

Result<std::unique_ptr<PendingStep>> Model::begin(const StepBatch& batch) {
  StepResult result;
  if (Status status = step(batch, result); !status.ok()) return status;
  return std::unique_ptr<PendingStep>(std::make_unique<FinishedStep>(std::move(result)));
}

}  // namespace edgeshift
