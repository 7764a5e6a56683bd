// Implementation of random_model.h, included by the programs that need it, one source file each.
#pragma once

#include <cmath>

#include "cuda/device.cuh"
#include "cuda/pack.h"
#include "random_model.h"

namespace edgeshift::bench {

__device__ inline uint32_t scramble(uint64_t i) {
  uint32_t h = uint32_t(i) * 0x9e3779b1u + uint32_t(i >> 32);
  h = (h ^ h >> 15) * 0x85ebca6bu;
  return (h ^ h >> 13) * 0xc2b2ae35u ^ h >> 16;
}

__global__ void fill_bytes(uint32_t* out, size_t words, uint32_t seed) {
  size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  if (i < words) out[i] = scramble(i + (uint64_t(seed) << 33));
}

// base * (0.75 .. 1.25) * sign when signed
__global__ void fill_halves(f16* out, size_t count, float base, bool both_signs, uint32_t seed) {
  size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  uint32_t h = scramble(i + (uint64_t(seed) << 33));
  float v = base * (0.75f + (h & 0xffff) / 131072.0f);
  out[i] = cuda::to_f16(both_signs && h >> 31 ? -v : v);
}

__global__ void fill_floats(float* out, int count, float value) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = value;
}

inline unsigned blocks_for(size_t count) { return unsigned((count + 255) / 256); }

inline ModelSpec spec_of(const Shape& shape) {
  ModelSpec spec;
  spec.vocab = shape.vocab;
  spec.hidden = shape.hidden;
  spec.layers = shape.layers;
  spec.heads = shape.heads;
  spec.kv_heads = shape.kv_heads;
  spec.head_dim = shape.head_dim;
  spec.ffn = shape.ffn;
  spec.norm_eps = 1e-5f;
  spec.ropes.resize(1);
  spec.ropes.resize(1);
  spec.layer_ropes.assign(size_t(shape.layers), 0);
  for (int i = 0; i < shape.head_dim / 2; ++i)
    spec.ropes[0].inv_freq.push_back(float(std::pow(10000.0, -2.0 * i / shape.head_dim)));
  spec.attention_scale = float(1 / std::sqrt(double(shape.head_dim)));
  return spec;
}

// Makes and packs one matrix; `scratch` holds the canonical form, big enough for any.
class MatrixMaker {
 public:
  MatrixMaker(RandomModel& model, size_t scratch_elements) : model_(model), elements_(scratch_elements) {}

  Status make(Precision precision, int n, int k, int group, cuda::RowOrder order, PackedMatrix& out) {
    if (values_.bytes() == 0) {
      ES_RETURN_IF_ERROR(values_.allocate(elements_ * 2));
      ES_RETURN_IF_ERROR(scales_.allocate(elements_ / 16));
      ES_RETURN_IF_ERROR(minimums_.allocate(elements_ / 16));
    }
    ++seed_;
    CanonicalMatrix source;
    source.precision = precision;
    source.n = n;
    source.k = k;
    size_t count = size_t(n) * k;
    float size = 1 / std::sqrt(float(k));
    if (precision == Precision::fp16) {
      fill_halves<<<blocks_for(count), 256>>>(values_.as<f16>(), count, size, true, seed_);
      source.values = values_.as<f16>();
    } else {
      bool four = precision == Precision::int4;
      source.group = group;
      fill_bytes<<<blocks_for(count / 4), 256>>>(values_.as<uint32_t>(), four ? count / 8 : count / 4, seed_);
      source.codes = values_.as<void>();
      float step = size * (four ? 1 / 4.6f : 1 / 74.0f);
      fill_halves<<<blocks_for(count / group), 256>>>(scales_.as<f16>(), count / group, step, false, seed_);
      source.scales = scales_.as<f16>();
      if (four) {
        fill_halves<<<blocks_for(count / group), 256>>>(minimums_.as<f16>(), count / group, -7.5f * step, false, seed_);
        source.minimums = minimums_.as<f16>();
      }
    }
    cuda::Buffer data;
    ES_RETURN_IF_ERROR(data.allocate(cuda::packed_bytes(source)));
    ES_RETURN_IF_ERROR(cuda::pack(source, order, data.as<void>(), out, nullptr));
    model_.memory.push_back(std::move(data));
    return {};
  }

  // A vector of one value.
  Status vector(int count, float value, const float*& out) {
    cuda::Buffer data;
    ES_RETURN_IF_ERROR(data.allocate(size_t(count) * 4));
    fill_floats<<<blocks_for(count), 256>>>(data.as<float>(), count, value);
    out = data.as<float>();
    model_.memory.push_back(std::move(data));
    return {};
  }

 private:
  RandomModel& model_;
  size_t elements_;
  uint32_t seed_ = 0;
  cuda::Buffer values_, scales_, minimums_;
};

inline Status random_model(const Shape& shape, Precision precision, int group, RandomModel& out) {
  out.spec = spec_of(shape);
  const ModelSpec& spec = out.spec;
  cuda::TransformerWeights& w = out.weights;
  int heads = spec.heads * spec.head_dim, qkv = heads + 2 * spec.kv_heads * spec.head_dim;
  MatrixMaker maker(out, size_t(std::max(spec.vocab, 2 * spec.ffn)) * spec.hidden);
  auto plain = cuda::RowOrder::plain;
  ES_RETURN_IF_ERROR(maker.make(Precision::fp16, spec.vocab, spec.hidden, 0, plain, w.embed));
  ES_RETURN_IF_ERROR(maker.vector(spec.hidden, 1, w.final_norm));
  out.read_bytes = size_t(spec.hidden) * 2;
  for (int i = 0; i < spec.layers; ++i) {
    cuda::LayerWeights layer;
    ES_RETURN_IF_ERROR(maker.make(precision, qkv, spec.hidden, group, plain, layer.qkv));
    ES_RETURN_IF_ERROR(maker.make(precision, spec.hidden, heads, group, plain, layer.o));
    ES_RETURN_IF_ERROR(maker.make(precision, 2 * spec.ffn, spec.hidden, group, cuda::RowOrder::gate_up, layer.gate_up));
    ES_RETURN_IF_ERROR(maker.make(precision, spec.hidden, spec.ffn, group, plain, layer.down));
    ES_RETURN_IF_ERROR(maker.vector(spec.hidden, 1, layer.attention_norm));
    ES_RETURN_IF_ERROR(maker.vector(spec.hidden, 1, layer.ffn_norm));
    for (const PackedMatrix* m : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) out.read_bytes += m->bytes;
    w.layers.push_back(layer);
  }
  ES_RETURN_IF_ERROR(maker.make(precision, spec.vocab, spec.hidden, group, plain, w.head));
  out.read_bytes += w.head.bytes;
  cuda::Buffer freq;
  ES_RETURN_IF_ERROR(freq.allocate(spec.ropes[0].inv_freq.size() * 4));
  ES_CUDA_RETURN_IF_ERROR(cudaMemcpy(freq.as<void>(), spec.ropes[0].inv_freq.data(), freq.bytes(), cudaMemcpyHostToDevice));
  w.inv_freq = {freq.as<float>()};
  out.memory.push_back(std::move(freq));
  ES_CUDA_RETURN_IF_ERROR(cudaDeviceSynchronize());
  return {};
}

}  // namespace edgeshift::bench
