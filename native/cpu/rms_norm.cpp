#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "cpu/pointwise_kernels.h"

namespace edgeshift::cpu {

Status rms_norm(ThreadPool& pool, const RmsNormArgs<float>& args) {
  RmsNormKernel kernel = ES_KERNELS(pool.isa(), pointwise).rms_norm;
  // A row is a fraction of a microsecond: share only several.
  int64_t chunk = std::max<int64_t>(1, 16384 / args.hidden);
  pool.for_ranges(args.t, chunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t at = i * args.hidden;
      kernel(args.residual + at, args.delta ? args.delta + at : nullptr, args.weight, args.out + at, args.hidden, args.eps);
    }
  });
  return {};
}

}  // namespace edgeshift::cpu
