#include "model/weights.h"

#include <algorithm>
#include <cmath>

#include "core/text.h"
#include "cpu/pack.h"
#include "model/head_padding.h"
#include "model/read_ahead.h"
#include "model/weight_map.h"

namespace edgeshift {

namespace {

using Reader = std::unique_ptr<WeightReader>;

// A matrix of the model: its parts in the file, in order along n.
struct Plan {
  std::vector<Reader> parts;
  bool vocabulary = false;
  bool gate_up = false;
  Stack* out = nullptr;
};

// fp16 < int8 < int4 in the enum.
bool fits(Precision width, Precision target) { return int(width) >= int(target); }

class Loader {
 public:
  Loader(const ModelSpec& spec, const WeightMap& map, const LoadOptions& options, WeightPacker& packer, ModelWeights& out)
      : spec_(spec), map_(map), options_(options), target_(options.precision), packer_(packer), out_(out) {}

  // Checks every weight and reads the vectors; takes no memory for matrices yet.
  Status plan() {
    ES_RETURN_IF_ERROR(vocabulary_matrix("embed", embed_));
    if (map_.has("head")) ES_RETURN_IF_ERROR(vocabulary_matrix("head", head_));
    ES_RETURN_IF_ERROR(norm("final_norm", spec_.hidden, out_.final_norm));
    // Plans point into the layers: no reallocation from here on.
    out_.layers.resize(size_t(spec_.layers));
    for (int i = 0; i < spec_.layers; ++i) ES_RETURN_IF_ERROR(layer(i));
    look_at_widths();
    for (const Plan& plan : plans_) add_jobs(plan);
    return Status();
  }

  // The largest first: where its whole file part stays mapped until it is packed, little else is resident yet.
  Status pack() {
    ES_RETURN_IF_ERROR(packer_.reserve(jobs_));
    std::ranges::stable_sort(jobs_, std::ranges::greater(), &PackJob::file_bytes);
    ReadAhead ahead(packer_.reads_files() ? reading() : std::vector<ReadAhead::Job>(), options_.will_read);
    for (const PackJob& job : jobs_) {
      ahead.begin();
      RoundingSums took;
      ES_RETURN_IF_ERROR(packer_.pack(job, took));
      if (!(took.weights > 0)) continue;
      // In shares of its own size: or an embedding of large values would hide what happens to all other matrices.
      const double count = double(job.rows()) * job.k();
      out_.rounding.add({count * took.error / took.weights, count});
    }
    ES_RETURN_IF_ERROR(packer_.finish());
    out_.embed = embed_.front();
    out_.head = map_.has("head") ? head_.front() : out_.embed;
    return Status();
  }

 private:
  Status layer(int i) {
    ModelLayer& layer = out_.layers[size_t(i)];
    const int hidden = spec_.hidden, ffn = spec_.ffn, q = spec_.heads * spec_.head_dim;
    auto slot = [i](const char* name) { return layer_slot(i, name); };
    ES_RETURN_IF_ERROR(qkv_matrix(i, layer.qkv));
    ES_RETURN_IF_ERROR(output_matrix(slot("o"), hidden, q, layer.o));
    if (map_.has(slot("gate_up"))) ES_RETURN_IF_ERROR(matrix({{slot("gate_up"), 2 * ffn}}, hidden, layer.gate_up));
    else ES_RETURN_IF_ERROR(matrix({{slot("gate"), ffn}, {slot("up"), ffn}}, hidden, layer.gate_up));
    plans_.back().gate_up = true;
    ES_RETURN_IF_ERROR(matrix({{slot("down"), hidden}}, ffn, layer.down));
    ES_RETURN_IF_ERROR(norms(i, layer));
    ES_RETURN_IF_ERROR(qkv_bias(i, layer.qkv_bias));
    ES_RETURN_IF_ERROR(bias({{slot("o_bias"), hidden}}, layer.o_bias));
    if (map_.has(slot("gate_up_bias"))) ES_RETURN_IF_ERROR(bias({{slot("gate_up_bias"), 2 * ffn}}, layer.gate_up_bias));
    else ES_RETURN_IF_ERROR(bias({{slot("gate_bias"), ffn}, {slot("up_bias"), ffn}}, layer.gate_up_bias));
    return bias({{slot("down_bias"), hidden}}, layer.down_bias);
  }

  Status norms(int i, ModelLayer& layer) {
    const int hidden = spec_.hidden;
    auto slot = [i](const char* name) { return layer_slot(i, name); };
    ES_RETURN_IF_ERROR(norm(slot("attn_norm"), hidden, layer.attn_norm));
    ES_RETURN_IF_ERROR(norm(slot("ffn_norm"), hidden, layer.ffn_norm));
    if (spec_.post_norms) {
      ES_RETURN_IF_ERROR(norm(slot("post_attn_norm"), hidden, layer.post_attn_norm));
      ES_RETURN_IF_ERROR(norm(slot("post_ffn_norm"), hidden, layer.post_ffn_norm));
    }
    const bool q_norm = map_.has(slot("q_norm")), k_norm = map_.has(slot("k_norm"));
    if (padded_ != spec_.head_dim && (q_norm || k_norm) && !packer_.pads_norms()) {
      return error(Code::unsupported, "q and k norms with heads of ", spec_.head_dim, " values, which this backend pads to ", padded_);
    }
    if (q_norm) ES_RETURN_IF_ERROR(head_norm(slot("q_norm"), layer.q_norm));
    return k_norm ? head_norm(slot("k_norm"), layer.k_norm) : Status();
  }

  Status head_norm(const std::string& slot, const float*& out) {
    ES_RETURN_IF_ERROR(norm(slot, spec_.head_dim, out));
    if (padded_ == spec_.head_dim) return Status();
    std::vector<float>& values = out_.vectors.back();
    for (float& value : values) value *= std::sqrt(float(spec_.head_dim) / float(padded_));
    values.resize(size_t(padded_));
    out = values.data();
    return Status();
  }

  using Rows = std::vector<std::pair<std::string, int>>;

  Status vocabulary_matrix(const char* slot, Stack& out) {
    ES_RETURN_IF_ERROR(matrix({{slot, spec_.vocab}}, spec_.hidden, out));
    plans_.back().vocabulary = true;
    return Status();
  }

  Status matrix(const Rows& slots, int columns, Stack& out) {
    Plan plan;
    plan.out = &out;
    for (const auto& [slot, rows] : slots) {
      Result<Reader> reader = map_.matrix(slot, rows, columns);
      if (!reader.ok()) return reader.status();
      plan.parts.push_back(std::move(reader.value()));
    }
    plans_.push_back(std::move(plan));
    return Status();
  }

  Status qkv_matrix(int i, Stack& out) {
    const int q = spec_.heads * spec_.head_dim, kv = spec_.kv_heads * spec_.head_dim;
    const std::string whole = layer_slot(i, "qkv");
    if (map_.has(whole)) ES_RETURN_IF_ERROR(matrix({{whole, q + 2 * kv}}, spec_.hidden, out));
    else ES_RETURN_IF_ERROR(matrix({{layer_slot(i, "q"), q}, {layer_slot(i, "k"), kv}, {layer_slot(i, "v"), kv}}, spec_.hidden, out));
    if (padded_ == spec_.head_dim) return Status();
    for (Reader& part : plans_.back().parts) {
      const int heads = part->n() / spec_.head_dim;
      part = pad_head_rows(std::move(part), heads, padded_);
    }
    return Status();
  }

  Status output_matrix(const std::string& slot, int rows, int columns, Stack& out) {
    ES_RETURN_IF_ERROR(matrix({{slot, rows}}, columns, out));
    Reader& part = plans_.back().parts.front();
    if (padded_ != spec_.head_dim) part = pad_head_columns(std::move(part), spec_.heads, padded_);
    return Status();
  }

  // Whether some matrix of a layer is kept, and whether one has exactly the rung's width.
  void look_at_widths() {
    for (const Plan& plan : plans_) {
      if (plan.vocabulary) continue;
      for (const Reader& part : plan.parts) {
        keeps_ = keeps_ || fits(part->width(), target_);
        own_rung_ = own_rung_ || part->width() == target_;
      }
    }
  }

  Precision precision_of(const WeightReader& part, bool vocabulary) const {
    if (target_ == Precision::fp16) return target_;
    if (fits(part.width(), target_)) return own_rung_ ? part.width() : target_;
    if (keeps_) return part.width();
    return target_ == Precision::int4 && vocabulary ? Precision::int8 : target_;
  }

  // The files' bytes of each matrix.
  std::vector<ReadAhead::Job> reading() const {
    std::vector<ReadAhead::Job> out;
    for (const PackJob& job : jobs_) {
      std::vector<FileBytes> parts;
      for (const WeightReader* part : job.parts) parts.push_back(part->bytes_of(0, part->n()));
      out.push_back(reading_order(parts, packer_.workers()));
    }
    return out;
  }

  // Neighbouring parts that can share a packed matrix do; the others are read as fp16 where there may be only one.
  void add_jobs(const Plan& plan) {
    std::vector<PackJob> jobs = stacked(plan);
    if (jobs.size() > 1 && packer_.one_matrix()) {
      for (size_t i = 1; i < jobs.size(); ++i) {
        jobs[0].parts.insert(jobs[0].parts.end(), jobs[i].parts.begin(), jobs[i].parts.end());
        jobs[0].file_bytes += jobs[i].file_bytes;
      }
      jobs.resize(1);
      jobs[0].form.precision = Precision::fp16;
    }
    plan.out->resize(jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
      PackJob& job = jobs[i];
      job.form = cpu::packed_form(job.parts, job.form.precision);
      job.gate_up = plan.gate_up;
      job.out = &(*plan.out)[i];
      jobs_.push_back(std::move(job));
    }
  }

  std::vector<PackJob> stacked(const Plan& plan) const {
    std::vector<PackJob> jobs;
    for (const Reader& part : plan.parts) {
      const Precision precision = precision_of(*part, plan.vocabulary);
      const bool joins = !jobs.empty() && cpu::can_stack(*jobs.back().parts.back(), *part, jobs.back().form.precision, precision);
      if (!joins) jobs.emplace_back().form.precision = precision;
      jobs.back().parts.push_back(part.get());
      jobs.back().file_bytes += part->bytes_of(0, part->n()).size();
    }
    return jobs;
  }

  Status norm(const std::string& slot, int length, const float*& out) {
    Result<std::vector<float>> values = map_.vector(slot, length);
    if (!values.ok()) return values.status();
    for (float& v : values.value()) v += spec_.norm_offset;
    out = keep(std::move(values.value()));
    return Status();
  }

  // The biases of several stacked matrices as one vector, zeros for those that have none; null when none has.
  Status bias(const Rows& slots, const float*& out) {
    std::vector<float> fused;
    bool any = false;
    for (const auto& [slot, rows] : slots) {
      Result<std::vector<float>> values = std::vector<float>(size_t(rows));
      if (map_.has(slot)) values = map_.vector(slot, rows);
      if (!values.ok()) return values.status();
      any = any || map_.has(slot);
      fused.insert(fused.end(), values.value().begin(), values.value().end());
    }
    if (any) out = keep(std::move(fused));
    return Status();
  }

  Status qkv_bias(int i, const float*& out) {
    const int q = spec_.heads * spec_.head_dim, kv = spec_.kv_heads * spec_.head_dim;
    const std::string whole = layer_slot(i, "qkv_bias");
    if (map_.has(whole)) ES_RETURN_IF_ERROR(bias({{whole, q + 2 * kv}}, out));
    else ES_RETURN_IF_ERROR(bias({{layer_slot(i, "q_bias"), q}, {layer_slot(i, "k_bias"), kv}, {layer_slot(i, "v_bias"), kv}}, out));
    if (!out || padded_ == spec_.head_dim) return Status();
    std::vector<float> spread;
    for (int head = 0; head < spec_.heads + 2 * spec_.kv_heads; ++head) {
      spread.insert(spread.end(), out + head * spec_.head_dim, out + (head + 1) * spec_.head_dim);
      spread.resize(spread.size() + size_t(padded_ - spec_.head_dim));
    }
    out_.vectors.pop_back();
    out = keep(std::move(spread));
    return Status();
  }

  const float* keep(std::vector<float> values) {
    out_.vectors.push_back(std::move(values));
    return out_.vectors.back().data();
  }

  const ModelSpec& spec_;
  const WeightMap& map_;
  const LoadOptions& options_;
  const Precision target_;
  WeightPacker& packer_;
  const int padded_ = packer_.head_dim(spec_.head_dim);
  ModelWeights& out_;
  Stack embed_, head_;
  bool keeps_ = false;
  bool own_rung_ = false;
  std::vector<Plan> plans_;
  std::vector<PackJob> jobs_;
};

// Vectors, scales and what else lies beside the matrices: read here and there, so that waiting for each would add up.
void announce_small(const std::vector<WeightSource>& sources, const WillRead& will_read) {
  if (!will_read) return;
  for (const WeightSource& source : sources) {
    if (source.shape.size() == 1) will_read({source.values.data, source.values.bytes});
    for (const TensorBytes& tensor : {source.scales, source.zero_points, source.group_index}) will_read({tensor.data, tensor.bytes});
  }
}

}  // namespace

int PackJob::rows() const {
  int rows = 0;
  for (const WeightReader* part : parts) rows += part->n();
  return rows;
}

std::span<const int32_t> PackJob::order() const {
  return parts.front()->order(form.precision);
}

Status load_weights(const ModelSpec& spec, const std::vector<WeightSource>& sources, const LoadOptions& options,
                    WeightPacker& packer, ModelWeights& out) {
  Result<WeightMap> map = WeightMap::create(spec, sources);
  if (!map.ok()) return map.status();
  announce_small(sources, options.will_read);
  Loader loader(spec, map.value(), options, packer, out);
  ES_RETURN_IF_ERROR(loader.plan());
  return loader.pack();
}

}  // namespace edgeshift
