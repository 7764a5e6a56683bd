// Attention alone, by the cache's type: bytes of keys and values per second in decode, time in prefill.
//   cuda_attention_bench [heads=32] [kv_heads=32] [head_dim=128] [sequences=64] [context=576] [prompt=2048]
//                        [types=3: how many of fp16, fp8, int8]
// The cache holds random keys and values of 32 layers, so that no layer finds its own in L2.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/attention.h"
#include "cuda/buffer.h"
#include "cuda/device.cuh"

using namespace edgeshift;

namespace {

constexpr int kLayers = 32, kRepeat = 5, kBlock = 16;

void require(const Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.message().c_str());
  std::exit(1);
}

__global__ void fill_random(f16* out, size_t count, uint32_t seed) {
  const size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  uint32_t h = (uint32_t(i) ^ seed) * 0x9e3779b1u;
  h = (h ^ h >> 15) * 0x85ebca6bu;
  out[i] = cuda::to_f16(float(int(h >> 16 & 0xffff) - 32768) / 32768.0f);
}

template <class T>
cuda::Buffer upload(const std::vector<T>& host) {
  cuda::Buffer buffer;
  require(buffer.allocate(host.size() * sizeof(T)), "upload");
  require(cuda::to_status(cudaMemcpy(buffer.as<void>(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "upload"), "upload");
  return buffer;
}

// `s` sequences with `count` new tokens each from `first` on.
struct Batch {
  cuda::Buffer starts, first_positions, block_starts, blocks;
  SequenceBatch batch;

  Batch(const KvLayout& kv, int s, int first, int count, int room) {
    std::vector<int32_t> start, at, table_start;
    std::vector<uint32_t> table;
    const int per = (room + kBlock - 1) / kBlock;
    for (int i = 0; i <= s; ++i) start.push_back(i * count), table_start.push_back(i * per), at.push_back(first);
    for (int i = 0; i < s * per; ++i) table.push_back(uint32_t(size_t(i) * 7919 % (size_t(s) * per) * (kv.block_bytes() / kKvUnitBytes)));
    starts = upload(start), first_positions = upload(at), block_starts = upload(table_start), blocks = upload(table);
    batch = {s, s * count, starts.as<int32_t>(), first_positions.as<int32_t>(), block_starts.as<int32_t>(), blocks.as<uint32_t>(),
             count, first + count};
  }
};

// Median milliseconds of `enqueue`.
template <class F>
double milliseconds(cudaStream_t stream, F enqueue) {
  cudaEvent_t begin, end;
  require(cuda::to_status(cudaEventCreate(&begin), "event"), "event");
  require(cuda::to_status(cudaEventCreate(&end), "event"), "event");
  std::vector<float> times;
  for (int i = 0; i <= kRepeat; ++i) {
    float ms = 0;
    cudaEventRecord(begin, stream);
    enqueue();
    cudaEventRecord(end, stream);
    require(cuda::to_status(cudaEventSynchronize(end), "kernel"), "run");
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[kRepeat / 2];
}

struct Sizes {
  int heads, kv_heads, head_dim, sequences, context, prompt;
};

void run(const Sizes& z, KvDtype dtype, const cuda::Launch& on) {
  const KvLayout kv{kLayers, z.kv_heads, z.head_dim, kBlock, dtype};
  const int room = std::max(z.context + 1, (z.prompt + z.sequences - 1) / z.sequences);
  const int per = (room + kBlock - 1) / kBlock, width = (z.heads + 2 * z.kv_heads) * z.head_dim;
  const size_t tokens = std::max(size_t(z.sequences) * z.context, size_t(z.prompt));
  cuda::Buffer arena, qkv, q, out, workspace, freq;
  require(arena.allocate(kv.block_bytes() * per * z.sequences), "arena");
  require(qkv.allocate(tokens * width * 2), "qkv");
  require(q.allocate(tokens * z.heads * z.head_dim * 2), "q");
  require(out.allocate(q.bytes()), "out");
  require(workspace.allocate(cuda::attention_workspace_bytes(z.sequences, z.heads, z.head_dim, 1)), "workspace");
  fill_random<<<unsigned((tokens * width + 255) / 256), 256, 0, on.stream>>>(qkv.as<f16>(), tokens * width, 7);
  std::vector<float> inv_freq;
  for (int i = 0; i < z.head_dim / 2; ++i) inv_freq.push_back(float(std::pow(10000.0, -2.0 * i / z.head_dim)));
  freq = upload(inv_freq);
  RopeKvArgs<f16> rope;
  rope.qkv = qkv.as<f16>();
  rope.q = q.as<f16>();
  rope.kv = &kv;
  rope.arena = arena.as<void>();
  rope.heads = z.heads;
  rope.inv_freq = freq.as<float>();
  rope.rotary_dim = z.head_dim;
  AttentionArgs<f16> args;
  args.q = q.as<f16>();
  args.out = out.as<f16>();
  args.kv = &kv;
  args.arena = arena.as<void>();
  args.heads = z.heads;
  args.scale = float(1 / std::sqrt(double(z.head_dim)));
  auto layers = [&](const Batch& b, auto one) {
    rope.batch = args.batch = &b.batch;
    for (int layer = 0; layer < kLayers; ++layer) {
      rope.layer = args.layer = layer;
      one();
    }
  };
  const Batch fill(kv, z.sequences, 0, z.context, room), step(kv, z.sequences, z.context, 1, room);
  const double write = milliseconds(on.stream, [&] { layers(fill, [&] { require(cuda::rope_kv(rope, on), "rope_kv"); }); });
  const double decode = milliseconds(on.stream, [&] {
    layers(step, [&] { require(cuda::decode_attention(rope, args, 1, workspace.as<void>(), 0, {}, on), "decode"); });
  });
  // One sequence that owns all blocks.
  const Batch prompt(kv, 1, 0, z.prompt, per * kBlock * z.sequences);
  layers(prompt, [&] { require(cuda::rope_kv(rope, on), "rope_kv"); });
  const double prefill = milliseconds(on.stream, [&] { layers(prompt, [&] { require(cuda::prefill_attention(args, on), "prefill"); }); });
  const double bytes = double(z.sequences) * z.context * z.kv_heads * 2 * (z.head_dim * kv.element_bytes() + (kv.scaled() ? 2 : 0));
  const char* names[] = {"fp16", "fp8", "int8"};
  std::printf("| %-4s | %d/%d x %d | decode %d x %d: %.1f us a layer, %.0f GB/s | prefill %d: %.1f us a layer | write %.2f ns a token and layer |\n",
              names[int(dtype)], z.heads, z.kv_heads, z.head_dim, z.sequences, z.context, decode / kLayers * 1e3,
              bytes / (decode / kLayers * 1e-3) * 1e-9, z.prompt, prefill / kLayers * 1e3, write / kLayers / z.sequences / z.context * 1e6);
}

}  // namespace

int main(int argc, char** argv) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return 77;
  auto argument = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  const Sizes sizes{argument(1, 32), argument(2, 32), argument(3, 128), argument(4, 64), argument(5, 576), argument(6, 2048)};
  cuda::Launch on;
  auto traits = cuda::device_traits(0);
  require(traits.status(), "device");
  on.device = traits.value();
  require(cuda::to_status(cudaStreamCreate(&on.stream), "stream"), "stream");
  for (int type = 0; type < argument(7, 3); ++type) run(sizes, KvDtype(type), on);
  return 0;
}
