#include "model/cpu_weights.h"

#include <algorithm>

#include "core/text.h"
#include "cpu/pack.h"
#include "model/head_padding.h"
#include "model/weight_map.h"

namespace edgeshift {

namespace {

// A packed matrix to be: its parts in the file, its place in memory.
struct PackJob {
  std::vector<cpu::RawMatrix> parts;
  CanonicalForm form;
  size_t offset = 0;
  PackedMatrix* out = nullptr;
};

Precision head_precision(Precision asked, BlockType type) {
  const bool four_bits = type == BlockType::q4_0 || type == BlockType::q4_1;
  return asked == Precision::int4 && !four_bits ? Precision::int8 : asked;
}

class Loader {
 public:
  Loader(const ModelSpec& spec, const WeightMap& map, Precision precision, CpuWeights& out)
      : spec_(spec), map_(map), precision_(precision), out_(out) {}

  // Checks every weight and reads the vectors; takes no memory for matrices yet.
  Status plan() {
    if (padded_ != spec_.head_dim && (map_.has("layers.0.q_norm") || map_.has("layers.0.k_norm"))) {
      return error(Code::unsupported, "q and k norms with heads of ", spec_.head_dim, " values (16 and multiples are)");
    }
    ES_RETURN_IF_ERROR(vocabulary_matrix("embed", out_.embed));
    if (map_.has("head")) ES_RETURN_IF_ERROR(vocabulary_matrix("head", out_.head));
    ES_RETURN_IF_ERROR(vector("final_norm", spec_.hidden, out_.final_norm));
    // Jobs point into the layers: no reallocation from here on.
    out_.layers.resize(size_t(spec_.layers));
    for (int i = 0; i < spec_.layers; ++i) ES_RETURN_IF_ERROR(layer(i));
    return Status();
  }

  Status pack(cpu::ThreadPool& pool) {
    Result<cpu::Buffer> memory = cpu::Buffer::allocate(bytes_);
    if (!memory.ok()) return memory.status();
    out_.matrices = std::move(memory.value());
    for (const PackJob& job : jobs_) {
      auto place = static_cast<char*>(out_.matrices.data()) + job.offset;
      ES_RETURN_IF_ERROR(cpu::pack(pool, job.parts, job.form, place, *job.out));
    }
    if (!map_.has("head")) out_.head = out_.embed;
    return Status();
  }

 private:
  Status layer(int i) {
    CpuLayer& layer = out_.layers[size_t(i)];
    const int hidden = spec_.hidden, q = spec_.heads * spec_.head_dim, kv = spec_.kv_heads * spec_.head_dim;
    auto slot = [i](const char* name) { return layer_slot(i, name); };
    ES_RETURN_IF_ERROR(qkv_matrix(i, q, kv, layer.qkv));
    ES_RETURN_IF_ERROR(output_matrix(slot("o"), hidden, q, layer.o));
    ES_RETURN_IF_ERROR(matrix({{slot("gate"), spec_.ffn}, {slot("up"), spec_.ffn}}, hidden, layer.gate_up));
    ES_RETURN_IF_ERROR(matrix({{slot("down"), hidden}}, spec_.ffn, layer.down));
    ES_RETURN_IF_ERROR(vector(slot("attn_norm"), hidden, layer.attn_norm));
    ES_RETURN_IF_ERROR(vector(slot("ffn_norm"), hidden, layer.ffn_norm));
    ES_RETURN_IF_ERROR(optional_vector(slot("q_norm"), spec_.head_dim, layer.q_norm));
    ES_RETURN_IF_ERROR(optional_vector(slot("k_norm"), spec_.head_dim, layer.k_norm));
    return qkv_bias(i, layer.qkv_bias);
  }

  Status vocabulary_matrix(const char* slot, PackedMatrix& out) {
    Result<CheckedWeight> weight = map_.matrix(slot, spec_.vocab, spec_.hidden);
    if (!weight.ok()) return weight.status();
    add_job({raw(weight.value())}, head_precision(precision_, weight.value().type), spec_.vocab, spec_.hidden, out);
    return Status();
  }

  // Stacks several weights along their rows.
  Status matrix(const std::vector<std::pair<std::string, int>>& slots, int columns, PackedMatrix& out) {
    std::vector<cpu::RawMatrix> parts;
    int rows = 0;
    for (const auto& [slot, n] : slots) {
      Result<CheckedWeight> weight = map_.matrix(slot, n, columns);
      if (!weight.ok()) return weight.status();
      parts.push_back(raw(weight.value()));
      rows += n;
    }
    add_job(std::move(parts), precision_, rows, columns, out);
    return Status();
  }

  // q, k and v stacked.
  Status qkv_matrix(int i, int q, int kv, PackedMatrix& out) {
    if (padded_ == spec_.head_dim) {
      return matrix({{layer_slot(i, "q"), q}, {layer_slot(i, "k"), kv}, {layer_slot(i, "v"), kv}}, spec_.hidden, out);
    }
    std::vector<cpu::RawMatrix> parts;
    for (const char* name : {"q", "k", "v"}) {
      const int heads = *name == 'q' ? spec_.heads : spec_.kv_heads;
      Result<CheckedWeight> weight = map_.matrix(layer_slot(i, name), heads * spec_.head_dim, spec_.hidden);
      if (!weight.ok()) return weight.status();
      Result<std::vector<float>> values = pad_head_rows(weight.value(), heads, padded_);
      if (!values.ok()) return values.status();
      parts.push_back({BlockType::f32, stage(std::move(values.value())), heads * padded_, spec_.hidden});
    }
    add_job(std::move(parts), precision_, (spec_.heads + 2 * spec_.kv_heads) * padded_, spec_.hidden, out);
    return Status();
  }

  Status output_matrix(const std::string& slot, int rows, int columns, PackedMatrix& out) {
    if (padded_ == spec_.head_dim) return matrix({{slot, rows}}, columns, out);
    Result<CheckedWeight> weight = map_.matrix(slot, rows, columns);
    if (!weight.ok()) return weight.status();
    Result<std::vector<float>> values = pad_head_columns(weight.value(), spec_.heads, padded_);
    if (!values.ok()) return values.status();
    const cpu::RawMatrix part{BlockType::f32, stage(std::move(values.value())), rows, spec_.heads * padded_};
    add_job({part}, precision_, part.n, part.k, out);
    return Status();
  }

  const float* stage(std::vector<float> values) {
    staged_.push_back(std::move(values));
    return staged_.back().data();
  }

  static cpu::RawMatrix raw(const CheckedWeight& weight) {
    return {weight.type, weight.source->data, weight.rows, weight.columns};
  }

  void add_job(std::vector<cpu::RawMatrix> parts, Precision precision, int rows, int columns, PackedMatrix& out) {
    PackJob job;
    job.form = cpu::packed_form(parts, precision);
    job.parts = std::move(parts);
    job.offset = bytes_;
    job.out = &out;
    bytes_ += cpu::packed_bytes(job.form, rows, columns);
    jobs_.push_back(std::move(job));
  }

  Status vector(const std::string& slot, int length, const float*& out) {
    std::vector<float> values;
    ES_RETURN_IF_ERROR(map_.append_vector(slot, length, values));
    out = keep(std::move(values));
    return Status();
  }

  Status optional_vector(const std::string& slot, int length, const float*& out) {
    return map_.has(slot) ? vector(slot, length, out) : Status();
  }

  // One bias for the fused matrix; projections without one get zeros.
  Status qkv_bias(int i, const float*& out) {
    const std::pair<const char*, int> parts[] = {
        {"q_bias", spec_.heads}, {"k_bias", spec_.kv_heads}, {"v_bias", spec_.kv_heads}};
    std::vector<float> fused;
    bool any = false;
    for (const auto& [name, heads] : parts) {
      const std::string slot = layer_slot(i, name);
      std::vector<float> values(map_.has(slot) ? 0 : size_t(heads) * size_t(spec_.head_dim));
      if (map_.has(slot)) ES_RETURN_IF_ERROR(map_.append_vector(slot, heads * spec_.head_dim, values));
      any = any || map_.has(slot);
      for (int h = 0; h < heads; ++h) {
        const auto from = values.begin() + long(h) * spec_.head_dim;
        fused.insert(fused.end(), from, from + spec_.head_dim);
        fused.resize(fused.size() + size_t(padded_ - spec_.head_dim));
      }
    }
    if (any) out = keep(std::move(fused));
    return Status();
  }

  const float* keep(std::vector<float> values) {
    out_.vectors.push_back(std::move(values));
    return out_.vectors.back().data();
  }

  const ModelSpec& spec_;
  const WeightMap& map_;
  const Precision precision_;
  const int padded_ = padded_head_dim(spec_.head_dim);
  CpuWeights& out_;
  std::deque<std::vector<float>> staged_;  // padded parts, until they are packed
  std::vector<PackJob> jobs_;
  size_t bytes_ = 0;
};

}  // namespace

size_t CpuWeights::bytes() const {
  size_t total = matrices.bytes();
  for (const auto& v : vectors) total += v.size() * sizeof(float);
  return total;
}

Result<CpuWeights> load_cpu_weights(cpu::ThreadPool& pool, const ModelSpec& spec,
                                    const std::vector<WeightSource>& sources, Precision precision) {
  Result<WeightMap> map = WeightMap::create(spec, sources);
  if (!map.ok()) return map.status();
  CpuWeights weights;
  Loader loader(spec, map.value(), precision, weights);
  if (Status status = loader.plan(); !status.ok()) return status;
  if (Status status = loader.pack(pool); !status.ok()) return status;
  return weights;
}

}  // namespace edgeshift
