#include "cuda/input_tiles.h"

#include "cuda/device.cuh"

namespace edgeshift::cuda {
namespace {

// One thread writes a piece of 8 inputs. Grid (tiles, tokens / 32), 256 threads: 8 pieces of 32 tokens.
template <bool kOrdered>
__global__ void tile_inputs_kernel(const unsigned short* x, const int32_t* order, int t, int k, size_t tile_bytes, unsigned char* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int token = blockIdx.y * 32 + threadIdx.x / 8, piece = threadIdx.x % 8;
  if (token >= t) return;
  const int input = blockIdx.x * kTileInputs + piece / 4 * 32 + piece / 2 % 2 * 4 + piece % 2 * 2;
  const unsigned short* row = x + size_t(token) * k;
  uint4 bits;
  uint32_t* word = &bits.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = input + i * 8;  // k is even: both or none
    word[i] = 0;
    if (at >= k) continue;
    if constexpr (kOrdered) word[i] = __ldcg(row + order[at]) | uint32_t(__ldcg(row + order[at + 1])) << 16;
    else word[i] = *reinterpret_cast<const uint32_t*>(row + at);
  }
  *reinterpret_cast<uint4*>(out + blockIdx.x * tile_bytes + size_t(token) * 128 + (piece ^ token % 8) * 16) = bits;
}

}  // namespace

Status tile_inputs(const f16* x, const int32_t* order, int t, int k, int tiles, void* out, const Launch& on) {
  if (t < 1 || k % 2 != 0) return {Code::unsupported, "cuda tile_inputs: tokens, and an even number of inputs"};
  return launch(on, order ? tile_inputs_kernel<true> : tile_inputs_kernel<false>, dim3(tiles, (t + 31) / 32), 256, 0,
                reinterpret_cast<const unsigned short*>(x), order, t, k, padded_tokens(t) * 128, static_cast<unsigned char*>(out));
}

}  // namespace edgeshift::cuda
