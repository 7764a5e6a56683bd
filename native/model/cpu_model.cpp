#include "model/cpu_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/text.h"
#include "cpu/ops.h"

namespace edgeshift {

namespace {

SequenceBatch sequence_batch(const StepBatch& batch) {
  SequenceBatch out;
  out.s = int(batch.slots.size());
  out.t = int(batch.tokens.size());
  out.starts = batch.seq_starts.data();
  out.first_positions = batch.first_positions.data();
  out.block_starts = batch.block_starts.data();
  out.blocks = batch.blocks.data();
  for (int i = 0; i < out.s; ++i) {
    const int count = out.starts[i + 1] - out.starts[i];
    out.max_count = std::max(out.max_count, count);
    out.max_context = std::max(out.max_context, out.first_positions[i] + count);
  }
  return out;
}

}  // namespace

CpuModel::CpuModel(cpu::ThreadPool& pool, KvArena arena, ModelSpec spec, const LoadOptions& options,
                   CpuWeights weights, CpuWorkspace workspace)
    : pool_(pool),
      arena_(arena),
      spec_(std::move(spec)),
      options_(options),
      weights_(std::move(weights)),
      workspace_(std::move(workspace)),
      kv_{spec_.layers, spec_.kv_heads, spec_.head_dim, options.block_size},
      slots_(size_t(options.max_slots)) {
  tokens_.reserve(size_t(options.max_batch_tokens));
}

Status CpuModel::set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes) {
  if (slot < 0 || slot >= options_.max_slots) {
    return error(Code::invalid_argument, "slot ", slot, " is not below ", options_.max_slots);
  }
  for (const auto* ids : {&state.tokens, &state.bias_tokens, &state.stop_tokens}) {
    for (int32_t id : *ids) {
      if (id < 0 || id >= spec_.vocab) return error(Code::invalid_argument, "token ", id, " is outside the vocabulary");
    }
  }
  if (state.bias_tokens.size() != state.bias_values.size() || state.prompt_length < 0 ||
      size_t(state.prompt_length) > state.tokens.size()) {
    return error(Code::invalid_argument, "the state's lengths do not agree");
  }
  const auto same_size = [](const RopeTable& a, const RopeTable& b) { return a.inv_freq.size() == b.inv_freq.size(); };
  if (!ropes.empty() && !std::ranges::equal(ropes, spec_.ropes, same_size)) {
    return error(Code::invalid_argument, "the sequence's rotary tables are not of the model's sizes");
  }
  slots_[size_t(slot)] = {true, std::move(state), std::move(ropes)};
  return Status();
}

Status CpuModel::check(const StepBatch& batch) const {
  BatchLimits limits{spec_.vocab,         options_.max_slots, options_.max_batch_tokens,
                     options_.block_size, kv_.block_bytes(),  arena_.bytes};
  ES_RETURN_IF_ERROR(check_batch(batch, limits));
  for (size_t i = 0; i < batch.slots.size(); ++i) {
    const Slot& slot = slots_[size_t(batch.slots[i])];
    if (!slot.set) return error(Code::invalid_argument, "slot ", batch.slots[i], " was never set");
    const auto first = batch.tokens.begin() + batch.seq_starts[i];
    const auto last = batch.tokens.begin() + batch.seq_starts[i + 1];
    if (slot.state.tokens.empty() && std::find(first, last, -1) != last) {
      return error(Code::invalid_argument, "slot ", batch.slots[i], " has no token to continue from");
    }
  }
  return Status();
}

void CpuModel::resolve_tokens(const StepBatch& batch) {
  tokens_ = batch.tokens;
  for (size_t i = 0; i < batch.slots.size(); ++i) {
    for (int32_t t = batch.seq_starts[i]; t < batch.seq_starts[i + 1]; ++t) {
      if (tokens_[size_t(t)] == -1) tokens_[size_t(t)] = slots_[size_t(batch.slots[i])].state.tokens.back();
    }
  }
}

Status CpuModel::step(const StepBatch& batch, StepResult& result) {
  const auto start = std::chrono::steady_clock::now();
  ES_RETURN_IF_ERROR(check(batch));
  resolve_tokens(batch);
  ES_RETURN_IF_ERROR(forward(batch));
  ES_RETURN_IF_ERROR(sample_rows(batch, result.rows));
  const auto elapsed = std::chrono::steady_clock::now() - start;
  result.device_micros = std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
  return Status();
}

Status CpuModel::rope_tables(const StepBatch& batch, const SequenceBatch& sequences) {
  float* cos_sin = workspace_.cos_sin;
  for (size_t r = 0; r < spec_.ropes.size(); ++r) {
    sequence_ropes_.clear();
    for (int32_t slot : batch.slots) {
      const std::vector<RopeTable>& own = slots_[size_t(slot)].ropes;
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
  const CpuLayer& layer = weights_.layers[size_t(i)];
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

Status CpuModel::feed_forward(const SequenceBatch& batch, const CpuLayer& layer) {
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

Status CpuModel::sample_rows(const StepBatch& batch, std::vector<SampleRow>& out) {
  const int rows = int(batch.row_tokens.size());
  out.assign(size_t(rows), SampleRow());
  for (int begin = 0; begin < rows; begin += workspace_.logit_rows) {
    const int count = std::min(workspace_.logit_rows, rows - begin);
    ES_RETURN_IF_ERROR(logits_of(batch.row_tokens.data() + begin, count));
    std::vector<const SamplingState*> states;
    for (int r = begin; r < begin + count; ++r) {
      const int32_t slot = batch.slots[size_t(batch.row_seqs[size_t(r)])];
      states.push_back(batch.row_targets[size_t(r)] == -1 ? &slots_[size_t(slot)].state : &unsampled_);
    }
    SampleArgs args{workspace_.logits, count, spec_.vocab, states.data(), batch.row_targets.data() + begin,
                    batch.row_top.data() + begin, out.data() + begin};
    ES_RETURN_IF_ERROR(cpu::sample(pool_, args));
  }
  // Only when every row has succeeded: a failed step leaves the slots as they were.
  for (int r = 0; r < rows; ++r) {
    if (batch.row_targets[size_t(r)] != -1) continue;
    slots_[size_t(batch.slots[size_t(batch.row_seqs[size_t(r)])])].state.tokens.push_back(out[size_t(r)].token);
  }
  return Status();
}

}  // namespace edgeshift
