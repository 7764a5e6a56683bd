// Every block type against values of ggml's own Python reader; then canonical form against the decoded values.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "quant/canonical.h"
#include "quant/half.h"
#include "test/check.h"

using namespace edgeshift;

namespace {

struct Golden {
  std::string name;
  int blocks = 0, bytes = 0, values = 0;
  std::vector<uint8_t> data;
  std::vector<float> floats;
};

std::vector<Golden> read_goldens(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<Golden> out;
  std::string line;
  while (std::getline(file, line)) {
    Golden g;
    std::istringstream(line) >> g.name >> g.blocks >> g.bytes >> g.values;
    g.data.resize(size_t(g.blocks) * size_t(g.bytes));
    g.floats.resize(size_t(g.blocks) * size_t(g.values));
    file.read(reinterpret_cast<char*>(g.data.data()), long(g.data.size()));
    file.read(reinterpret_cast<char*>(g.floats.data()), long(g.floats.size() * sizeof(float)));
    out.push_back(std::move(g));
  }
  return out;
}

// Values of one canonical group of 32.
float canonical_value(const CanonicalStorage& s, int i) {
  if (s.form.precision == Precision::fp16) return to_float(s.values[size_t(i)]);
  const size_t group = size_t(i / s.form.group);
  const int code = s.form.precision == Precision::int8 ? int8_t(s.codes[size_t(i)]) : s.codes[size_t(i / 2)] >> (i % 2 * 4) & 15;
  return float(code) * to_float(s.scales[group]) + (s.form.has_minimums ? to_float(s.minimums[group]) : 0.0f);
}

// Error of a form as a share of the largest magnitude of each 32 weights.
double form_error(const Golden& g, BlockType type, Precision precision) {
  const int k = g.blocks * g.values / 32 * 32;
  CanonicalStorage storage;
  const Status status = to_canonical(type, g.data.data(), 1, k, canonical_form(type, precision, k), storage);
  if (!status.ok()) return INFINITY;
  double worst = 0;
  for (int first = 0; first < k; first += 32) {
    float largest = 1e-6f;
    for (int i = first; i < first + 32; ++i) largest = std::fmax(largest, std::fabs(g.floats[size_t(i)]));
    for (int i = first; i < first + 32; ++i) {
      worst = std::fmax(worst, std::fabs(canonical_value(storage, i) - g.floats[size_t(i)]) / largest);
    }
  }
  return worst;
}

void check_type(const Golden& g) {
  Result<BlockType> type = parse_block_type(g.name);
  ES_CHECK(type.ok());
  if (!type.ok()) return;
  ES_CHECK(block_weights(type.value()) == g.values && block_bytes(type.value()) == g.bytes);
  std::vector<float> out(g.floats.size());
  ES_CHECK(dequantize_rows(type.value(), g.data.data(), g.blocks, g.values, out.data()).ok());
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::memcmp(&out[i], &g.floats[i], sizeof(float)) == 0 || out[i] == g.floats[i]) continue;
    std::printf("%s: weight %zu is %.9g, not %.9g\n", g.name.c_str(), i, double(out[i]), double(g.floats[i]));
    return test::report(__FILE__, __LINE__, g.name + " is not exact");
  }
  const double int8 = form_error(g, type.value(), Precision::int8), int4 = form_error(g, type.value(), Precision::int4);
  std::printf("%-8s %5zu values exact; int8 off by %.5f, int4 by %.5f of 32 weights' largest\n", g.name.c_str(), out.size(), int8, int4);
  // Kept codes lose the rounding of their scales to binary16 (relative to terms that may cancel), others half a step.
  ES_CHECK(int8 < (fits_exactly(type.value(), Precision::int8) ? 0.004 : 0.0045));
  ES_CHECK(int4 < (fits_exactly(type.value(), Precision::int4) ? 0.004 : 0.2));
}

// A scale that is not finite, in every type that has one in binary16.
void refuses_bad_scales(const Golden& g) {
  const BlockType type = parse_block_type(g.name).value();
  std::vector<uint8_t> data(g.data.begin(), g.data.begin() + g.bytes * (g.values == 1 ? 32 : 1));
  if (g.name == "mxfp4" || g.name == "nvfp4" || g.name == "f32") return;
  for (size_t i = 1; i < data.size(); i += 2) data[i] = data[i - 1] = 0xff;
  for (Precision precision : {Precision::fp16, Precision::int8, Precision::int4}) {
    const int k = g.values == 1 ? 32 : g.values;
    CanonicalStorage storage;
    const Status status = to_canonical(type, data.data(), 1, k, canonical_form(type, precision, k), storage);
    if (status.code() != Code::invalid_file) test::report(__FILE__, __LINE__, g.name + " with NaN scales is taken");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Golden> goldens = argc > 1 ? read_goldens(std::string(argv[1]) + "/ggml-blocks/blocks.bin") : std::vector<Golden>();
  ES_CHECK(goldens.size() == 25);
  for (const Golden& golden : goldens) {
    check_type(golden);
    refuses_bad_scales(golden);
  }
  return test::failures ? 1 : 0;
}
