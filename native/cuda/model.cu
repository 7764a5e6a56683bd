#include "cuda/model.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "cuda/small_copy.h"
#include "model/spec_check.h"

namespace edgeshift::cuda {
namespace {

constexpr int kLogitRows = 64;
constexpr int kMaxSplits = 16;

SampleRow row_of(const SampleResult& from) {
  SampleRow row;
  row.token = from.token;
  row.logprob = from.logprob;
  row.rank = from.rank;
  row.top_tokens.assign(from.top_tokens, from.top_tokens + from.alternatives);
  row.top_logprobs.assign(from.top_logprobs, from.top_logprobs + from.alternatives);
  return row;
}

// One token and one sampled row per sequence, in their order: the step that repeats.
bool is_decode(const StepBatch& b) {
  if (b.tokens.size() != b.slots.size() || b.row_tokens.size() != b.slots.size()) return false;
  for (size_t i = 0; i < b.row_tokens.size(); ++i) {
    if (b.row_tokens[i] != int32_t(i) || b.row_targets[i] != -1) return false;
  }
  return true;
}

// Floats of a sequence's own rotary tables: each one's inverse frequencies, then its scale.
int rope_width(const ModelSpec& spec) {
  int width = 0;
  for (const RopeTable& rope : spec.ropes) width += int(rope.inv_freq.size()) + 1;
  return width;
}

}  // namespace

class CudaModel::Pending final : public PendingStep {
 public:
  // Takes a flight for a step that is to be enqueued.
  Pending(CudaModel& model, const StepBatch& batch) : model_(model), rows_(batch.row_tokens.size()) {
    if (mask_count(batch) > 0) {
      masked_ = batch;
      status_ = {Code::invalid_argument, "the step's masks never came"};
    }
    flight_ = &model.flights_.take();
  }
  ~Pending() override { land(); }

  Flight& flight() { return *flight_; }

  bool ready() const override { return !flight_ || (!masked_ && cudaEventQuery(flight_->end) == cudaSuccess); }

  Status give_masks(std::span<const uint32_t> masks) override {
    if (!masked_) return PendingStep::give_masks(masks);
    const StepBatch batch = std::move(*masked_);
    masked_.reset();
    return status_ = sample(batch, masks);
  }

  // On a thread that may have no device yet, which would be the first one.
  Status wait(StepResult& result) override {
    Status status = status_;
    if (status.ok()) status = to_status(cudaSetDevice(model_.device_.on.device.index), "cudaSetDevice");
    if (status.ok()) status = read(result);
    land();
    return status;
  }

 private:
  Status sample(const StepBatch& batch, std::span<const uint32_t> masks) {
    if (model_.begun_ != begun_) return {Code::invalid_argument, "another step was begun before the masks came"};
    ES_RETURN_IF_ERROR(check_masks(batch, model_.spec_.vocab, masks.size()));
    if (Status status = model_.enqueue_masked(batch, masks, *flight_); !status.ok()) {
      // What was enqueued may still use the flight's memory.
      cudaStreamSynchronize(model_.masks_.stream());
      cudaStreamSynchronize(model_.device_.on.stream);
      return status;
    }
    model_.slots_.append(batch, std::vector<SampleRow>(rows_));
    return {};
  }

  Status read(StepResult& result) const {
    ES_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(flight_->end));
    float milliseconds = 0;
    ES_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, flight_->begin, flight_->end));
    result.device_micros = int64_t(milliseconds * 1e3f);
    result.rows.clear();
    const SampleResult* rows = flight_->results.as<SampleResult>();
    for (size_t r = 0; r < rows_; ++r) result.rows.push_back(row_of(rows[r]));
    return {};
  }

  // The flight may be taken again once nothing uses it: behind the last event recorded, which is that of the forward pass
  // where the masks never came.
  void land() {
    if (!flight_) return;
    cudaEventSynchronize(flight_->end);
    model_.flights_.give_back(*std::exchange(flight_, nullptr));
  }

  CudaModel& model_;
  const uint64_t begun_ = ++model_.begun_;
  Flight* flight_ = nullptr;
  const size_t rows_;
  std::optional<StepBatch> masked_;  // until its masks come
  Status status_;
};

CudaModel::CudaModel(const DeviceState& device, ModelSpec spec, const LoadOptions& options, DeviceWeights weights)
    : device_(device),
      spec_(std::move(spec)),
      options_(options),
      kv_{spec_.layers, spec_.kv_heads, spec_.head_dim, options.block_size, options.kv_dtype},
      logit_rows_(std::min(options.max_batch_tokens, std::max(kLogitRows, options.max_slots))),
      weights_(std::move(weights)),
      rope_width_(rope_width(spec_)),
      slots_(spec_, options) {}

CudaModel::~CudaModel() { cudaSetDevice(device_.on.device.index); }

Status CudaModel::prepare() {
  const size_t vocab = size_t(spec_.vocab), slots = size_t(options_.max_slots), rows = size_t(logit_rows_);
  ES_RETURN_IF_ERROR(workspace_.allocate(spec_, device_.on.device, options_.max_batch_tokens, logit_rows_, kMaxSplits));
  ES_RETURN_IF_ERROR(workspace_.allocate_widened(weights_.weights, device_.on.device, options_.max_batch_tokens));
  ES_RETURN_IF_ERROR(arrays_.open(options_));
  ES_RETURN_IF_ERROR(masks_.open(options_.max_slots, spec_.vocab));
  ES_RETURN_IF_ERROR(adjusted_.allocate(rows * vocab * sizeof(float)));
  ES_RETURN_IF_ERROR(counts_.allocate(slots * vocab * sizeof(uint16_t)));
  ES_RETURN_IF_ERROR(last_tokens_.allocate(slots * sizeof(int32_t)));
  ES_RETURN_IF_ERROR(results_.allocate(rows * sizeof(SampleResult)));
  ES_RETURN_IF_ERROR(ropes_.allocate(slots * size_t(rope_width_) * sizeof(float)));
  return flights_.open();
}

size_t CudaModel::workspace_bytes() const {
  size_t sum = workspace_.bytes() + arrays_.bytes() + masks_.bytes();
  for (const Buffer* buffer : {&adjusted_, &counts_, &last_tokens_, &results_, &ropes_}) sum += buffer->bytes();
  return sum;
}

// By the default stream, which waits for no other: neither steps nor loads are held up.
Result<std::span<const uint8_t>> CudaModel::packed_piece(size_t offset, size_t bytes) {
  piece_.resize(bytes);
  const char* from = weights_.buffers.front().as<char>() + offset;
  Status status = to_status(cudaSetDevice(device_.on.device.index), "cudaSetDevice");
  if (status.ok()) status = to_status(cudaMemcpy(piece_.data(), from, bytes, cudaMemcpyDeviceToHost), "download of packed weights");
  if (!status.ok()) return status;
  return std::span<const uint8_t>(piece_);
}

Status CudaModel::set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes) {
  const bool penalties = state.repetition_penalty != 1 || state.presence_penalty != 0 || state.frequency_penalty != 0;
  ES_RETURN_IF_ERROR(slots_.set(slot, std::move(state), std::move(ropes)));
  std::erase(fresh_, slot);
  if (penalties) fresh_.push_back(slot);
  return slots_[slot].ropes.empty() ? Status() : set_ropes(slot);
}

// Behind the steps that still use the slot's last tables. The copy is from pageable memory: it has left it on return.
Status CudaModel::set_ropes(int slot) {
  ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_.on.device.index));
  std::vector<float> row;
  for (const RopeTable& rope : slots_[slot].ropes) {
    row.insert(row.end(), rope.inv_freq.begin(), rope.inv_freq.end());
    row.push_back(rope.scale);
  }
  // Kernels look for tables from now on only: those of other models save the question.
  if (!std::exchange(own_ropes_, true)) graphs_.clear();
  return to_status(cudaMemcpyAsync(ropes_.as<float>() + size_t(slot) * size_t(rope_width_), row.data(), row.size() * sizeof(float),
                                   cudaMemcpyHostToDevice, device_.on.stream), "rotary tables");
}

Status CudaModel::step(const StepBatch& batch, StepResult& result) {
  if (mask_count(batch) > 0) return {Code::invalid_argument, "a step's masks follow its begin()"};
  Result<std::unique_ptr<PendingStep>> pending = begin(batch);
  return pending.ok() ? pending.value()->wait(result) : pending.status();
}

Result<std::unique_ptr<PendingStep>> CudaModel::begin(const StepBatch& batch) {
  const BatchLimits limits{spec_.vocab, options_.max_slots, options_.max_batch_tokens, options_.block_size, kv_.block_bytes(),
                           device_.arena.bytes()};
  if (Status status = slots_.check(batch, limits); !status.ok()) return status;
  auto pending = std::make_unique<Pending>(*this, batch);
  if (Status status = enqueue(batch, pending->flight()); !status.ok()) {
    // What was enqueued may still use the flight's memory.
    cudaStreamSynchronize(device_.on.stream);
    return status;
  }
  // Which tokens they are is known to the device only; how many there are decides the next draws.
  if (mask_count(batch) == 0) slots_.append(batch, std::vector<SampleRow>(batch.row_tokens.size()));
  return std::unique_ptr<PendingStep>(std::move(pending));
}

Status CudaModel::enqueue(const StepBatch& batch, Flight& flight) {
  const cudaStream_t stream = device_.on.stream;
  const size_t results = batch.row_tokens.size() * sizeof(SampleResult);
  ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_.on.device.index));
  ES_RETURN_IF_ERROR(flight.results.reserve(std::max(results, results_.bytes())));
  if (results > results_.bytes()) {
    graphs_.clear();
    ES_RETURN_IF_ERROR(results_.allocate(results));
  }
  if (mask_count(batch) > 0) ES_RETURN_IF_ERROR(masks_.reserve(flight));
  ES_CUDA_RETURN_IF_ERROR(cudaEventRecord(flight.begin, stream));
  ES_RETURN_IF_ERROR(arrays_.upload(batch, slots_, fresh_, flight, device_.on));
  ES_RETURN_IF_ERROR(count_fresh());
  ES_RETURN_IF_ERROR(run(batch));
  if (mask_count(batch) == 0) return finish(batch.row_tokens.size(), flight);
  return to_status(cudaEventRecord(flight.end, stream), "a forward pass' end");
}

Status CudaModel::finish(size_t rows, Flight& flight) {
  ES_RETURN_IF_ERROR(small_copy(flight.results.as<void>(), results_.as<void>(), rows * sizeof(SampleResult), device_.on));
  return to_status(cudaEventRecord(flight.end, device_.on.stream), "a step's end");
}

Status CudaModel::enqueue_masked(const StepBatch& batch, std::span<const uint32_t> masks, Flight& flight) {
  ES_CUDA_RETURN_IF_ERROR(cudaSetDevice(device_.on.device.index));
  const int rows = int(batch.row_tokens.size());
  ES_RETURN_IF_ERROR(masks_.upload(masks, flight, device_.on));
  ES_RETURN_IF_ERROR(is_decode(batch) ? sample(sample_args(0, rows), device_.on) : sample_rows(forward_of(batch), rows));
  ES_RETURN_IF_ERROR(masks_.release(device_.on));
  return finish(batch.row_tokens.size(), flight);
}

Status CudaModel::count_fresh() {
  const int32_t* tokens = arrays_.history();
  for (int slot : fresh_) {
    const SamplingState& s = slots_[slot].state;
    uint16_t* counts = counts_.as<uint16_t>() + size_t(slot) * size_t(spec_.vocab);
    ES_RETURN_IF_ERROR(count_tokens(tokens, int(s.tokens.size()), s.prompt_length, counts, spec_.vocab, device_.on));
    tokens += s.tokens.size();
  }
  fresh_.clear();
  return {};
}

Status CudaModel::run(const StepBatch& batch) {
  const Forward pass = forward_of(batch);
  const bool samples = mask_count(batch) == 0;
  if (is_decode(batch)) {
    if (std::exchange(graphs_version_, arrays_.version()) != arrays_.version()) graphs_.clear();
    return graphs_.run({pass.batch.s, splits_for(pass.batch), samples}, device_.on.stream,
                       [&] { return samples ? decode(pass) : decode_head(pass); });
  }
  ES_RETURN_IF_ERROR(forward(pass));
  return samples ? sample_rows(pass, int(batch.row_tokens.size())) : Status();
}

Forward CudaModel::forward_of(const StepBatch& batch) {
  Forward pass;
  pass.spec = &spec_;
  pass.weights = &weights_.weights;
  pass.workspace = &workspace_;
  pass.kv = &kv_;
  pass.arena = device_.arena.as<void>();
  pass.tokens = arrays_.tokens();
  pass.batch = arrays_.sequences(batch);
  pass.head = is_decode(batch);
  pass.last_tokens = last_tokens_.as<int32_t>();
  if (own_ropes_) pass.ropes = {ropes_.as<float>(), arrays_.rope_slots(), rope_width_, 0};
  return pass;
}

int CudaModel::splits_for(const SequenceBatch& batch) const {
  return choose_splits(spec_, device_.on.device, batch.s, batch.max_context, kMaxSplits);
}

Status CudaModel::decode(const Forward& pass) {
  Launch on = device_.on;
  on.chain = true;
  ES_RETURN_IF_ERROR(decode_head(pass));
  return sample(sample_args(0, pass.batch.s), on);
}

Status CudaModel::decode_head(const Forward& pass) {
  Launch on = device_.on;
  on.chain = true;
  return decode_forward(pass, splits_for(pass.batch), on);
}

Status CudaModel::forward(const Forward& pass) {
  return pass.batch.max_count > 1 ? prefill_forward(pass, device_.on) : decode_head(pass);
}

SampleArgs CudaModel::sample_args(int first, int rows) const {
  SampleArgs args;
  args.logits = workspace_.logits.as<float>();
  args.adjusted = adjusted_.as<float>();
  args.tasks = arrays_.tasks() + first;
  args.bias_tokens = arrays_.bias_tokens();
  args.bias_values = arrays_.bias_values();
  args.masks = masks_.data();
  args.counts = counts_.as<uint16_t>();
  args.last_tokens = last_tokens_.as<int32_t>();
  args.results = results_.as<SampleResult>() + first;
  args.rows = rows;
  args.vocab = spec_.vocab;
  args.softcap = spec_.final_softcap;
  return args;
}

Status CudaModel::sample_rows(const Forward& pass, int total) {
  for (int first = 0; first < total; first += logit_rows_) {
    const int count = std::min(logit_rows_, total - first);
    ES_RETURN_IF_ERROR(logits_of(pass, arrays_.rows() + first, count, device_.on));
    ES_RETURN_IF_ERROR(sample(sample_args(first, count), device_.on));
  }
  return {};
}

}  // namespace edgeshift::cuda
