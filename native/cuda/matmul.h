// Matrix products with packed weights, fused with what stands before and after them in a layer.
#pragma once

#include "cuda/launch.h"
#include "cuda/next_read.h"
#include "cuda/strip_layout.h"
#include "ops/gated_activation.h"
#include "ops/matmul.h"

namespace edgeshift::cuda {

// Counters at the start of the scratch of slice_matmul, tiled_matmul and wide_matmul.
inline constexpr int kMatmulCounters = 1 << 17;

// What is done with a product y[t, n].
enum class Epilogue {
  store,   // out f16 [t, n] = y + bias, the nearest finite
  add,     // out float [t, n] += y + bias: the residual stream
  gate,    // weight in RowOrder::gate_up: out f16 [t, n / 2] = activation(gate) * up
  logits,  // out float [t, n] = y + bias: also what a norm takes that may exceed f16
};

// Parts of a product that together with the residual stream [t, n] are its sum: float [count, t, n], in the order of k.
struct OutputParts {
  const float* data = nullptr;
  int count = 0;
};

// y = x * W^T. x is f16 [t, k]; or, when `norm` is set (gemv only), the fp32 residual [t, k], normalised on the way in:
// x / sqrt(mean(x^2) + eps) * norm. The inputs stand in the weight's order: of an act-order weight the caller gathers them
// and clears `permutation` (Pass::product in transformer.cu); with it set the kernels return invalid_argument.
struct FusedMatmulArgs {
  const PackedMatrix* weight = nullptr;
  const void* x = nullptr;
  const float* norm = nullptr;  // [k] or null
  float eps = 0;
  const float* bias = nullptr;  // [n] or null; of a weight in RowOrder::gate_up in the same order (gate_up_bias())
  void* out = nullptr;
  Epilogue epilogue = Epilogue::store;
  Activation activation = Activation::silu;
  int t = 0;
  NextRead next;  // what the kernels after this one will read first
  // stream_matmul only: bytes from tile to tile of x, and of the outputs of Epilogue::gate (input_tiles.h); 0: rows.
  size_t x_tile_bytes = 0, out_tile_bytes = 0;
};

// Whether gemv takes a product of t tokens and k inputs on this device: past it, the tiled kernel is faster or the
// activations do not fit in shared memory.
bool gemv_fits(const PackedMatrix& weight, int t, const DeviceTraits& device);

// Up to 8 tokens, at memory bandwidth. invalid_argument when t is out of range; unsupported when gemv_fits does not hold.
Status gemv(const FusedMatmulArgs& args, const Launch& on);

// Whether slice_matmul takes a product of t tokens on this device: f16 weights, 9 to 16 tokens.
bool slices_fit(const PackedMatrix& weight, int t, const DeviceTraits& device);

// 9 to 16 tokens at memory bandwidth. `norm` must be null; unsupported when slices_fit does not hold.
Status slice_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on);

// Scratch of slice_matmul and tiled_matmul, zeroed once by the owner; every call leaves its counters zero.
size_t matmul_workspace_bytes(const DeviceTraits& device);

// Any number of tokens, tensor-core tiles with an asynchronous pipeline. `norm` must be null.
Status tiled_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on);

// Tokens of stream_matmul: fewer go through gemv faster (docs/cuda.md), more than these it does not take.
inline constexpr int kLeastStreamTokens = 5, kMostStreamTokens = 64;

// Whether stream_matmul takes a product of t tokens on this device, and is the faster one there: compute capability 9.0, a decode
// batch, whole tiles of inputs.
bool stream_fits(const PackedMatrix& weight, int t, const DeviceTraits& device);

// Up to 64 tokens with `x` in tiles; `norm` must be null.
Status stream_matmul(const FusedMatmulArgs& args, void* workspace, const Launch& on);

// The same for Epilogue::add without a bias, where a norm follows: several blocks share most outputs, each with a part of k, and
// the norm adds their parts up (cuda/rms_norm.h) faster than the last of those blocks would. `parts` lie in the workspace until
// its next use; none where it was as fast to add them at once. The sums are the same to the bit either way.
Status stream_matmul_parts(const FusedMatmulArgs& args, void* workspace, OutputParts& parts, const Launch& on);

// Whether wide_matmul takes a product of t tokens on this device: from there on it is the faster one.
bool wide_fits(const PackedMatrix& weight, int t, const DeviceTraits& device);

// Scratch of wide_matmul: `workspace` as for tiled_matmul, and room for quantized weights as f16, or none.
struct WideScratch {
  void* workspace = nullptr;
  void* widened = nullptr;
  size_t widened_bytes = 0;
};

// Bytes of `widened` that let wide_matmul turn this matrix at once, at most 256 MB; 0 where it never does.
size_t widened_bytes(const PackedMatrix& weight, const DeviceTraits& device);

// Many tokens at the rate of the tensor cores. `x` holds the inputs in tiles (input_tiles.h: tile_inputs), `norm` must be null.
// Codes are turned into f16 within the products, or before them where that is faster and there is room.
Status wide_matmul(const FusedMatmulArgs& args, const WideScratch& scratch, const Launch& on);

// The plain op: picks gemv or tiled_matmul. Rows in plain order.
Status matmul(const MatmulArgs<f16>& args, void* workspace, const Launch& on);

}  // namespace edgeshift::cuda
