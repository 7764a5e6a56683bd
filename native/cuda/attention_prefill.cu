#include "cuda/attention_prefill_kernel.cuh"

namespace edgeshift::cuda {

Status prefill_attention(const AttentionArgs<f16>& args, const Launch& on) {
  const KvLayout& kv = *args.kv;
  if (args.batch->max_count < 1 || args.heads % kv.kv_heads != 0)
    return {Code::invalid_argument, "cuda prefill_attention: tokens and whole head groups"};
  if (kv.block_size % kTileTokens != 0)
    return {Code::unsupported, "cuda prefill_attention: block_size must be a multiple of 16"};
  const PrefillParams params{args, *args.batch, kv};
  switch (kv.dtype) {
    case KvDtype::fp16: return launch_prefill<KvDtype::fp16>(params, on);
    case KvDtype::fp8: return launch_prefill<KvDtype::fp8>(params, on);
    case KvDtype::int8: return launch_prefill<KvDtype::int8>(params, on);
  }
  return {Code::unsupported, "cuda prefill_attention: the cache's type"};
}

}  // namespace edgeshift::cuda
