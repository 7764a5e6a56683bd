// Where weights and KV blocks are kept beside a device's memory, the same checks for every backend: repacked files and swap
// memory give back exactly what was put there.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "loader/packed_file.h"
#include "test/tiny_model.h"

namespace edgeshift::test {

// Log probabilities of the whole vocabulary after a prompt, as bits.
inline std::vector<int32_t> scores(Model& model, int vocab, std::vector<int32_t> tokens, int first = 0) {
  if (first == 0) {
    SamplingState state;
    state.tokens = tokens;
    ES_CHECK(model.set_slot(0, state).ok());
  }
  StepResult result;
  const Status status = model.step(scoring_batch(model, vocab, tokens, first), result);
  if (!status.ok()) report(__FILE__, __LINE__, status.message());
  std::vector<int32_t> bits;
  for (const SampleRow& row : result.rows) bits.push_back(std::bit_cast<int32_t>(row.logprob));
  return bits;
}

inline Status save(Model& model, const std::string& path, const std::string& key) {
  auto piece = [&](size_t offset, size_t bytes) { return model.packed_piece(offset, bytes); };
  return write_packed_file(path, {key, model.packed_bytes(), model.rounding()}, piece, [] { return false; });
}

inline std::unique_ptr<Model> load_packed(Backend& backend, const Net& net, Precision precision, PackedSource& packed) {
  LoadOptions options{precision, 4, 64, kBlock, {}};
  options.packed = &packed;
  auto model = backend.load(net.spec, net.sources(), options);
  ES_CHECK(model.ok());
  return model.ok() ? std::move(model.value()) : nullptr;
}

// A model whose matrices come from its repacked file computes the same, though the files now hold zeros; a damaged file
// is found, and then the files count.
inline void comes_back_from_a_packed_file(Backend& backend) {
  const std::string path = std::filesystem::temp_directory_path() / ("es-packed-" + std::to_string(std::random_device()()));
  const Net net = make_net({.bias = true, .qk_norm = true, .head_dim = 64, .rotary = 64});
  Net blank = net;
  for (auto& [slot, tensor] : blank.tensors) {
    if (tensor.shape.size() == 2) std::ranges::fill(tensor.values, 0.0f);
  }
  for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
    auto first = load(backend, net, net.sources(), precision);
    if (!first) return;
    const std::vector<int32_t> expected = scores(*first, net.spec.vocab, {3, 4, 5});
    ES_CHECK(save(*first, path, "key").ok());
    for (bool damaged : {false, true}) {
      if (damaged) std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).put('\xa5');
      PackedSource packed;
      Result<PackedFile> file = PackedFile::open(path, "key");
      ES_CHECK(file.ok());
      if (!file.ok()) return;
      packed.file = std::move(file.value());
      auto second = load_packed(backend, blank, precision, packed);
      if (!second) return;
      ES_CHECK(packed.fault.ok() == !damaged);
      ES_CHECK(second->origin() == (damaged ? Origin::files : Origin::packed_file));
      ES_CHECK((scores(*second, net.spec.vocab, {3, 4, 5}) == expected) == !damaged);
      ES_CHECK(second->weight_bytes() == first->weight_bytes());
      if (!damaged) ES_CHECK(second->rounding().error == first->rounding().error);
    }
    ES_CHECK(PackedFile::open(path, "other key").status().code() == Code::invalid_file);
    std::filesystem::remove(path);
  }
}

// Blocks that were copied out and overwritten are, copied in to other places, what they were.
inline void copies_blocks(Backend& backend, size_t swap_bytes) {
  const Net net = make_net({});
  auto model = load(backend, net, net.sources(), Precision::fp16);
  if (!model) return;
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 40; ++i) prompt.push_back(i);
  const std::vector<int32_t> undisturbed = (scores(*model, net.spec.vocab, prompt), scores(*model, net.spec.vocab, {41}, 40));
  scores(*model, net.spec.vocab, prompt);
  const uint32_t units = uint32_t(model->block_bytes() / kKvUnitBytes);
  // scoring_batch has the blocks of a sequence at 20, 19, 18, ...
  KvCopy copy{true, {20 * units, 19 * units, 18 * units}, {0, 2 * units, units}, model->block_bytes()};
  StepResult result;
  auto run = [&] {
    auto pending = backend.copy_kv(copy);
    ES_CHECK(pending.ok());
    if (pending.ok()) ES_CHECK(pending.value()->wait(result).ok());
  };
  run();
  std::vector<int32_t> other(prompt.rbegin(), prompt.rend());
  scores(*model, net.spec.vocab, other);
  copy.to_host = false;
  run();
  SamplingState state;
  prompt.push_back(41);
  state.tokens = prompt;
  ES_CHECK(model->set_slot(0, state).ok());
  ES_CHECK(scores(*model, net.spec.vocab, {41}, 40) == undisturbed);
  copy.host_blocks[2] = uint32_t(swap_bytes / kKvUnitBytes) - units + 1;
  ES_CHECK(backend.copy_kv(copy).status().code() == Code::invalid_argument);
  copy.host_blocks.pop_back();
  ES_CHECK(backend.copy_kv(copy).status().code() == Code::invalid_argument);
  copy = {true, {uint32_t(1) << 31}, {0}, model->block_bytes()};
  ES_CHECK(backend.copy_kv(copy).status().code() == Code::invalid_argument);
}

}  // namespace edgeshift::test
