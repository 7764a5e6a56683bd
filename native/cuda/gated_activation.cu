#include "cuda/gated_activation.h"

#include "cuda/device.cuh"

namespace edgeshift::cuda {
namespace {

__global__ void gated_activation_kernel(GatedActivationArgs<f16> args) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  int j = blockIdx.y * blockDim.x + threadIdx.x;
  if (j >= args.ffn) return;
  const f16* row = args.gate_up + size_t(blockIdx.x) * 2 * args.ffn;
  const float gate = activate(args.activation, to_float(row[j]));
  args.out[size_t(blockIdx.x) * args.ffn + j] = to_f16(gate * to_float(row[args.ffn + j]));
}

}  // namespace

Status gated_activation(const GatedActivationArgs<f16>& args, const Launch& on) {
  if (args.t < 1) return {Code::invalid_argument, "cuda gated_activation: no tokens"};
  return launch(on, gated_activation_kernel, dim3(args.t, (args.ffn + 255) / 256), 256, 0, args);
}

}  // namespace edgeshift::cuda
