#include "cuda/load.h"

#include <algorithm>
#include <mutex>
#include <span>

#include "core/text.h"
#include "cuda/pack.h"
#include "cuda/stored.h"
#include "model/weights.h"

namespace edgeshift::cuda {
namespace {

// Host bytes that a thread converts at a time.
constexpr size_t kPieceBytes = size_t(4) << 20;

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// A canonical matrix's arrays inside one allocation: codes or values, scales, minimums.
struct SourceLayout {
  SourceLayout(CanonicalForm form, int rows, int k) : form(form), n(rows), k(k) {
    const bool half = form.precision == Precision::fp16;
    groups = half ? 0 : size_t((k + form.group - 1) / form.group);
    row_bytes = half ? size_t(k) * 2 : groups * size_t(form.group) / (form.precision == Precision::int4 ? 2 : 1);
    scales = aligned(size_t(n) * row_bytes);
    minimums = scales + aligned(size_t(n) * groups * 2);
    bytes = minimums + (form.has_minimums ? aligned(size_t(n) * groups * 2) : 0);
  }

  CanonicalMatrix view(const char* memory) const {
    CanonicalMatrix m;
    m.precision = form.precision;
    m.n = n;
    m.k = k;
    m.group = form.group;
    if (form.precision == Precision::fp16) m.values = reinterpret_cast<const f16*>(memory);
    else m.codes = memory;
    if (groups > 0) m.scales = reinterpret_cast<const f16*>(memory + scales);
    if (form.has_minimums) m.minimums = reinterpret_cast<const f16*>(memory + minimums);
    return m;
  }

  CanonicalForm form;
  int n, k;
  size_t groups, row_bytes, scales, minimums, bytes;
};

class DevicePacker final : public WeightPacker {
 public:
  DevicePacker(cpu::ThreadPool& pool, const LoadOptions& options, Staging& staging, int device, cudaStream_t stream, DeviceWeights& out)
      : pool_(pool), options_(options), staging_(staging), device_(device), stream_(stream), out_(out) {}

  int head_dim(int head_dim) const override { return kernel_head_dim(head_dim); }
  bool one_matrix() const override { return true; }
  int workers() const override { return pool_.threads(); }
  bool reads_files() const override { return out_.origin == Origin::files; }
  bool pads_norms() const override { return true; }

  Status reserve(std::span<const PackJob> jobs) override {
    size_t largest = 0, total = 0, raw = 0, plans = 0;
    for (const PackJob& job : jobs) {
      const SourceLayout layout(job.form, job.rows(), job.k());
      largest = std::max(largest, layout.bytes);
      total += aligned(packed_bytes(layout.view(nullptr))) + aligned(job.order().size_bytes());
      for (const WeightReader* part : job.parts) {
        const std::optional<StoredPlan> plan = plan_stored(*part, job.form);
        if (!plan) continue;
        ++plans;
        if (!plan->in_place()) raw = std::max(raw, plan->bytes());
      }
    }
    if (plans > 0) {
      ES_RETURN_IF_ERROR(staging_.open());
      ES_RETURN_IF_ERROR(raw_.allocate(raw));
      ES_RETURN_IF_ERROR(bad_.reserve(plans * sizeof(int32_t)));
    }
    out_.packed_bytes = total;
    ES_RETURN_IF_ERROR(out_.buffers.emplace_back().allocate(total));
    if (options_.packed) ES_RETURN_IF_ERROR(restore(*options_.packed));
    return out_.origin == Origin::files ? source_.allocate(largest) : Status();
  }

  Status pack(const PackJob& job, RoundingSums& rounding) override {
    const SourceLayout layout(job.form, job.rows(), job.k());
    if (out_.origin != Origin::files) return describe(job, layout);
    int row = 0;
    for (const WeightReader* part : job.parts) {
      const std::optional<StoredPlan> plan = plan_stored(*part, layout.form);
      ES_RETURN_IF_ERROR(plan ? convert(*part, *plan, layout, size_t(row)) : upload(*part, layout, row, rounding));
      row += part->n();
      if (options_.done_reading) options_.done_reading(part->bytes_of(0, part->n()));
    }
    const CanonicalMatrix source = layout.view(source_.as<char>());
    void* place = take(packed_bytes(source));
    ES_RETURN_IF_ERROR(cuda::pack(source, job.gate_up ? RowOrder::gate_up : RowOrder::plain, place, *job.out, stream_));
    return copy_order(job);
  }

  // What the kernels found wrong in the files: the reader of that part says what it is.
  Status finish() override {
    ES_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
    for (size_t i = 0; i < converted_.size(); ++i) {
      if (bad_.as<int32_t>()[i] == 0) continue;
      const auto& [part, form] = converted_[i];
      CanonicalStorage rows;
      Status status = part->read(0, part->n(), form, rows);
      return status.ok() ? error(Code::device_failed, "a weight was read wrongly on the device") : status;
    }
    return {};
  }

 private:
  // Sends the file's tensors to the device and converts them there.
  Status convert(const WeightReader& part, const StoredPlan& plan, const SourceLayout& layout, size_t row) {
    const bool half = layout.form.precision == Precision::fp16;
    char* memory = source_.as<char>();
    CanonicalRows rows{memory + row * layout.row_bytes};
    if (!half) rows.scales = reinterpret_cast<f16*>(memory + layout.scales) + row * layout.groups;
    if (!half && layout.form.has_minimums) rows.minimums = reinterpret_cast<f16*>(memory + layout.minimums) + row * layout.groups;
    char* raw = plan.in_place() ? static_cast<char*>(rows.codes) : raw_.as<char>();
    char* to = raw;
    for (const std::span<const uint8_t> tensor : plan.tensors()) {
      ES_RETURN_IF_ERROR(staging_.upload(pool_, to, tensor.data(), tensor.size(), stream_));
      to += aligned(tensor.size());
    }
    int32_t* bad = bad_.as<int32_t>() + converted_.size();
    *bad = 0;
    converted_.emplace_back(&part, layout.form);
    Launch on;
    on.stream = stream_;
    return convert_stored(plan, raw, rows, bad, on);
  }

  // Where the file cannot be used, everything is packed as without it. The copies are from pageable memory, as the rows' are.
  Status restore(PackedSource& packed) {
    if (packed.fault.ok() && packed.file.info().bytes != out_.packed_bytes) {
      packed.fault = error(Code::invalid_file, "the repacked file has ", packed.file.info().bytes, " bytes, not ", out_.packed_bytes);
    }
    if (!packed.fault.ok()) return {};
    std::mutex mutex;
    Status failure;
    pool_.for_ranges(int64_t(packed.file.chunks()), 1, [&](int64_t begin, int64_t end, int) {
      std::vector<char> host(kPackedChunk);
      Status status = to_status(cudaSetDevice(device_), "cudaSetDevice");
      for (int64_t chunk = begin; status.ok() && chunk < end; ++chunk) {
        const size_t offset = size_t(chunk) * kPackedChunk, bytes = packed.file.chunk_bytes(size_t(chunk));
        if (Status read = packed.file.read(size_t(chunk), host.data()); !read.ok()) {
          std::lock_guard lock(mutex);
          packed.fault = std::move(read);
          return;
        }
        status = to_status(cudaMemcpyAsync(out_.buffers.front().as<char>() + offset, host.data(), bytes, cudaMemcpyHostToDevice, stream_),
                           "upload of a repacked file");
      }
      std::lock_guard lock(mutex);
      if (failure.ok()) failure = std::move(status);
    });
    ES_RETURN_IF_ERROR(failure);
    ES_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_));
    if (packed.fault.ok()) out_.origin = Origin::packed_file;
    return {};
  }

  // What pack() said of the same job when it left the matrix in this place.
  Status describe(const PackJob& job, const SourceLayout& layout) {
    const CanonicalMatrix shape = layout.view(nullptr);
    describe_packed(shape, take(packed_bytes(shape)), *job.out);
    if (const size_t bytes = job.order().size_bytes(); bytes > 0) job.out->permutation = static_cast<const int32_t*>(take(bytes));
    return {};
  }

  // The order of the inputs, for the gather before the product. The copy is from pageable memory, as the rows' are.
  Status copy_order(const PackJob& job) {
    const std::span<const int32_t> order = job.order();
    if (order.empty()) return {};
    auto* inputs = static_cast<int32_t*>(take(order.size_bytes()));
    ES_CUDA_RETURN_IF_ERROR(cudaMemcpyAsync(inputs, order.data(), order.size_bytes(), cudaMemcpyHostToDevice, stream_));
    job.out->permutation = inputs;
    return {};
  }

  // The next stretch of the memory that reserve() took for all matrices.
  void* take(size_t bytes) {
    char* place = out_.buffers.front().as<char>() + used_;
    used_ += aligned(bytes);
    return place;
  }

  // Converts a part by pieces and copies each to its rows. The copies are from pageable memory: each has left its host
  // buffer when the call returns.
  Status upload(const WeightReader& part, const SourceLayout& layout, int first_row, RoundingSums& rounding) {
    const int64_t piece = std::max<int64_t>(1, int64_t(kPieceBytes / (size_t(layout.k) * 4)));
    std::mutex mutex;
    Status failure;
    pool_.for_ranges(part.n(), piece, [&](int64_t begin, int64_t end, int) {
      CanonicalStorage rows;
      RoundingSums took;
      Status status = to_status(cudaSetDevice(device_), "cudaSetDevice");
      for (int64_t at = begin; status.ok() && at < end; at += piece) {
        const int64_t stop = std::min(end, at + piece);
        status = part.read(int(at), int(stop), layout.form, rows);
        if (!status.ok()) break;
        took.add(rows.rounding);
        status = copy(rows, layout, size_t(first_row) + size_t(at));
      }
      std::lock_guard lock(mutex);
      rounding.add(took);
      if (failure.ok()) failure = std::move(status);
    });
    return failure;
  }

  Status copy(const CanonicalStorage& rows, const SourceLayout& layout, size_t row) {
    char* memory = source_.as<char>();
    auto put = [&](size_t offset, const void* data, size_t bytes) {
      return bytes == 0 ? Status() : to_status(cudaMemcpyAsync(memory + offset, data, bytes, cudaMemcpyHostToDevice, stream_), "upload of a weight");
    };
    const bool half = layout.form.precision == Precision::fp16;
    const void* codes = half ? static_cast<const void*>(rows.values.data()) : rows.codes.data();
    ES_RETURN_IF_ERROR(put(row * layout.row_bytes, codes, size_t(rows.n) * layout.row_bytes));
    ES_RETURN_IF_ERROR(put(layout.scales + row * layout.groups * 2, rows.scales.data(), rows.scales.size() * 2));
    return put(layout.minimums + row * layout.groups * 2, rows.minimums.data(), rows.minimums.size() * 2);
  }

  cpu::ThreadPool& pool_;
  const LoadOptions& options_;
  Staging& staging_;
  const int device_;
  const cudaStream_t stream_;
  DeviceWeights& out_;
  Buffer source_;
  Buffer raw_;  // one part as its file has it
  PinnedBuffer bad_;  // int32 of each of converted_
  std::vector<std::pair<const WeightReader*, CanonicalForm>> converted_;
  size_t used_ = 0;
};

// Vectors behind one another in one allocation, each on a boundary of 256 bytes.
class VectorUpload {
 public:
  // Leaves in *to the device address of the values, once upload() has run; null stays null.
  void add(const float* values, size_t count, const float** to) {
    if (!values) return;
    places_.push_back({host_.size(), to});
    host_.insert(host_.end(), values, values + count);
    host_.resize(aligned(host_.size() * 4) / 4);
  }
  Status upload(Buffer& memory) {
    ES_RETURN_IF_ERROR(memory.allocate(host_.size() * 4));
    ES_CUDA_RETURN_IF_ERROR(cudaMemcpy(memory.as<void>(), host_.data(), host_.size() * 4, cudaMemcpyHostToDevice));
    // The call may return before the last of it has arrived, and the load's stream does not wait for this one.
    ES_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(nullptr));
    for (const auto& [offset, to] : places_) *to = memory.as<float>() + offset;
    return {};
  }

 private:
  struct Place {
    size_t offset;
    const float** to;
  };
  std::vector<float> host_;
  std::vector<Place> places_;
};

// A bias of gate and up, one after the other, in the order of the rows of RowOrder::gate_up: eight of each in turn.
std::vector<float> interleaved(const float* bias, int ffn) {
  std::vector<float> out(size_t(ffn) * 2);
  for (int i = 0; i < ffn; ++i) {
    float* place = out.data() + i / 8 * 16 + i % 8;
    place[0] = bias[i];
    place[8] = bias[ffn + i];
  }
  return out;
}

[[nodiscard]] Status finish(const ModelSpec& spec, ModelWeights& host, DeviceWeights& out) {
  const size_t hidden = size_t(spec.hidden), head = size_t(kernel_head_dim(spec.head_dim));
  TransformerWeights& w = out.weights;
  w.embed = host.embed;
  w.head = host.head;
  w.layers.resize(host.layers.size());
  w.inv_freq.resize(spec.ropes.size());
  // The kernels' mean is over the padded head (WeightPacker::pads_norms).
  w.head_norm_eps = spec.norm_eps * float(spec.head_dim) / float(head);
  VectorUpload vectors;
  vectors.add(host.final_norm, hidden, &w.final_norm);
  for (size_t r = 0; r < spec.ropes.size(); ++r) {
    vectors.add(spec.ropes[r].inv_freq.data(), spec.ropes[r].inv_freq.size(), &w.inv_freq[r]);
  }
  for (size_t i = 0; i < host.layers.size(); ++i) {
    const ModelLayer& from = host.layers[i];
    LayerWeights& to = w.layers[i];
    to.qkv = from.qkv.front();
    to.o = from.o.front();
    to.gate_up = from.gate_up.front();
    to.down = from.down.front();
    vectors.add(from.attn_norm, hidden, &to.attention_norm);
    vectors.add(from.ffn_norm, hidden, &to.ffn_norm);
    vectors.add(from.post_attn_norm, hidden, &to.post_attention_norm);
    vectors.add(from.post_ffn_norm, hidden, &to.post_ffn_norm);
    vectors.add(from.q_norm, head, &to.q_norm);
    vectors.add(from.k_norm, head, &to.k_norm);
    vectors.add(from.qkv_bias, size_t(spec.heads + 2 * spec.kv_heads) * head, &to.qkv_bias);
    vectors.add(from.o_bias, hidden, &to.o_bias);
    if (from.gate_up_bias) vectors.add(interleaved(from.gate_up_bias, spec.ffn).data(), 2 * size_t(spec.ffn), &to.gate_up_bias);
    vectors.add(from.down_bias, hidden, &to.down_bias);
  }
  return vectors.upload(out.buffers.emplace_back());
}

}  // namespace

size_t DeviceWeights::bytes() const {
  size_t sum = 0;
  for (const Buffer& buffer : buffers) sum += buffer.bytes();
  return sum;
}

int kernel_head_dim(int head_dim) {
  for (int size : {64, 96, 128, 256}) {
    if (head_dim <= size) return size;
  }
  return 0;
}

Result<DeviceWeights> load_device_weights(cpu::ThreadPool& pool, const ModelSpec& spec,
                                          const std::vector<WeightSource>& sources, const LoadOptions& options,
                                          Staging& staging, int device, cudaStream_t stream) {
  DeviceWeights out;
  ModelWeights host;
  DevicePacker packer(pool, options, staging, device, stream, out);
  Status status = load_weights(spec, sources, options, packer, host);
  if (status.ok()) status = finish(spec, host, out);
  out.rounding = out.origin == Origin::packed_file ? options.packed->file.info().rounding : host.rounding;
  // Also on error: nothing may be freed while a copy or a kernel still uses it.
  Status settled = to_status(cudaStreamSynchronize(stream), "loading weights");
  if (!status.ok()) return status;
  if (!settled.ok()) return settled;
  return Result<DeviceWeights>(std::move(out));
}

}  // namespace edgeshift::cuda
