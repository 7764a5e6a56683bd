// Models of a named shape with random weights: speed does not depend on the values.
#pragma once

#include <string>
#include <vector>

#include "cuda/buffer.h"
#include "cuda/transformer.h"

namespace edgeshift::bench {

struct Shape {
  const char* name;
  int layers, hidden, ffn, heads, kv_heads, head_dim, vocab;
};

// Published configurations.
inline constexpr Shape kShapes[] = {
    {"llama2-7b", 32, 4096, 11008, 32, 32, 128, 32000},
    {"llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256},
    {"qwen2.5-0.5b", 24, 896, 4864, 14, 2, 64, 151936},
    {"smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152},
};

ModelSpec spec_of(const Shape& shape);

// Weights and the memory they live in.
struct RandomModel {
  ModelSpec spec;
  cuda::TransformerWeights weights;
  std::vector<cuda::Buffer> memory;
  // Bytes that a decode step reads: every matrix once, of the embedding only a row.
  size_t read_bytes = 0;
};

// Layers and head at `precision` (fp16 embedding), minimums present at int4.
Status random_model(const Shape& shape, Precision precision, int group, RandomModel& out);

}  // namespace edgeshift::bench
