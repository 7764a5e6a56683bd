#include "cuda/wide_kernel.cuh"

namespace edgeshift::cuda {

Status wide_fp16(const WideParams& params, const Launch& on) {
  using Large = WideShape<Precision::fp16, false, 2, 4, 3>;
  using Small = WideShape<Precision::fp16, false, 2, 2, 3, 2>;
  // Two small blocks per multiprocessor hide each other's epilogue; the large one reads less, and adds in fewer pieces.
  const size_t room = size_t(on.device.shared_bytes);
  const bool two = room >= 2 * Small::shared && params.epilogue != Epilogue::add;
  return room < Large::shared || two ? launch_wide<Small>(params, on) : launch_wide<Large>(params, on);
}

}  // namespace edgeshift::cuda
