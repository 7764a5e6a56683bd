// The seam between the addon (or a C++ program) and a backend: a device, its models, one call per step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"
#include "loader/packed_file.h"
#include "model/spec.h"
#include "ops/sample.h"
#include "quant/row_kernels.h"
#include "quant/weight_source.h"

namespace edgeshift {

// Where a load took a variant's matrices from.
enum class Origin { files, packed_file, host_copy };

// A repacked file that a load may take the matrices from; what is wrong with it is said here, and the sources are read.
struct PackedSource {
  PackedFile file;
  Status fault;
};

struct LoadOptions {
  Precision precision = Precision::fp16;
  int max_slots = 0;
  int max_batch_tokens = 0;
  int block_size = 0;
  // Told, from any thread, of bytes of the sources that will not be read again; may be empty.
  std::function<void(std::span<const uint8_t>)> done_reading;
  // Names the files' content, how it is read and the rung: a backend may keep what it made of them under it, if `intact` then
  // says that all was read as the files hold it. Empty = not to be kept.
  std::string cache_key = {};
  std::function<Status()> intact = {};
  KvDtype kv_dtype = KvDtype::fp16;
  // May be null; must outlive the load.
  PackedSource* packed = nullptr;
  // Told, from any thread, of bytes that will be read soon; may be empty.
  std::function<void(std::span<const uint8_t>)> will_read = {};
};

// One step, host arrays; fields as StepBatch in engine/native.ts.
struct StepBatch {
  std::vector<int32_t> tokens, seq_starts, first_positions, slots, block_starts, row_tokens, row_seqs, row_targets, row_top;
  std::vector<uint32_t> blocks;
  // [R] the mask that the row obeys, from 0; -1 = none. Empty = none at all.
  std::vector<int32_t> row_masks;
};

// Masks that a batch's rows name: 1 + the largest of row_masks, 0 where there is none.
int mask_count(const StepBatch& batch);

struct StepResult {
  std::vector<SampleRow> rows;
  int64_t device_micros = 0;
};

// A step, or a copy of KV blocks, that a device is working on. Must be gone before its model or backend.
class PendingStep {
 public:
  virtual ~PendingStep() = default;
  // Whether wait() would return at once.
  virtual bool ready() const = 0;
  // Waits for the device, once. May run on another thread than the model's calls.
  virtual Status wait(StepResult& result) = 0;
  // The masks of a step that was begun with a batch that names some: [mask_count(batch) * mask_words(vocab)] (ops/sample.h),
  // read during the call. Once, on the thread of the model's calls, and before any other call on the device: only then does
  // the step sample; until then it is not ready and may not be waited for. On error the step has failed: the slots are as
  // they were before it, wait() says the error again, and steps that follow are not touched. invalid_argument for another
  // length, for a step that takes none, and where another step of the model was begun in between.
  virtual Status give_masks(std::span<const uint32_t> masks);
};

// Steps of a model that may be under way at once.
inline constexpr int kMaxPendingSteps = 4;

// A resident variant. Not thread-safe: its device's worker thread makes all calls.
class Model {
 public:
  virtual ~Model() = default;
  virtual size_t weight_bytes() const = 0;
  virtual size_t workspace_bytes() const = 0;
  virtual size_t block_bytes() const = 0;
  // What rounding to nearest took at the load: each rounded matrix counts by its number of weights, with its squared error
  // as a share of its own squares. Zeros where every matrix is as the file has it.
  virtual RoundingSums rounding() const = 0;
  virtual Origin origin() const { return Origin::files; }
  // The matrices as one image in the backend's layout, for a repacked file. packed_piece gives a part of it, valid until the
  // next call; from any one thread, also beside steps.
  virtual size_t packed_bytes() const = 0;
  virtual Result<std::span<const uint8_t>> packed_piece(size_t offset, size_t bytes) = 0;
  // Starts or replaces a slot's sampling state. `ropes` replace the model's rotary tables for this sequence, one for
  // each of the same size (rope scaling that depends on the prompt's length); empty = the model's.
  virtual Status set_slot(int slot, SamplingState state, std::vector<RopeTable> ropes = {}) = 0;
  // Checks every index against its bounds, then runs the batch, which names no masks: those follow a begin(). On error the
  // cache of the batch's own tokens is undefined.
  virtual Status step(const StepBatch& batch, StepResult& result) = 0;
  // The same without waiting where the device can work ahead: calls that follow take the batch as done. Blocks while
  // kMaxPendingSteps are under way; steps are to be waited for in the order of their begin(). A batch that names masks is run
  // up to its sampling, which follows with PendingStep::give_masks(); a step that goes without has failed.
  virtual Result<std::unique_ptr<PendingStep>> begin(const StepBatch& batch);
};

// Blocks of one size to copy between the arena and the swap memory: entries as in block tables, as many of each.
struct KvCopy {
  bool to_host = false;
  std::vector<uint32_t> device_blocks, host_blocks;
  size_t block_bytes = 0;
};

// An open device; owns the KV arena.
class Backend {
 public:
  virtual ~Backend() = default;
  // A transaction: on error every byte taken is given back. May run on another thread than the steps of models that
  // are already resident, which go on meanwhile; two loads may not run at once.
  virtual Result<std::unique_ptr<Model>> load(const ModelSpec& spec, const std::vector<WeightSource>& weights,
                                              const LoadOptions& options) = 0;
  // Names the layout of packed images: those of equal names and sources are equal.
  virtual std::string packed_layout() const = 0;
  // Whether an arena larger than what is in use costs nothing: memory is taken when it is first written to, and
  // discard_kv gives it back.
  virtual bool elastic_kv() const { return false; }
  // Forgets the content of a stretch of the arena that no block table refers to. On the step thread.
  virtual void discard_kv(size_t offset, size_t bytes) { (void)offset, (void)bytes; }
  // Bytes per second that the device reads from its memory, measured now, behind the steps under way. On the step thread;
  // out_of_memory without room for what it reads.
  virtual Result<double> read_bandwidth() = 0;
  // Bytes of the device's own memory in use, whoever has them, as its driver says; nothing where the device has none. On
  // the load thread.
  virtual Result<std::optional<size_t>> used_bytes() { return std::optional<size_t>(); }
  // Bytes of page-locked memory that loaded weights are kept in; 0 where there are none, or where the system refused them.
  // Waits until that is known; from any thread.
  virtual size_t host_cache_bytes() { return 0; }
  // Copies blocks in the order of the steps, without waiting where the device can work ahead. On the step thread.
  // invalid_argument when a block lies outside of the arena or of the swap memory.
  virtual Result<std::unique_ptr<PendingStep>> copy_kv(const KvCopy& copy) = 0;
};

// A finished step, for backends that do not work ahead.
std::unique_ptr<PendingStep> finished_step(StepResult result);

// Whether all of a copy's blocks lie inside an arena and a swap memory of so many bytes; invalid_argument says which does not.
Status check_copy(const KvCopy& copy, size_t arena_bytes, size_t swap_bytes);

// Opens the CPU with `threads` workers, an arena of `kv_bytes` and swap memory; out_of_memory when they cannot be reserved.
Result<std::unique_ptr<Backend>> open_cpu(int threads, size_t kv_bytes, size_t swap_bytes = 0);

struct CudaDevice {
  int index = 0;
  std::string name;
  size_t memory_bytes = 0;
  int major = 0, minor = 0;  // compute capability
};

// The CUDA devices of this machine; none without a driver or in a build without CUDA.
std::vector<CudaDevice> cuda_devices();

// Bytes of CUDA device `index` in use, whoever has them, as its driver says, with this process's context there, which is made
// where there is none yet. unsupported, device_failed as open_cuda.
Result<size_t> cuda_used_bytes(int index);

// Opens CUDA device `index` with an arena of `kv_bytes` and room for `host_cache_bytes` of packed weights in page-locked host
// memory, from which a load that names its content (LoadOptions::cache_key) comes back fast, and `swap_bytes` of such memory
// for KV blocks. out_of_memory when it cannot be reserved; unsupported when there is no such device, the driver is too old,
// or the build has no kernels for it.
Result<std::unique_ptr<Backend>> open_cuda(int index, size_t kv_bytes, size_t host_cache_bytes = 0, size_t swap_bytes = 0);

}  // namespace edgeshift
