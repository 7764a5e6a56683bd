#include "loader/gguf.h"

#include <functional>
#include <string>

#include "loader/mapped_file.h"
#include "test/check.h"
#include "test/gguf_builder.h"

using namespace edgeshift;
using test::GgufBuilder;

namespace {

void expect_error(const std::vector<uint8_t>& bytes, const std::string& part) {
  Result<GgufFile> result = parse_gguf(bytes.data(), bytes.size());
  if (result.ok()) return test::report(__FILE__, __LINE__, "accepted; wanted an error with: " + part);
  const std::string message = result.status().message();
  ES_CHECK(result.status().code() == Code::invalid_file);
  if (message.find(part) == std::string::npos) test::report(__FILE__, __LINE__, message + "\n  wanted: " + part);
}

void reads_a_valid_file() {
  const auto bytes = test::sample_gguf();
  Result<GgufFile> result = parse_gguf(bytes.data(), bytes.size());
  if (!result.ok()) return test::report(__FILE__, __LINE__, result.status().message());
  const GgufFile& file = result.value();
  ES_CHECK(file.version == 3);
  ES_CHECK(file.metadata.size() == 8);
  ES_CHECK(file.metadata[0].value.text == "llama");
  ES_CHECK(file.metadata[2].value.number == double(1ull << 40));
  ES_CHECK(file.metadata[5].value.strings[1] == "\xc3\xa9");
  ES_CHECK(gguf_number(GgufType::f32, file.metadata[6].value.elements + 4) == -2);
  ES_CHECK(gguf_number(GgufType::i32, file.metadata[7].value.items[0].elements) == -3);
  ES_CHECK(file.metadata[7].value.items[1].strings[0] == "deep");
  ES_CHECK(file.tensors[0].bytes == 36 && file.tensors[0].type->name == "q4_0");
  ES_CHECK(file.tensors[1].offset == file.tensors[0].offset + 64);
  ES_CHECK(file.tensors[1].offset + file.tensors[1].bytes == bytes.size());
}

void refuses_every_truncation() {
  const auto bytes = test::sample_gguf();
  for (size_t n = 0; n < bytes.size(); ++n) {
    // A copy of exact size: the address sanitizer sees a read past its end.
    std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + n);
    ES_CHECK(!parse_gguf(cut.data(), cut.size()).ok());
  }
}

void names_the_place_and_the_reason() {
  expect_error(GgufBuilder().header(0, 0, 1).bytes, "version 1 is not supported");
  expect_error(GgufBuilder().header(0, 0, 0x03000000).bytes, "big-endian");
  expect_error(GgufBuilder().header(uint64_t(1) << 60, 0).bytes, "byte 8: claims 1152921504606846976 tensors");
  expect_error(GgufBuilder().header(0, uint64_t(1) << 61).bytes, "byte 16: claims");
  expect_error(GgufBuilder().header(0, 1).key("k", GgufType::u64).put<uint64_t>(1ull << 53).bytes,
               "metadata \"k\" is a 64-bit integer beyond 2^53");
  expect_error(GgufBuilder().header(0, 1).array("k", GgufType::i64, 1).put<int64_t>(INT64_MIN).bytes, "beyond 2^53");
  expect_error(GgufBuilder().header(0, 1).key("k", GgufType::boolean).put<uint8_t>(2).bytes, "boolean with value 2");
  expect_error(GgufBuilder().header(0, 1).array("k", GgufType::f32, 1ull << 62).put<uint64_t>(0).bytes,
               "claims an array of 4611686018427387904 elements");
  expect_error(GgufBuilder().header(0, 1).key("k", GgufType::string).text("\xed\xa0\x80").bytes, "not valid UTF-8");
}

void refuses_bad_tensors() {
  auto one = [](std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    return GgufBuilder().header(1, 0).tensor("w", dims, type, offset).data(64).bytes;
  };
  expect_error(one({4, 0}, 0, 0), "tensor \"w\" has dimension 1 = 0");
  expect_error(one({1, 1, 1, 1, 1}, 0, 0), "5 dimensions");
  expect_error(one({}, 0, 0), "0 dimensions");
  expect_error(one({33}, 2, 0), "not a multiple of the block size 32 of q4_0");
  expect_error(one({4}, 4, 0), "removed type 4");
  expect_error(one({4}, 0, 8), "not a multiple of the alignment 32");
  expect_error(one({17}, 0, 0), "past the end");
  expect_error(one({1ull << 32, 1ull << 32}, 0, 0), "larger than the file");
  expect_error(one({4}, 0, ~uint64_t(31)), "past the end");
  expect_error(GgufBuilder().header(2, 0).tensor("a", {16}, 0, 0).tensor("b", {4}, 0, 32).data(64).bytes, "overlap");
  expect_error(GgufBuilder().header(2, 0).tensor("a", {4}, 0, 0).tensor("a", {4}, 0, 32).data(64).bytes,
               "tensor \"a\" occurs twice");
  expect_error(GgufBuilder().header(1, 0).tensor(std::string(65, 'n'), {4}, 0, 0).data(64).bytes, "the limit is 64");
}

void maps_regular_files_only() {
  ES_CHECK(MappedFile::open("/nonexistent/file").status().code() == Code::io_error);
  ES_CHECK(MappedFile::open("/").status().code() == Code::invalid_file);
  ES_CHECK(MappedFile::open("/dev/null").status().code() == Code::invalid_file);
}

}  // namespace

int main() {
  reads_a_valid_file();
  refuses_every_truncation();
  names_the_place_and_the_reason();
  refuses_bad_tensors();
  maps_regular_files_only();
  return test::failures == 0 ? 0 : 1;
}
