#include "model/cpu_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/text.h"
#include "cpu/ops.h"

namespace edgeshift {

namespace {

// The pool has the memory until the end of the scope, however that is left.
class Loan {
 public:
  Loan(cpu::ThreadPool& pool, std::span<std::byte> memory) : pool_(pool) { pool_.lend(memory); }
  ~Loan() { pool_.lend({}); }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;

 private:
  cpu::ThreadPool& pool_;
};

// Adds the time of its scope.
class Stopwatch {
 public:
  explicit Stopwatch(int64_t& micros) : micros_(micros) {}
  ~Stopwatch() {
    const auto elapsed = std::chrono::steady_clock::now() - start_;
    micros_ += std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  int64_t& micros_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

// A step between its forward pass and its sampling, which waits for the masks.
class CpuModel::MaskedStep final : public PendingStep {
 public:
  MaskedStep(CpuModel& model, const StepBatch& batch, StepResult result)
      : model_(model), computed_(model.computed_), batch_(batch), result_(std::move(result)) {}

  bool ready() const override { return given_; }

  Status give_masks(std::span<const uint32_t> masks) override {
    if (std::exchange(given_, true)) return PendingStep::give_masks(masks);
    return status_ = sample(masks);
  }

  Status wait(StepResult& result) override {
    if (status_.ok()) result = std::move(result_);
    return status_;
  }

 private:
  Status sample(std::span<const uint32_t> masks) {
    if (model_.computed_ != computed_) return {Code::invalid_argument, "another step was begun before the masks came"};
    ES_RETURN_IF_ERROR(check_masks(batch_, model_.spec_.vocab, masks.size()));
    return model_.choose(batch_, masks, result_);
  }

  CpuModel& model_;
  const uint64_t computed_;
  const StepBatch batch_;
  StepResult result_;
  bool given_ = false;
  Status status_ = {Code::invalid_argument, "the step's masks never came"};
};

CpuModel::CpuModel(cpu::ThreadPool& pool, KvArena arena, ModelSpec spec, const LoadOptions& options,
                   CpuWeights weights, CpuWorkspace workspace)
    : pool_(pool),
      arena_(arena),
      spec_(std::move(spec)),
      options_(options),
      weights_(std::move(weights)),
      workspace_(std::move(workspace)),
      kv_{spec_.layers, spec_.kv_heads, spec_.head_dim, options.block_size, options.kv_dtype},
      slots_(spec_, options) {
  tokens_.reserve(size_t(options.max_batch_tokens));
}

Status CpuModel::set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes) {
  return slots_.set(slot, std::move(state), std::move(ropes));
}

Result<std::span<const uint8_t>> CpuModel::packed_piece(size_t offset, size_t bytes) {
  return std::span<const uint8_t>(static_cast<const uint8_t*>(weights_.matrices.data()) + offset, bytes);
}

Status CpuModel::step(const StepBatch& batch, StepResult& result) {
  if (mask_count(batch) > 0) return {Code::invalid_argument, "a step's masks follow its begin()"};
  result.device_micros = 0;
  ES_RETURN_IF_ERROR(compute(batch, result));
  return choose(batch, {}, result);
}

Result<std::unique_ptr<PendingStep>> CpuModel::begin(const StepBatch& batch) {
  if (mask_count(batch) == 0) return Model::begin(batch);
  StepResult result;
  if (Status status = compute(batch, result); !status.ok()) return status;
  return std::unique_ptr<PendingStep>(std::make_unique<MaskedStep>(*this, batch, std::move(result)));
}

Status CpuModel::compute(const StepBatch& batch, StepResult& result) {
  const Stopwatch time(result.device_micros);
  ES_RETURN_IF_ERROR(slots_.check(batch, {spec_.vocab, options_.max_slots, options_.max_batch_tokens, options_.block_size,
                                          kv_.block_bytes(), arena_.bytes}));
  ++computed_;
  slots_.resolve(batch, tokens_);
  const Loan scratch(pool_, workspace_.scratch);
  return forward(batch);
}

Status CpuModel::choose(const StepBatch& batch, std::span<const uint32_t> masks, StepResult& result) {
  const Stopwatch time(result.device_micros);
  const Loan scratch(pool_, workspace_.scratch);
  return sample_rows(batch, masks, result.rows);
}

Status CpuModel::rope_tables(const StepBatch& batch, const SequenceBatch& sequences) {
  float* cos_sin = workspace_.cos_sin;
  for (size_t r = 0; r < spec_.ropes.size(); ++r) {
    sequence_ropes_.clear();
    for (int32_t slot : batch.slots) {
      const std::vector<RopeTable>& own = slots_[slot].ropes;
      const RopeTable& table = own.empty() ? spec_.ropes[r] : own[r];
      sequence_ropes_.push_back({table.inv_freq.data(), table.scale});
    }
    const int rotary = 2 * int(spec_.ropes[r].inv_freq.size());
    ES_RETURN_IF_ERROR(cpu::rope_table(pool_, sequences, sequence_ropes_.data(), rotary, cos_sin));
    cos_sin += int64_t(sequences.t) * rotary;
  }
  return Status();
}

// Leaves the residual stream without the last layer's delta: the final norm adds it.
Status CpuModel::forward(const StepBatch& step) {
  const SequenceBatch batch = sequence_batch(step);
  const CpuWorkspace& w = workspace_;
  ES_RETURN_IF_ERROR(cpu::embed(pool_, {tokens_.data(), batch.t, &weights_.embed, w.residual, spec_.embedding_scale}));
  ES_RETURN_IF_ERROR(rope_tables(step, batch));
  for (int i = 0; i < spec_.layers; ++i) {
    ES_RETURN_IF_ERROR(attend(batch, i, i == 0 ? nullptr : w.delta));
    ES_RETURN_IF_ERROR(feed_forward(batch, weights_.layers[size_t(i)]));
  }
  return Status();
}

// The parts' outputs side by side.
Status CpuModel::matmul(const float* x, const Stack& weight, const float* bias, float* y, int t) {
  int n = 0, at = 0;
  for (const PackedMatrix& part : weight) n += part.n;
  for (const PackedMatrix& part : weight) {
    ES_RETURN_IF_ERROR(cpu::matmul(pool_, {x, &part, bias ? bias + at : nullptr, y + at, t, n}));
    at += part.n;
  }
  return Status();
}

// The norm of a layer's output, in place.
Status CpuModel::post_norm(const float* weight, int t) {
  if (!weight) return Status();
  float* delta = workspace_.delta;
  return cpu::rms_norm(pool_, {delta, nullptr, weight, delta, t, spec_.hidden, spec_.norm_eps});
}

Status CpuModel::rms_norm(const float* delta, const float* weight, int t) {
  RmsNormArgs<float> args;
  args.residual = workspace_.residual;
  args.delta = delta;
  args.weight = weight;
  args.out = workspace_.normed;
  args.t = t;
  args.hidden = spec_.hidden;
  args.eps = spec_.norm_eps;
  return cpu::rms_norm(pool_, args);
}

Status CpuModel::attend(const SequenceBatch& batch, int i, const float* delta) {
  const CpuWorkspace& w = workspace_;
  const ModelLayer& layer = weights_.layers[size_t(i)];
  ES_RETURN_IF_ERROR(rms_norm(delta, layer.attn_norm, batch.t));
  ES_RETURN_IF_ERROR(matmul(w.normed, layer.qkv, layer.qkv_bias, w.qkv, batch.t));
  RopeKvArgs<float> rope;
  rope.qkv = w.qkv;
  rope.q = w.q;
  rope.batch = &batch;
  rope.kv = &kv_;
  rope.arena = arena_.data;
  rope.layer = i;
  rope.heads = spec_.heads;
  const int table = spec_.layer_ropes[size_t(i)];
  const float* cos_sin = w.cos_sin;
  for (int r = 0; r < table; ++r) cos_sin += int64_t(batch.t) * 2 * int64_t(spec_.ropes[size_t(r)].inv_freq.size());
  rope.rotary_dim = table < 0 ? 0 : 2 * int(spec_.ropes[size_t(table)].inv_freq.size());
  rope.interleaved = spec_.rope_interleaved;
  rope.q_norm = layer.q_norm;
  rope.k_norm = layer.k_norm;
  rope.norm_eps = spec_.norm_eps;
  ES_RETURN_IF_ERROR(cpu::rope_kv(pool_, rope, cos_sin));
  AttentionArgs<float> attention;
  attention.q = w.q;
  attention.out = w.attended;
  attention.batch = &batch;
  attention.kv = &kv_;
  attention.arena = arena_.data;
  attention.layer = i;
  attention.heads = spec_.heads;
  attention.scale = spec_.attention_scale;
  attention.window = spec_.windows[size_t(i)];
  attention.softcap = spec_.attention_softcap;
  ES_RETURN_IF_ERROR(cpu::attention(pool_, attention));
  ES_RETURN_IF_ERROR(matmul(w.attended, layer.o, layer.o_bias, w.delta, batch.t));
  return post_norm(layer.post_attn_norm, batch.t);
}

Status CpuModel::feed_forward(const SequenceBatch& batch, const ModelLayer& layer) {
  const CpuWorkspace& w = workspace_;
  ES_RETURN_IF_ERROR(rms_norm(w.delta, layer.ffn_norm, batch.t));
  ES_RETURN_IF_ERROR(matmul(w.normed, layer.gate_up, layer.gate_up_bias, w.gate_up, batch.t));
  ES_RETURN_IF_ERROR(cpu::gated_activation(pool_, {w.gate_up, w.gated, batch.t, spec_.ffn, spec_.activation}));
  ES_RETURN_IF_ERROR(matmul(w.gated, layer.down, layer.down_bias, w.delta, batch.t));
  return post_norm(layer.post_ffn_norm, batch.t);
}

// Final norm and head of some of the batch's tokens into the logits.
Status CpuModel::logits_of(const int32_t* rows, int count) {
  const CpuWorkspace& w = workspace_;
  const size_t hidden = size_t(spec_.hidden);
  float* residual = w.gathered;
  float* delta = residual + size_t(count) * hidden;
  for (int r = 0; r < count; ++r) {
    std::memcpy(residual + size_t(r) * hidden, w.residual + size_t(rows[r]) * hidden, hidden * sizeof(float));
    std::memcpy(delta + size_t(r) * hidden, w.delta + size_t(rows[r]) * hidden, hidden * sizeof(float));
  }
  RmsNormArgs<float> norm{residual, delta, weights_.final_norm, w.normed, count, spec_.hidden, spec_.norm_eps};
  ES_RETURN_IF_ERROR(cpu::rms_norm(pool_, norm));
  ES_RETURN_IF_ERROR(cpu::matmul(pool_, {w.normed, &weights_.head, nullptr, w.logits, count}));
  if (spec_.final_softcap > 0) cap_logits(count);
  return Status();
}

void CpuModel::cap_logits(int rows) {
  const float cap = spec_.final_softcap;
  pool_.for_ranges(int64_t(rows) * spec_.vocab, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) workspace_.logits[i] = cap * std::tanh(workspace_.logits[i] / cap);
  });
}

Status CpuModel::sample_rows(const StepBatch& batch, std::span<const uint32_t> masks, std::vector<SampleRow>& out) {
  const int rows = int(batch.row_tokens.size());
  const size_t words = size_t(mask_words(spec_.vocab));
  std::vector<const uint32_t*> row_masks;  // none where the step has none
  for (size_t r = 0; !masks.empty() && r < batch.row_masks.size(); ++r) {
    row_masks.push_back(batch.row_masks[r] < 0 ? nullptr : masks.data() + size_t(batch.row_masks[r]) * words);
  }
  out.assign(size_t(rows), SampleRow());
  for (int begin = 0; begin < rows; begin += workspace_.logit_rows) {
    const int count = std::min(workspace_.logit_rows, rows - begin);
    ES_RETURN_IF_ERROR(logits_of(batch.row_tokens.data() + begin, count));
    const std::vector<const SamplingState*> states = slots_.states(batch, begin, count);
    SampleArgs args{workspace_.logits, count, spec_.vocab, states.data(), batch.row_targets.data() + begin,
                    batch.row_top.data() + begin, out.data() + begin, row_masks.empty() ? nullptr : row_masks.data() + begin};
    ES_RETURN_IF_ERROR(cpu::sample(pool_, args));
  }
  slots_.append(batch, out);
  return Status();
}

}  // namespace edgeshift
