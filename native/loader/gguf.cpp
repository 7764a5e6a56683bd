#include "loader/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <unordered_set>

#include "core/checked.h"
#include "core/text.h"

namespace edgeshift {

namespace {

constexpr uint32_t kMagic = 0x46554747;      // "GGUF"
constexpr uint64_t kMaxKeyBytes = 65535;     // limits named by the format
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxRank = 4;
constexpr int kMaxNesting = 8;
constexpr uint64_t kMinEntryBytes = 8 + 4 + 1;           // key length, value type, smallest value
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;  // name length, rank, one dimension, type, offset

template <class T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

class Parser {
 public:
  Parser(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  Status run(GgufFile& file) {
    uint64_t tensors = 0, entries = 0;
    ES_RETURN_IF_ERROR(header(file, tensors, entries));
    ES_RETURN_IF_ERROR(metadata(entries, file.metadata));
    ES_RETURN_IF_ERROR(alignment(file));
    ES_RETURN_IF_ERROR(tensor_infos(tensors, file.alignment, file.tensors));
    ES_RETURN_IF_ERROR(place_tensors(file));
    return check_overlap(file.tensors);
  }

 private:
  uint64_t remaining() const { return size_ - at_; }

  template <class... Parts>
  Status invalid(uint64_t place, const Parts&... parts) const {
    return error(Code::invalid_file, "byte ", place, ": ", parts...);
  }

  template <class T>
  Status read(T& out, const std::string& what) {
    if (remaining() < sizeof(T)) return invalid(at_, what, " is cut off: the file ends at byte ", size_);
    out = load<T>(data_ + at_);
    at_ += sizeof(T);
    return Status();
  }

  Status read_string(std::string_view& out, uint64_t limit, const std::string& what) {
    const uint64_t place = at_;
    uint64_t length = 0;
    ES_RETURN_IF_ERROR(read(length, what + " (length)"));
    if (length > remaining()) {
      return invalid(place, what, " claims ", length, " bytes, but only ", remaining(), " follow");
    }
    if (length > limit) return invalid(place, what, " has ", length, " bytes; the limit is ", limit);
    out = std::string_view(reinterpret_cast<const char*>(data_ + at_), length);
    at_ += length;
    if (!valid_utf8(out)) return invalid(place, what, " is not valid UTF-8");
    return Status();
  }

  Status header(GgufFile& file, uint64_t& tensors, uint64_t& entries) {
    uint32_t magic = 0;
    ES_RETURN_IF_ERROR(read(magic, "the magic number"));
    if (magic != kMagic) return invalid(0, "not a GGUF file: it does not start with \"GGUF\"");
    ES_RETURN_IF_ERROR(read(file.version, "the version"));
    if (file.version != 0 && (file.version & 0xffff) == 0) return invalid(4, "big-endian GGUF files are not supported");
    if (file.version != 2 && file.version != 3) {
      return invalid(4, "GGUF version ", file.version, " is not supported; versions 2 and 3 are");
    }
    ES_RETURN_IF_ERROR(read(tensors, "the tensor count"));
    ES_RETURN_IF_ERROR(read(entries, "the metadata count"));
    if (tensors > remaining() / kMinTensorBytes) {
      return invalid(8, "claims ", tensors, " tensors, more than the ", remaining(), " bytes that follow can hold");
    }
    if (entries > remaining() / kMinEntryBytes) {
      return invalid(16, "claims ", entries, " metadata entries, more than the ", remaining(),
                     " bytes that follow can hold");
    }
    return Status();
  }

  Status metadata(uint64_t count, std::vector<GgufEntry>& out) {
    std::unordered_set<std::string_view> keys;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t place = at_;
      GgufEntry entry;
      ES_RETURN_IF_ERROR(read_string(entry.key, kMaxKeyBytes, join("key of metadata entry ", i)));
      if (entry.key.empty()) return invalid(place, "key of metadata entry ", i, " is empty");
      if (!keys.insert(entry.key).second) return invalid(place, "metadata key ", quoted(entry.key), " occurs twice");
      ES_RETURN_IF_ERROR(value(entry.value, "metadata " + quoted(entry.key)));
      out.push_back(std::move(entry));
    }
    return Status();
  }

  Status read_type(GgufType& out, const std::string& what) {
    const uint64_t place = at_;
    uint32_t id = 0;
    ES_RETURN_IF_ERROR(read(id, what + " (type)"));
    if (id > static_cast<uint32_t>(GgufType::f64)) return invalid(place, what, " has unknown value type ", id);
    out = static_cast<GgufType>(id);
    return Status();
  }

  Status value(GgufValue& out, const std::string& what) {
    ES_RETURN_IF_ERROR(read_type(out.type, what));
    if (out.type == GgufType::string) return read_string(out.text, size_, what);
    if (out.type == GgufType::array) return array(out, what, 1);
    const size_t bytes = gguf_element_bytes(out.type);
    if (remaining() < bytes) return invalid(at_, what, " is cut off: the file ends at byte ", size_);
    ES_RETURN_IF_ERROR(check_elements(out.type, 1, what));
    out.number = gguf_number(out.type, data_ + at_);
    at_ += bytes;
    return Status();
  }

  // `at_` stands after the word that says "array".
  Status array(GgufValue& out, const std::string& what, int depth) {
    const uint64_t place = at_;
    if (depth > kMaxNesting) return invalid(place, what, " nests arrays more than ", kMaxNesting, " deep");
    ES_RETURN_IF_ERROR(read_type(out.element, what));
    ES_RETURN_IF_ERROR(read(out.count, what + " (array length)"));
    const bool nested = out.element == GgufType::array;
    const uint64_t least = nested ? 12 : out.element == GgufType::string ? 8 : gguf_element_bytes(out.element);
    if (out.count > remaining() / least) {
      return invalid(place, what, " claims an array of ", out.count, " elements, more than the ", remaining(),
                     " bytes that follow can hold");
    }
    if (nested) return nested_arrays(out, what, depth);
    if (out.element == GgufType::string) return string_array(out, what);
    ES_RETURN_IF_ERROR(check_elements(out.element, out.count, what));
    out.elements = data_ + at_;
    at_ += out.count * least;
    return Status();
  }

  Status nested_arrays(GgufValue& out, const std::string& what, int depth) {
    for (uint64_t i = 0; i < out.count; ++i) {
      GgufValue item;
      item.type = GgufType::array;
      ES_RETURN_IF_ERROR(array(item, what, depth + 1));
      out.items.push_back(std::move(item));
    }
    return Status();
  }

  Status string_array(GgufValue& out, const std::string& what) {
    out.strings.reserve(out.count);
    for (uint64_t i = 0; i < out.count; ++i) {
      std::string_view text;
      if (Status s = read_string(text, size_, what); !s.ok()) {
        return error(s.code(), s.message(), " (element ", i, ")");
      }
      out.strings.push_back(text);
    }
    return Status();
  }

  // Booleans are 0 or 1; 64-bit integers are exact as a JavaScript number.
  Status check_elements(GgufType type, uint64_t count, const std::string& what) const {
    const uint8_t* p = data_ + at_;
    for (uint64_t i = 0; i < count; ++i) {
      if (type == GgufType::boolean && p[i] > 1) {
        return invalid(at_ + i, what, " is a boolean with value ", unsigned(p[i]));
      }
      const bool exact = type == GgufType::u64   ? load<uint64_t>(p + 8 * i) <= kMaxSafeInteger
                         : type == GgufType::i64 ? safe_signed(load<int64_t>(p + 8 * i))
                                                 : true;
      if (!exact) return invalid(at_ + 8 * i, what, " is a 64-bit integer beyond 2^53");
      if (type != GgufType::boolean && type != GgufType::u64 && type != GgufType::i64) break;
    }
    return Status();
  }

  static bool safe_signed(int64_t v) { return v <= int64_t(kMaxSafeInteger) && v >= -int64_t(kMaxSafeInteger); }

  Status alignment(GgufFile& file) const {
    for (const GgufEntry& entry : file.metadata) {
      if (entry.key != "general.alignment") continue;
      if (entry.value.type != GgufType::u32) {
        return error(Code::invalid_file, "metadata \"general.alignment\" is not an unsigned 32-bit integer");
      }
      file.alignment = static_cast<uint64_t>(entry.value.number);
    }
    const uint64_t a = file.alignment;
    if (a == 0 || (a & (a - 1)) != 0) {
      return error(Code::invalid_file, "metadata \"general.alignment\" is ", a, ", not a power of two");
    }
    if (a > size_ && a != 32) {
      return error(Code::invalid_file, "metadata \"general.alignment\" is ", a, ", more than the file's ", size_,
                   " bytes");
    }
    return Status();
  }

  Status tensor_infos(uint64_t count, uint64_t align, std::vector<GgufTensor>& out) {
    std::unordered_set<std::string_view> names;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t place = at_;
      GgufTensor tensor;
      ES_RETURN_IF_ERROR(read_string(tensor.name, kMaxTensorNameBytes, join("name of tensor ", i)));
      if (tensor.name.empty()) return invalid(place, "name of tensor ", i, " is empty");
      const std::string what = "tensor " + quoted(tensor.name);
      if (!names.insert(tensor.name).second) return invalid(place, what, " occurs twice");
      ES_RETURN_IF_ERROR(read_shape(tensor, what));
      ES_RETURN_IF_ERROR(read_tensor_type(tensor, what));
      ES_RETURN_IF_ERROR(tensor_bytes(tensor, what));
      ES_RETURN_IF_ERROR(read(tensor.offset, what + " (offset)"));
      if (tensor.offset % align != 0) {
        return invalid(at_ - 8, what, " has offset ", tensor.offset, ", not a multiple of the alignment ", align);
      }
      out.push_back(tensor);
    }
    return Status();
  }

  Status read_shape(GgufTensor& tensor, const std::string& what) {
    const uint64_t place = at_;
    ES_RETURN_IF_ERROR(read(tensor.rank, what + " (number of dimensions)"));
    if (tensor.rank == 0 || tensor.rank > kMaxRank) {
      return invalid(place, what, " has ", tensor.rank, " dimensions; 1 to ", kMaxRank, " are allowed");
    }
    for (uint32_t d = 0; d < tensor.rank; ++d) {
      ES_RETURN_IF_ERROR(read(tensor.dims[d], join(what, " (dimension ", d, ")")));
      if (tensor.dims[d] == 0) return invalid(at_ - 8, what, " has dimension ", d, " = 0");
      if (tensor.dims[d] > kMaxSafeInteger) {
        return invalid(at_ - 8, what, " has an absurd dimension ", d, " = ", tensor.dims[d]);
      }
    }
    return Status();
  }

  Status read_tensor_type(GgufTensor& tensor, const std::string& what) {
    const uint64_t place = at_;
    uint32_t id = 0;
    ES_RETURN_IF_ERROR(read(id, what + " (type)"));
    tensor.type = find_tensor_type(id);
    if (tensor.type == nullptr) return invalid(place, what, " has unknown or removed type ", id);
    if (tensor.dims[0] % tensor.type->block != 0) {
      return invalid(place, what, " has rows of ", tensor.dims[0], " values, not a multiple of the block size ",
                     tensor.type->block, " of ", tensor.type->name);
    }
    return Status();
  }

  Status tensor_bytes(GgufTensor& tensor, const std::string& what) const {
    uint64_t bytes = tensor.dims[0] / tensor.type->block;
    bool fits = checked_mul(bytes, tensor.type->bytes, bytes);
    for (uint32_t d = 1; d < tensor.rank; ++d) fits = fits && checked_mul(bytes, tensor.dims[d], bytes);
    if (!fits || bytes > size_) {
      return invalid(at_, what, " has a shape whose data are larger than the file (", size_, " bytes)");
    }
    tensor.bytes = bytes;
    return Status();
  }

  // Turns offsets in the data section into offsets in the file.
  Status place_tensors(GgufFile& file) const {
    const uint64_t start = (at_ + file.alignment - 1) / file.alignment * file.alignment;
    for (GgufTensor& tensor : file.tensors) {
      uint64_t begin = 0, end = 0;
      if (!checked_add(start, tensor.offset, begin) || !checked_add(begin, tensor.bytes, end) || end > size_) {
        return error(Code::invalid_file, "tensor ", quoted(tensor.name), ": its ", tensor.bytes, " bytes at offset ",
                     tensor.offset, " of the data section (byte ", start, ") run past the end of the file (", size_,
                     " bytes)");
      }
      tensor.offset = begin;
    }
    return Status();
  }

  static Status check_overlap(const std::vector<GgufTensor>& tensors) {
    std::vector<const GgufTensor*> order;
    order.reserve(tensors.size());
    for (const GgufTensor& tensor : tensors) order.push_back(&tensor);
    std::sort(order.begin(), order.end(), [](auto a, auto b) { return a->offset < b->offset; });
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = *order[i - 1];
      if (before.offset + before.bytes <= order[i]->offset) continue;
      return error(Code::invalid_file, "byte ", order[i]->offset, ": tensors ", quoted(before.name), " and ",
                   quoted(order[i]->name), " overlap");
    }
    return Status();
  }

  const uint8_t* data_;
  uint64_t size_;
  uint64_t at_ = 0;
};

}  // namespace

size_t gguf_element_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean: return 1;
    case GgufType::u16:
    case GgufType::i16: return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32: return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64: return 8;
    case GgufType::string:
    case GgufType::array: return 0;
  }
  return 0;
}

double gguf_number(GgufType type, const uint8_t* p) {
  switch (type) {
    case GgufType::u8:
    case GgufType::boolean: return *p;
    case GgufType::i8: return load<int8_t>(p);
    case GgufType::u16: return load<uint16_t>(p);
    case GgufType::i16: return load<int16_t>(p);
    case GgufType::u32: return load<uint32_t>(p);
    case GgufType::i32: return load<int32_t>(p);
    case GgufType::f32: return load<float>(p);
    case GgufType::u64: return static_cast<double>(load<uint64_t>(p));
    case GgufType::i64: return static_cast<double>(load<int64_t>(p));
    case GgufType::f64: return load<double>(p);
    case GgufType::string:
    case GgufType::array: return 0;
  }
  return 0;
}

Result<GgufFile> parse_gguf(const uint8_t* data, size_t size) {
  GgufFile file;
  Parser parser(data, size);
  if (Status status = parser.run(file); !status.ok()) return status;
  return file;
}

}  // namespace edgeshift
