// The masks that a step's rows obey, on their way to the device while the step's forward pass runs there.
#pragma once

#include <span>

#include "cuda/buffer.h"
#include "cuda/flight.h"
#include "cuda/launch.h"

namespace edgeshift::cuda {

// The device's memory for one step's masks, with a stream of its own that fills it.
class StepMasks {
 public:
  StepMasks() = default;
  StepMasks(const StepMasks&) = delete;
  StepMasks& operator=(const StepMasks&) = delete;
  ~StepMasks();

  // Takes room for `masks` masks over a vocabulary, and the stream.
  Status open(int masks, int vocab);

  // Takes page-locked memory for the most that upload() may be given.
  Status reserve(Flight& flight) const { return flight.masks.reserve(memory_.bytes()); }

  // Starts the copy of a step's masks, for which the flight has room; what is enqueued on `on` from here on finds them.
  Status upload(std::span<const uint32_t> masks, Flight& flight, const Launch& on);

  // To be called when all that reads them is enqueued on `on`: the next upload comes behind it.
  Status release(const Launch& on);

  const uint32_t* data() const { return memory_.as<uint32_t>(); }
  size_t bytes() const { return memory_.bytes(); }
  cudaStream_t stream() const { return stream_; }

 private:
  Buffer memory_;  // uint32 [masks, words]
  cudaStream_t stream_ = nullptr;
  cudaEvent_t copied_ = nullptr, read_ = nullptr;
};

}  // namespace edgeshift::cuda
