#include "cuda/wide_kernel.cuh"

namespace edgeshift::cuda {

Status wide_fp16(const WideParams& params, const Launch& on) {
  using Large = WideShape<Precision::fp16, false, 2, 4, 3>;
  using Small = WideShape<Precision::fp16, false, 2, 2, 3>;
  return size_t(on.device.shared_bytes) >= Large::shared ? launch_wide<Large>(params, on) : launch_wide<Small>(params, on);
}

}  // namespace edgeshift::cuda
