#include "cuda/attention_decode_kernel.cuh"

namespace edgeshift::cuda {
namespace {

size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Tickets stand in the same place for every batch: they must be zero between calls, partial sums need not.
constexpr int kTickets = 1 << 15;

}  // namespace

size_t attention_workspace_bytes(int sequences, int heads, int head_dim, int splits) {
  size_t rows = size_t(sequences) * heads * splits;
  return size_t(kTickets) * 4 + round_up(rows * 8) + round_up(rows * head_dim * 4);
}

Status decode_attention(const RopeArgs& rope, const AttentionArgs<f16>& args, int splits, void* workspace,
                        size_t out_tile_bytes, NextRead next, const Launch& on) {
  const SequenceBatch& batch = *args.batch;
  const KvLayout& kv = *args.kv;
  if (batch.t != batch.s || args.heads % kv.kv_heads != 0)
    return {Code::invalid_argument, "cuda decode_attention: one token per sequence, whole head groups"};
  if (args.heads / kv.kv_heads > kQueries || kv.block_size % kTileTokens != 0)
    return {Code::unsupported, "cuda decode_attention: at most 8 heads per group, blocks of a multiple of 16"};
  DecodeParams params{rope, args, batch, kv};
  params.splits = splits;
  params.next = next;
  params.out_tile_bytes = out_tile_bytes;
  if (splits > 1) {
    if (batch.s * kv.kv_heads > kTickets) return {Code::unsupported, "cuda decode_attention: too many sequences"};
    size_t rows = size_t(batch.s) * args.heads * splits;
    unsigned char* at = static_cast<unsigned char*>(workspace);
    params.tickets = reinterpret_cast<int*>(at);
    at += size_t(kTickets) * 4;
    params.partial_ml = reinterpret_cast<float2*>(at);
    params.partial_out = reinterpret_cast<float*>(at + round_up(rows * 8));
  }
  switch (kv.dtype) {
    case KvDtype::fp16: return launch_decode<KvDtype::fp16>(params, on);
    case KvDtype::fp8: return launch_decode<KvDtype::fp8>(params, on);
    case KvDtype::int8: return launch_decode<KvDtype::int8>(params, on);
  }
  return {Code::unsupported, "cuda decode_attention: the cache's type"};
}

}  // namespace edgeshift::cuda
