#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/pointwise_kernels.h"

namespace edgeshift::cpu {

Status gated_activation(ThreadPool& pool, const GatedActivationArgs<float>& args) {
  GateKernel kernel = ES_KERNELS(pool.isa(), pointwise).gate;
  int64_t chunk = std::max<int64_t>(1, 8192 / args.ffn);
  pool.for_ranges(args.t, chunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const float* gate = args.gate_up + i * 2 * args.ffn;
      kernel(gate, gate + args.ffn, args.out + i * args.ffn, args.ffn, args.activation);
    }
  });
  return {};
}

}  // namespace edgeshift::cpu
