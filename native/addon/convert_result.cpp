#include <algorithm>
#include <cstring>

#include "addon/convert.h"

namespace edgeshift::addon {

namespace {

template <class T>
Napi::TypedArrayOf<T> packed(Napi::Env env, const GgufValue& value) {
  auto array = Napi::TypedArrayOf<T>::New(env, value.count);
  if (value.count > 0) std::memcpy(array.Data(), value.elements, value.count * sizeof(T));
  return array;
}

Napi::Value to_value(Napi::Env env, const GgufValue& value);

// Booleans and 64-bit integers have no typed array that holds numbers: plain arrays.
Napi::Value plain_array(Napi::Env env, const GgufValue& value) {
  Napi::Array array = Napi::Array::New(env, value.count);
  const size_t width = gguf_element_bytes(value.element);
  for (uint64_t i = 0; i < value.count; ++i) {
    const double number = gguf_number(value.element, value.elements + i * width);
    const auto index = static_cast<uint32_t>(i);
    if (value.element == GgufType::boolean) {
      array.Set(index, Napi::Boolean::New(env, number != 0));
    } else {
      array.Set(index, Napi::Number::New(env, number));
    }
  }
  return array;
}

Napi::Value to_array(Napi::Env env, const GgufValue& value) {
  switch (value.element) {
    case GgufType::u8: return packed<uint8_t>(env, value);
    case GgufType::i8: return packed<int8_t>(env, value);
    case GgufType::u16: return packed<uint16_t>(env, value);
    case GgufType::i16: return packed<int16_t>(env, value);
    case GgufType::u32: return packed<uint32_t>(env, value);
    case GgufType::i32: return packed<int32_t>(env, value);
    case GgufType::f32: return packed<float>(env, value);
    case GgufType::f64: return packed<double>(env, value);
    case GgufType::boolean:
    case GgufType::u64:
    case GgufType::i64: return plain_array(env, value);
    default: break;
  }
  const bool text = value.element == GgufType::string;
  Napi::Array array = Napi::Array::New(env, value.count);
  for (uint32_t i = 0; i < value.count; ++i) {
    Napi::HandleScope scope(env);
    if (text) {
      array.Set(i, Napi::String::New(env, value.strings[i].data(), value.strings[i].size()));
    } else {
      array.Set(i, to_value(env, value.items[i]));
    }
  }
  return array;
}

Napi::Value to_value(Napi::Env env, const GgufValue& value) {
  switch (value.type) {
    case GgufType::string: return Napi::String::New(env, value.text.data(), value.text.size());
    case GgufType::boolean: return Napi::Boolean::New(env, value.number != 0);
    case GgufType::array: return to_array(env, value);
    default: return Napi::Number::New(env, value.number);
  }
}

Napi::Object to_object(Napi::Env env, const GgufTensor& tensor) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("name", Napi::String::New(env, tensor.name.data(), tensor.name.size()));
  object.Set("type", Napi::String::New(env, tensor.type->name.data(), tensor.type->name.size()));
  Napi::Array shape = Napi::Array::New(env, tensor.rank);
  for (uint32_t i = 0; i < tensor.rank; ++i) {
    shape.Set(i, Napi::Number::New(env, static_cast<double>(tensor.dims[tensor.rank - 1 - i])));
  }
  object.Set("shape", shape);
  object.Set("offset", Napi::Number::New(env, static_cast<double>(tensor.offset)));
  object.Set("bytes", Napi::Number::New(env, static_cast<double>(tensor.bytes)));
  return object;
}

// An object without a prototype: a key of the file must not be taken for a member of Object.prototype.
Napi::Object bare_object(Napi::Env env) {
  const auto create = env.Global().Get("Object").As<Napi::Object>().Get("create").As<Napi::Function>();
  return create.Call({env.Null()}).As<Napi::Object>();
}

}  // namespace

Napi::Object to_object(Napi::Env env, const GgufFile& file) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("version", Napi::Number::New(env, file.version));
  Napi::Object metadata = bare_object(env);
  for (const GgufEntry& entry : file.metadata) {
    Napi::HandleScope scope(env);
    metadata.Set(Napi::String::New(env, entry.key.data(), entry.key.size()), to_value(env, entry.value));
  }
  object.Set("metadata", metadata);
  Napi::Array tensors = Napi::Array::New(env, file.tensors.size());
  for (uint32_t i = 0; i < file.tensors.size(); ++i) {
    Napi::HandleScope scope(env);
    tensors.Set(i, to_object(env, file.tensors[i]));
  }
  object.Set("tensors", tensors);
  return object;
}

Napi::Object to_object(Napi::Env env, const StepResult& result, const StepBatch& batch) {
  const size_t rows = result.rows.size();
  const auto top = std::max_element(batch.row_top.begin(), batch.row_top.end());
  const size_t max_top = rows == 0 ? 0 : static_cast<size_t>(std::max(0, *top));
  const size_t scored = rows == 0 || *top < 0 ? 0 : rows;
  auto tokens = Napi::Int32Array::New(env, rows);
  auto logprobs = Napi::Float32Array::New(env, scored);
  auto ranks = Napi::Int32Array::New(env, scored);
  auto top_tokens = Napi::Int32Array::New(env, rows * max_top);
  auto top_logprobs = Napi::Float32Array::New(env, rows * max_top);
  std::fill_n(top_tokens.Data(), rows * max_top, -1);
  for (size_t r = 0; r < rows; ++r) {
    const SampleRow& row = result.rows[r];
    tokens[r] = row.token;
    if (scored != 0) {
      logprobs[r] = row.logprob;
      ranks[r] = row.rank;
    }
    for (size_t i = 0; i < row.top_tokens.size() && i < max_top; ++i) {
      top_tokens[r * max_top + i] = row.top_tokens[i];
      top_logprobs[r * max_top + i] = row.top_logprobs[i];
    }
  }
  Napi::Object object = Napi::Object::New(env);
  object.Set("tokens", tokens);
  object.Set("logprobs", logprobs);
  object.Set("ranks", ranks);
  object.Set("topTokens", top_tokens);
  object.Set("topLogprobs", top_logprobs);
  object.Set("deviceMicros", Napi::Number::New(env, static_cast<double>(result.device_micros)));
  return object;
}

}  // namespace edgeshift::addon
