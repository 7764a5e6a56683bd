// JavaScript values to native structures and back. Readers throw invalid_argument with the field's name.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "loader/gguf.h"
#include "loader/mapped_file.h"
#include "model/backend.h"

namespace edgeshift::addon {

// A load request with its files mapped; the weights point into them.
struct MappedLoad {
  ModelSpec spec;
  LoadOptions options;
  std::vector<std::string> paths;
  // Where a tensor's bytes are: index into weights, which of its tensors, index into paths; map_weights sets `data`.
  struct Place {
    size_t weight;
    TensorBytes WeightSource::*tensor;
    uint32_t file;
    uint64_t offset;
  };
  std::vector<WeightSource> weights;
  std::vector<Place> places;
  std::vector<MappedFile> files;
  // How the files' bytes are read: the request's spec and weights, as JSON.
  std::string reading;
  // A repacked file to take the matrices from; an empty path = none.
  std::string packed_path, packed_key;
};

// Integer in [low, high]; throws invalid_argument that names the field.
int64_t read_integer(const Napi::Object& object, const char* field, int64_t low, int64_t high);
std::string read_string(const Napi::Object& object, const char* field);

// Reads a LoadRequest; maps nothing.
MappedLoad read_load_request(const Napi::Object& request);

// Maps the files (any thread) and points every weight to its bytes after checking that they lie inside the file.
Status map_weights(MappedLoad& load);

// Names what the mapped files hold, by path, size and time of change, how that is read, and the rung (LoadOptions::cache_key).
std::string content_key(const MappedLoad& load);

KvCopy read_copy(const Napi::Object& copy);

// Copies a StepBatch: the caller may reuse its arrays at once.
StepBatch read_batch(const Napi::Object& batch);

// Copies the Uint32Array of giveMasks.
std::vector<uint32_t> read_masks(const Napi::Value& masks);

// Reads a SlotState and checks its token ids against the vocabulary; without its rotary tables.
SamplingState read_slot_state(const Napi::Object& state, int vocab);

// Reads an array of rotary tables: `ropes` of a ModelSpec or a SlotState.
std::vector<RopeTable> read_ropes(const Napi::Object& object);

// StepResult with one typed array per field; `batch` says how many alternatives each row asked for.
Napi::Object to_object(Napi::Env env, const StepResult& result, const StepBatch& batch);

// GgufFile as a plain object; copies everything out of the mapped file.
Napi::Object to_object(Napi::Env env, const GgufFile& file);

}  // namespace edgeshift::addon
