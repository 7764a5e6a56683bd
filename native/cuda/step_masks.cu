#include "cuda/step_masks.h"

#include <cstring>

#include "cuda/small_copy.h"
#include "ops/sample.h"

namespace edgeshift::cuda {

StepMasks::~StepMasks() {
  if (stream_) cudaStreamDestroy(stream_);
  if (copied_) cudaEventDestroy(copied_);
  if (read_) cudaEventDestroy(read_);
}

Status StepMasks::open(int masks, int vocab) {
  int least = 0, greatest = 0;
  ES_RETURN_IF_ERROR(memory_.allocate(size_t(masks) * size_t(mask_words(vocab)) * sizeof(uint32_t)));
  // The copy's few blocks go before those of the forward pass that it runs beside.
  ES_CUDA_RETURN_IF_ERROR(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  ES_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
  ES_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming));
  return to_status(cudaEventCreateWithFlags(&read_, cudaEventDisableTiming), "an event");
}

Status StepMasks::upload(std::span<const uint32_t> masks, Flight& flight, const Launch& on) {
  Launch beside = on;
  beside.stream = stream_;
  std::memcpy(flight.masks.as<void>(), masks.data(), masks.size_bytes());
  ES_CUDA_RETURN_IF_ERROR(cudaStreamWaitEvent(stream_, read_));
  ES_RETURN_IF_ERROR(small_copy(memory_.as<void>(), flight.masks.as<void>(), masks.size_bytes(), beside));
  ES_CUDA_RETURN_IF_ERROR(cudaEventRecord(copied_, stream_));
  return to_status(cudaStreamWaitEvent(on.stream, copied_), "a step's masks");
}

Status StepMasks::release(const Launch& on) { return to_status(cudaEventRecord(read_, on.stream), "a step's masks"); }

}  // namespace edgeshift::cuda
