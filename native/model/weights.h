// What a load makes of the sources, whatever the backend: which matrices there are, in which width, and the vectors.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "core/status.h"
#include "model/backend.h"
#include "model/spec.h"
#include "ops/packed_matrix.h"
#include "quant/weight_reader.h"

namespace edgeshift {

// A matrix [n, k] as one packed matrix or several along n: parts that differ in width, groups or act-order.
using Stack = std::vector<PackedMatrix>;

// Vectors are null where the model has none.
struct ModelLayer {
  Stack qkv;      // [(heads + 2 * kv_heads) * head_dim, hidden]
  Stack o;        // [hidden, heads * head_dim]
  Stack gate_up;  // [2 * ffn, hidden], gate first
  Stack down;     // [hidden, ffn]
  const float* attn_norm = nullptr;
  const float* ffn_norm = nullptr;
  const float* post_attn_norm = nullptr;
  const float* post_ffn_norm = nullptr;
  const float* q_norm = nullptr;    // [head_dim]
  const float* k_norm = nullptr;
  const float* qkv_bias = nullptr;  // [(heads + 2 * kv_heads) * head_dim]
  const float* o_bias = nullptr;
  const float* gate_up_bias = nullptr;
  const float* down_bias = nullptr;
};

// Matrices in the backend's memory, vectors in the host's; the vectors are owned here.
struct ModelWeights {
  PackedMatrix embed;  // [vocab, hidden]
  PackedMatrix head;   // [vocab, hidden]; the same memory as embed when they are tied
  const float* final_norm = nullptr;
  std::vector<ModelLayer> layers;
  std::deque<std::vector<float>> vectors;
  RoundingSums rounding;  // as Model::rounding
};

// One packed matrix to be: parts in order along n, all of one act-order.
struct PackJob {
  std::vector<const WeightReader*> parts;
  CanonicalForm form;
  size_t file_bytes = 0;
  bool gate_up = false;  // the first half of the rows gates the second
  PackedMatrix* out = nullptr;

  int rows() const;
  int k() const { return parts.front()->k(); }
  // Input feature of each position along k; empty = identity.
  std::span<const int32_t> order() const;
};

// A backend's part of a load.
class WeightPacker {
 public:
  virtual ~WeightPacker() = default;
  // The head size that its kernels compute with, at least `head_dim`; heads are padded with zeros to it.
  virtual int head_dim(int head_dim) const = 0;
  // Whether a stack must be one matrix: parts that do not agree are then read as fp16.
  virtual bool one_matrix() const = 0;
  // Whether q and k norms may be of padded heads. Their weights come scaled by sqrt(head size / padded size), and the
  // kernels' epsilon is to be scaled by head size / padded size: the mean over the padded head then gives the same.
  virtual bool pads_norms() const { return false; }
  // Threads that read a matrix at once, each a share of its rows.
  virtual int workers() const { return 1; }
  // Whether pack() reads the files: it need not where reserve() has had the packed weights from elsewhere.
  virtual bool reads_files() const { return true; }
  // Told of all matrices before the first is packed.
  virtual Status reserve(std::span<const PackJob> jobs) = 0;
  // Reads, packs and describes one in *job.out, and adds what rounding took.
  virtual Status pack(const PackJob& job, RoundingSums& rounding) = 0;
  // Told after the last: says what only shows once everything has been packed.
  virtual Status finish() { return Status(); }
};

// Checks, converts and packs all weights. Heads are padded (model/head_padding.h): where shapes above say head_dim, the
// result has the padded one.
//
// Precision per matrix. At fp16 all are. At int8 and int4 a matrix whose file keeps it in that width or a narrower one
// (WeightReader::width) is kept exactly; narrower ones are widened unless some matrix of a layer has the rung's own
// width. A wider one stays in its width where some matrix of a layer is kept: the file is then made for that rung, and
// its fp16 head or 8-bit down projections are its maker's choice. Otherwise the rung is derived from a wider file: every matrix is rounded to nearest, but at int4 the embedding and
// the head to 8 bits (their rounding costs more quality than their bytes are worth, as every 4-bit file format finds).
//
// options.will_read is told of everything in time: of what is small at once, of each matrix while others are packed.
Status load_weights(const ModelSpec& spec, const std::vector<WeightSource>& sources, const LoadOptions& options,
                    WeightPacker& packer, ModelWeights& out);

}  // namespace edgeshift
