#include "cuda/model.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "cpu/ops.h"

namespace edgeshift::cuda {
namespace {

constexpr int kLogitRows = 64;
constexpr int kMaxSplits = 16;
// What a decode kernel asks L2 for of the matrix after it (docs/cuda.md, versions).
constexpr size_t kLookahead = size_t(4) << 20;

}  // namespace

Status PinnedBuffer::allocate(size_t bytes) {
  ES_CUDA_RETURN_IF_ERROR(cudaMallocHost(&data_, std::max<size_t>(bytes, 16)));
  return {};
}

CudaModel::CudaModel(const DeviceState& device, ModelSpec spec, const LoadOptions& options, DeviceWeights weights)
    : device_(device),
      spec_(std::move(spec)),
      options_(options),
      kv_{spec_.layers, spec_.kv_heads, spec_.head_dim, options.block_size},
      logit_rows_(std::min(options.max_batch_tokens, std::max(kLogitRows, options.max_slots))),
      weights_(std::move(weights)),
      slots_(spec_, options) {}

CudaModel::~CudaModel() { cudaSetDevice(device_.on.device.index); }

Status CudaModel::prepare() {
  ES_RETURN_IF_ERROR(workspace_.allocate(spec_, device_.on.device, options_.max_batch_tokens, logit_rows_, kMaxSplits));
  return logits_.allocate(size_t(logit_rows_) * size_t(spec_.vocab) * sizeof(float));
}

size_t CudaModel::workspace_bytes() const { return workspace_.bytes() + batch_.bytes(); }

Status CudaModel::set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes) {
  if (!ropes.empty()) return {Code::unsupported, "rotary tables of a sequence's own on a CUDA device"};
  return slots_.set(slot, std::move(state), {});
}

// All index arrays behind one another in one copy.
Status CudaModel::upload(const StepBatch& batch, DeviceBatch& out) {
  words_.clear();
  std::vector<size_t> places;
  auto add = [&](const auto& values) {
    places.push_back(words_.size());
    words_.insert(words_.end(), values.begin(), values.end());
  };
  add(tokens_);
  add(batch.seq_starts);
  add(batch.first_positions);
  add(batch.block_starts);
  add(batch.blocks);
  add(batch.row_tokens);
  const size_t bytes = words_.size() * sizeof(int32_t);
  if (batch_.bytes() < bytes) ES_RETURN_IF_ERROR(batch_.allocate(bytes + bytes / 2));
  ES_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(batch_.as<void>(), words_.data(), bytes, cudaMemcpyHostToDevice, device_.on.stream));
  const int32_t* base = batch_.as<int32_t>();
  out.sequences = sequence_batch(batch);
  out.tokens = base + places[0];
  out.sequences.starts = base + places[1];
  out.sequences.first_positions = base + places[2];
  out.sequences.block_starts = base + places[3];
  out.sequences.blocks = reinterpret_cast<const uint32_t*>(base + places[4]);
  out.rows = base + places[5];
  return {};
}

Status CudaModel::forward(const Forward& pass) {
  Launch on = device_.on;
  if (pass.batch.max_count > 1) return prefill_forward(pass, on);
  on.chain = true;
  const int splits = choose_splits(spec_, on.device, pass.batch.s, pass.batch.max_context, kMaxSplits);
  return decode_forward(pass, splits, on);
}

Status CudaModel::step(const StepBatch& batch, StepResult& result) {
  const auto start = std::chrono::steady_clock::now();
  ES_RETURN_IF_ERROR(slots_.check(batch, {spec_.vocab, options_.max_slots, options_.max_batch_tokens, options_.block_size,
                                          kv_.block_bytes(), device_.arena.bytes()}));
  slots_.resolve(batch, tokens_);
  ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_.on.device.index));
  DeviceBatch uploaded;
  ES_RETURN_IF_ERROR(upload(batch, uploaded));
  Forward pass;
  pass.spec = &spec_;
  pass.weights = &weights_.weights;
  pass.workspace = &workspace_;
  pass.kv = &kv_;
  pass.arena = device_.arena.as<void>();
  pass.tokens = uploaded.tokens;
  pass.batch = uploaded.sequences;
  pass.head = false;
  pass.lookahead = kLookahead;
  ES_RETURN_IF_ERROR(forward(pass));
  ES_RETURN_IF_ERROR(sample_rows(batch, pass, uploaded.rows, result.rows));
  ES_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(device_.on.stream));
  const auto elapsed = std::chrono::steady_clock::now() - start;
  result.device_micros = std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
  return {};
}

void CudaModel::cap_logits(int rows) {
  const float cap = spec_.final_softcap;
  float* logits = logits_.as<float>();
  device_.samplers->for_ranges(int64_t(rows) * spec_.vocab, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) logits[i] = cap * std::tanh(logits[i] / cap);
  });
}

Status CudaModel::sample_rows(const StepBatch& batch, const Forward& pass, const int32_t* rows, std::vector<SampleRow>& out) {
  const int total = int(batch.row_tokens.size());
  out.assign(size_t(total), SampleRow());
  for (int begin = 0; begin < total; begin += logit_rows_) {
    const int count = std::min(logit_rows_, total - begin);
    ES_RETURN_IF_ERROR(logits_of(pass, rows + begin, count, device_.on));
    const size_t bytes = size_t(count) * size_t(spec_.vocab) * sizeof(float);
    ES_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(logits_.as<void>(), workspace_.logits.as<void>(), bytes, cudaMemcpyDeviceToHost,
                                            device_.on.stream));
    ES_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(device_.on.stream));
    if (spec_.final_softcap > 0) cap_logits(count);
    const std::vector<const SamplingState*> states = slots_.states(batch, begin, count);
    ::edgeshift::SampleArgs args{logits_.as<float>(), count, spec_.vocab, states.data(), batch.row_targets.data() + begin,
                                 batch.row_top.data() + begin, out.data() + begin};
    ES_RETURN_IF_ERROR(cpu::sample(*device_.samplers, args));
  }
  slots_.append(batch, out);
  return {};
}

}  // namespace edgeshift::cuda
