#include <cmath>

#include "addon/convert.h"
#include "addon/errors.h"
#include "core/checked.h"

namespace edgeshift::addon {

namespace {

constexpr int kMaxDimension = 1 << 24;

double read_number(const Napi::Object& object, const char* field) {
  const Napi::Value value = object.Get(field);
  if (!value.IsNumber()) throw_argument(object.Env(), field, " is not a number");
  return value.As<Napi::Number>().DoubleValue();
}

int read_int(const Napi::Object& object, const char* field, int low, int high) {
  return static_cast<int>(read_integer(object, field, low, high));
}

float read_float(const Napi::Object& object, const char* field) {
  const double value = read_number(object, field);
  if (!std::isfinite(value)) throw_argument(object.Env(), field, " is not finite");
  return static_cast<float>(value);
}

Napi::Object read_object(const Napi::Object& object, const char* field) {
  const Napi::Value value = object.Get(field);
  if (!value.IsObject()) throw_argument(object.Env(), field, " is not an object");
  return value.As<Napi::Object>();
}

Napi::Array read_array(const Napi::Object& object, const char* field) {
  const Napi::Value value = object.Get(field);
  if (!value.IsArray()) throw_argument(object.Env(), field, " is not an array");
  return value.As<Napi::Array>();
}

Napi::TypedArray read_typed(const Napi::Object& object, const char* field, napi_typedarray_type type) {
  const Napi::Value value = object.Get(field);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    throw_argument(object.Env(), field, " is not a typed array of the right kind");
  }
  return value.As<Napi::TypedArray>();
}

template <class T>
std::vector<T> read_vector(const Napi::Object& object, const char* field, napi_typedarray_type type) {
  const auto array = read_typed(object, field, type).As<Napi::TypedArrayOf<T>>();
  return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}

std::vector<int32_t> read_ints(const Napi::Object& object, const char* field) {
  return read_vector<int32_t>(object, field, napi_int32_array);
}

std::vector<float> read_floats(const Napi::Object& object, const char* field) {
  return read_vector<float>(object, field, napi_float32_array);
}

Activation read_activation(const Napi::Object& object) {
  const std::string name = read_string(object, "activation");
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  throw_argument(object.Env(), "activation ", edgeshift::quoted(name), " is not silu or gelu_tanh");
}

ModelSpec read_spec(const Napi::Object& object) {
  ModelSpec spec;
  spec.vocab = read_int(object, "vocabSize", 1, kMaxDimension);
  spec.hidden = read_int(object, "hiddenSize", 1, kMaxDimension);
  spec.layers = read_int(object, "numLayers", 1, 4096);
  spec.heads = read_int(object, "numHeads", 1, 4096);
  spec.kv_heads = read_int(object, "numKvHeads", 1, 4096);
  spec.head_dim = read_int(object, "headDim", 1, 4096);
  spec.ffn = read_int(object, "intermediateSize", 1, kMaxDimension);
  spec.norm_eps = read_float(object, "rmsNormEps");
  spec.ropes = read_ropes(object);
  spec.layer_ropes = read_ints(object, "layerRopes");
  spec.rope_interleaved = object.Get("ropeInterleaved").ToBoolean();
  spec.attention_scale = read_float(object, "attentionScale");
  spec.windows = read_ints(object, "windows");
  spec.activation = read_activation(object);
  spec.norm_offset = read_float(object, "normWeightOffset");
  spec.embedding_scale = read_float(object, "embeddingScale");
  spec.attention_softcap = read_float(object, "attentionSoftcap");
  spec.final_softcap = read_float(object, "finalSoftcap");
  spec.post_norms = object.Get("postNorms").ToBoolean();
  return spec;
}

Precision read_precision(const Napi::Object& request) {
  const std::string name = read_string(request, "precision");
  if (name == "fp16") return Precision::fp16;
  if (name == "int8") return Precision::int8;
  if (name == "int4") return Precision::int4;
  throw_argument(request.Env(), "precision ", edgeshift::quoted(name), " is not one of fp16, int8, int4");
}

KvDtype read_kv_dtype(const Napi::Object& request) {
  if (request.Get("kvCacheDtype").IsUndefined()) return KvDtype::fp16;
  const std::string name = read_string(request, "kvCacheDtype");
  if (name == "fp16") return KvDtype::fp16;
  if (name == "fp8") return KvDtype::fp8;
  if (name == "int8") return KvDtype::int8;
  throw_argument(request.Env(), "kvCacheDtype ", edgeshift::quoted(name), " is not one of fp16, fp8, int8");
}

std::vector<int64_t> read_shape(const Napi::Object& object, const std::string& slot) {
  const Napi::Array shape = read_array(object, "shape");
  if (shape.Length() == 0 || shape.Length() > 4) throw_argument(object.Env(), "shape must have 1 to 4 dimensions");
  std::vector<int64_t> out;
  for (uint32_t i = 0; i < shape.Length(); ++i) {
    const Napi::Value dim = shape.Get(i);
    const double value = dim.IsNumber() ? dim.As<Napi::Number>().DoubleValue() : -1;
    if (!(value >= 1 && value <= double(kMaxSafeInteger)) || value != std::floor(value)) {
      throw_argument(object.Env(), "shape of ", edgeshift::quoted(slot), " has a bad dimension");
    }
    out.push_back(static_cast<int64_t>(value));
  }
  return out;
}

Storage read_storage(const Napi::Object& object) {
  static constexpr std::pair<const char*, Method> kMethods[] = {
      {"plain", Method::plain}, {"gptq", Method::gptq}, {"awq", Method::awq}, {"pack-quantized", Method::pack_quantized},
      {"int-quantized", Method::int_quantized}, {"float-quantized", Method::float_quantized}};
  static constexpr std::pair<const char*, AwqVersion> kVersions[] = {
      {"gemm", AwqVersion::gemm}, {"gemv", AwqVersion::gemv}, {"gemv_fast", AwqVersion::gemv_fast}};
  auto find = [&](const auto& table, const char* field) {
    const std::string name = read_string(object, field);
    for (const auto& [known, value] : table) {
      if (name == known) return value;
    }
    throw_argument(object.Env(), field, " ", edgeshift::quoted(name), " is not known");
  };
  Storage storage;
  storage.method = find(kMethods, "method");
  if (storage.method == Method::plain) return storage;
  if (storage.method == Method::float_quantized) {
    storage.block_rows = read_int(object, "blockOutputs", 0, kMaxDimension);
    storage.block_inputs = read_int(object, "blockInputs", 0, kMaxDimension);
    return storage;
  }
  storage.group_size = read_int(object, "groupSize", 0, kMaxDimension);
  if (storage.method != Method::int_quantized) storage.bits = read_int(object, "bits", 1, 8);
  if (storage.method == Method::awq) storage.version = find(kVersions, "version");
  storage.zero_points_minus_one = object.Get("zeroPointsMinusOne").ToBoolean();
  storage.symmetric = object.Get("symmetric").ToBoolean();
  return storage;
}

constexpr std::pair<const char*, TensorBytes WeightSource::*> kRoles[] = {
    {"values", &WeightSource::values},
    {"codes", &WeightSource::codes},
    {"scales", &WeightSource::scales},
    {"zeroPoints", &WeightSource::zero_points},
    {"groupIndex", &WeightSource::group_index}};

void read_weight(const Napi::Object& object, MappedLoad& load) {
  WeightSource weight;
  weight.slot = read_string(object, "slot");
  weight.shape = read_shape(object, weight.slot);
  weight.storage = read_storage(read_object(object, "storage"));
  const Napi::Object tensors = read_object(object, "tensors");
  for (const auto& [name, role] : kRoles) {
    if (!tensors.Get(name).IsObject()) continue;
    const Napi::Object ref = read_object(tensors, name);
    TensorBytes& tensor = weight.*role;
    tensor.type = read_string(ref, "type");
    tensor.shape = read_shape(ref, weight.slot);
    tensor.bytes = static_cast<size_t>(read_integer(ref, "bytes", 1, int64_t(kMaxSafeInteger)));
    MappedLoad::Place place{load.weights.size(), role, 0, 0};
    place.file = static_cast<uint32_t>(read_integer(ref, "file", 0, int64_t(load.paths.size()) - 1));
    place.offset = static_cast<uint64_t>(read_integer(ref, "offset", 0, int64_t(kMaxSafeInteger)));
    load.places.push_back(place);
  }
  load.weights.push_back(std::move(weight));
}

std::string to_json(Napi::Env env, const std::vector<napi_value>& values) {
  const Napi::Array list = Napi::Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); ++i) list.Set(uint32_t(i), Napi::Value(env, values[i]));
  const auto json = env.Global().Get("JSON").As<Napi::Object>();
  return json.Get("stringify").As<Napi::Function>().Call(json, {list}).As<Napi::String>().Utf8Value();
}

}  // namespace

std::vector<RopeTable> read_ropes(const Napi::Object& object) {
  const Napi::Array ropes = read_array(object, "ropes");
  if (ropes.Length() > 8) throw_argument(object.Env(), "ropes has ", ropes.Length(), " tables");
  std::vector<RopeTable> out;
  for (uint32_t i = 0; i < ropes.Length(); ++i) {
    if (!ropes.Get(i).IsObject()) throw_argument(object.Env(), "ropes has an entry that is not an object");
    const Napi::Object table = read_object(ropes.Get(i).As<Napi::Object>(), "table");
    out.push_back({read_floats(table, "invFreq"), read_float(table, "scale")});
  }
  return out;
}

int64_t read_integer(const Napi::Object& object, const char* field, int64_t low, int64_t high) {
  const double value = read_number(object, field);
  if (!(value >= double(low) && value <= double(high)) || value != std::floor(value)) {
    throw_argument(object.Env(), field, " must be an integer from ", low, " to ", high);
  }
  return static_cast<int64_t>(value);
}

std::string read_string(const Napi::Object& object, const char* field) {
  const Napi::Value value = object.Get(field);
  if (!value.IsString()) throw_argument(object.Env(), field, " is not a string");
  return value.As<Napi::String>().Utf8Value();
}

MappedLoad read_load_request(const Napi::Object& request) {
  MappedLoad load;
  load.spec = read_spec(read_object(request, "spec"));
  load.reading = to_json(request.Env(), {request.Get("spec"), request.Get("weights")});
  load.options.precision = read_precision(request);
  load.options.max_slots = read_int(request, "maxSlots", 1, 65536);
  load.options.max_batch_tokens = read_int(request, "maxBatchTokens", 1, 1 << 20);
  load.options.block_size = read_int(request, "blockSize", 1, 4096);
  load.options.kv_dtype = read_kv_dtype(request);
  const Napi::Array files = read_array(request, "files");
  for (uint32_t i = 0; i < files.Length(); ++i) {
    const Napi::Value path = files.Get(i);
    if (!path.IsString()) throw_argument(request.Env(), "files has an entry that is not a string");
    load.paths.push_back(path.As<Napi::String>().Utf8Value());
  }
  const Napi::Array weights = read_array(request, "weights");
  for (uint32_t i = 0; i < weights.Length(); ++i) {
    const Napi::Value weight = weights.Get(i);
    if (!weight.IsObject()) throw_argument(request.Env(), "weights has an entry that is not an object");
    read_weight(weight.As<Napi::Object>(), load);
  }
  return load;
}

Status map_weights(MappedLoad& load) {
  for (const std::string& path : load.paths) {
    Result<MappedFile> file = MappedFile::open(path);
    if (!file.ok()) return file.status();
    file.value().read_as_told();
    load.files.push_back(std::move(file.value()));
  }
  for (const auto& [index, role, path, offset] : load.places) {
    const WeightSource& weight = load.weights[index];
    TensorBytes& tensor = load.weights[index].*role;
    const MappedFile& file = load.files[path];
    uint64_t end = 0;
    if (!checked_add(offset, tensor.bytes, end) || end > file.size()) {
      return error(Code::invalid_file, load.paths[path], ": weight ", edgeshift::quoted(weight.slot), " at byte ", offset, " (",
                   tensor.bytes, " bytes) runs past the end of the file");
    }
    tensor.data = file.data() + offset;
  }
  return Status();
}

std::string content_key(const MappedLoad& load) {
  std::string key = join(static_cast<int>(load.options.precision), "\n", load.reading);
  // Of the files that are mapped: another one may have their names by now.
  for (size_t i = 0; i < load.files.size(); ++i) {
    key += join("\n", load.paths[i], " ", load.files[i].size(), " ", load.files[i].changed());
  }
  return key;
}

KvCopy read_copy(const Napi::Object& object) {
  KvCopy copy;
  copy.to_host = object.Get("toHost").ToBoolean();
  copy.device_blocks = read_vector<uint32_t>(object, "deviceBlocks", napi_uint32_array);
  copy.host_blocks = read_vector<uint32_t>(object, "hostBlocks", napi_uint32_array);
  copy.block_bytes = static_cast<size_t>(read_integer(object, "blockBytes", 1, int64_t(1) << 40));
  return copy;
}

StepBatch read_batch(const Napi::Object& object) {
  StepBatch batch;
  batch.tokens = read_ints(object, "tokens");
  batch.seq_starts = read_ints(object, "seqStarts");
  batch.first_positions = read_ints(object, "firstPositions");
  batch.slots = read_ints(object, "slots");
  batch.block_starts = read_ints(object, "blockStarts");
  batch.blocks = read_vector<uint32_t>(object, "blocks", napi_uint32_array);
  batch.row_tokens = read_ints(object, "rowTokens");
  batch.row_seqs = read_ints(object, "rowSeqs");
  batch.row_targets = read_ints(object, "rowTargets");
  batch.row_top = read_ints(object, "rowTop");
  batch.row_masks = read_ints(object, "rowMasks");
  return batch;
}

std::vector<uint32_t> read_masks(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
    throw_argument(value.Env(), "masks is not a Uint32Array");
  }
  const auto array = value.As<Napi::Uint32Array>();
  return std::vector<uint32_t>(array.Data(), array.Data() + array.ElementLength());
}

SamplingState read_slot_state(const Napi::Object& object, int vocab) {
  const Napi::Env env = object.Env();
  SamplingState state;
  state.temperature = read_float(object, "temperature");
  state.top_k = read_int(object, "topK", -1, INT32_MAX);
  state.top_p = read_float(object, "topP");
  state.min_p = read_float(object, "minP");
  state.repetition_penalty = read_float(object, "repetitionPenalty");
  state.presence_penalty = read_float(object, "presencePenalty");
  state.frequency_penalty = read_float(object, "frequencyPenalty");
  state.seed = static_cast<uint64_t>(read_integer(object, "seed", 0, int64_t(kMaxSafeInteger)));
  state.bias_tokens = read_ints(object, "biasTokens");
  state.bias_values = read_floats(object, "biasValues");
  state.stop_tokens = read_ints(object, "stopTokens");
  state.min_tokens = read_int(object, "minTokens", 0, INT32_MAX);
  state.tokens = read_ints(object, "tokens");
  state.prompt_length = read_int(object, "promptLength", 0, static_cast<int>(state.tokens.size()));
  if (state.bias_tokens.size() != state.bias_values.size()) {
    throw_argument(env, "biasTokens and biasValues differ in length");
  }
  auto check = [&](const std::vector<int32_t>& ids, const char* field) {
    for (int32_t id : ids) {
      if (id < 0 || id >= vocab) throw_argument(env, field, " holds token ", id, ", outside the vocabulary of ", vocab);
    }
  };
  check(state.tokens, "tokens");
  check(state.bias_tokens, "biasTokens");
  check(state.stop_tokens, "stopTokens");
  return state;
}

}  // namespace edgeshift::addon
