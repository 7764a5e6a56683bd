#include "cpu/sample_kernels.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace edgeshift::cpu {

namespace {

// One row on its way through the steps of ops/sample.h.
struct Row {
  const SampleKernels& kernels;
  float* logits;
  int vocab;
  const SamplingState& state;
  const uint32_t* mask;  // null = none
};

// How often each token occurs; reused from row to row by each thread.
struct Counts {
  std::vector<int32_t> in_output;  // [vocab], zero between rows
  std::vector<uint8_t> seen;       // [vocab], zero between rows
};

bool in_vocab(const Row& row, int32_t token) { return token >= 0 && token < row.vocab; }

void count_tokens(const Row& row, Counts& counts) {
  counts.in_output.resize(std::max(counts.in_output.size(), size_t(row.vocab)));
  counts.seen.resize(std::max(counts.seen.size(), size_t(row.vocab)));
  const std::vector<int32_t>& tokens = row.state.tokens;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (in_vocab(row, tokens[i]) && i >= size_t(row.state.prompt_length)) ++counts.in_output[size_t(tokens[i])];
  }
}

void penalize_token(const Row& row, int32_t token, int32_t in_output) {
  float& logit = row.logits[token];
  float repetition = row.state.repetition_penalty;
  logit = logit > 0 ? logit / repetition : logit * repetition;
  if (in_output > 0) logit -= row.state.presence_penalty + row.state.frequency_penalty * float(in_output);
}

void penalize(const Row& row) {
  const SamplingState& s = row.state;
  if (s.repetition_penalty == 1 && s.presence_penalty == 0 && s.frequency_penalty == 0) return;
  static thread_local Counts counts;
  count_tokens(row, counts);
  for (int32_t token : s.tokens) {
    if (!in_vocab(row, token) || counts.seen[size_t(token)]) continue;
    counts.seen[size_t(token)] = 1;
    penalize_token(row, token, counts.in_output[size_t(token)]);
  }
  for (int32_t token : s.tokens) {
    if (in_vocab(row, token)) counts.in_output[size_t(token)] = counts.seen[size_t(token)] = 0;
  }
}

void bias(const Row& row) {
  const SamplingState& s = row.state;
  for (size_t i = 0; i < s.bias_tokens.size() && i < s.bias_values.size(); ++i) {
    if (in_vocab(row, s.bias_tokens[i])) row.logits[s.bias_tokens[i]] += s.bias_values[i];
  }
  if (int64_t(s.tokens.size()) - s.prompt_length >= s.min_tokens) return;
  for (int32_t token : s.stop_tokens) {
    if (in_vocab(row, token)) row.logits[token] = -INFINITY;
  }
}

void mask(const Row& row) {
  if (!row.mask) return;
  for (int begin = 0; begin < row.vocab; begin += 32) {
    const uint32_t allowed = row.mask[begin / 32];
    if (allowed == ~0u) continue;
    const int size = std::min(32, row.vocab - begin);
    float* logits = row.logits + begin;
    if (allowed == 0) std::fill_n(logits, size, -INFINITY);
    else for (int i = 0; i < size; ++i) logits[i] = allowed >> i & 1 ? logits[i] : -INFINITY;
  }
}

double mass(const std::vector<Candidate>& c, size_t begin, size_t end, float top) {
  double total = 0;
  for (size_t i = begin; i < end; ++i) total += std::exp(double(c[i].value) - top);
  return total;
}

// The length of the shortest prefix, in the order of before(), that holds `wanted` of sum exp(value - top).
// Selection by halves: only the part that the border lies in is ordered further.
size_t nucleus(std::vector<Candidate>& c, float top, double wanted) {
  double kept = 0;
  size_t low = 0, high = c.size();  // the border lies in (low, high]
  while (high - low > 1) {
    size_t middle = low + (high - low) / 2;
    std::nth_element(c.begin() + int64_t(low), c.begin() + int64_t(middle), c.begin() + int64_t(high), before);
    double left = mass(c, low, middle, top);
    if (kept + left >= wanted) {
      high = middle;
    } else {
      low = middle;
      kept += left;
    }
  }
  return high;
}

void collect(const Row& row, float limit, std::vector<Candidate>& c) {
  c.resize(size_t(row.vocab));
  c.resize(size_t(row.kernels.collect(row.logits, row.vocab, limit, c.data(), row.vocab)));
}

// Keeps what min_p, top_k and top_p leave, as candidates in no order. Looks at the likeliest tokens first and widens
// the view only while it does not hold enough of them: the result is the same as looking at all.
void restrict(const Row& row, float top, std::vector<Candidate>& c) {
  const SamplingState& s = row.state;
  const float floor = std::max(s.min_p > 0 ? top + std::log(s.min_p) : -INFINITY, -3.4e38f);  // masked: no candidates
  const bool by_count = s.top_k > 0 && s.top_k < row.vocab;
  double wanted = -1;  // sum of exp(value - top) that top_p asks for, where top_k does not come before it
  if (!by_count && s.top_p < 1 && !(s.min_p > 0)) wanted = double(s.top_p) * row.kernels.sum_exp(row.logits, row.vocab, top);
  for (float width = 8;; width *= 4) {
    float limit = std::max(floor, width > 1000 ? floor : top - width);
    collect(row, limit, c);
    if (limit == floor || (by_count && c.size() >= size_t(s.top_k))) break;
    if (wanted >= 0 && mass(c, 0, c.size(), top) >= wanted) break;
  }
  if (by_count && size_t(s.top_k) < c.size()) {
    std::nth_element(c.begin(), c.begin() + s.top_k, c.end(), before);
    c.resize(size_t(s.top_k));
  }
  if (!(s.top_p < 1) || c.empty()) return;
  if (wanted < 0) wanted = double(s.top_p) * mass(c, 0, c.size(), top);
  c.resize(nucleus(c, top, wanted));
}

int draw_restricted(const Row& row, int top_token, DrawKey key) {
  static thread_local std::vector<Candidate> candidates;
  restrict(row, row.logits[top_token], candidates);
  int winner = top_token;
  double best = -INFINITY;
  for (const Candidate& c : candidates) {
    double s = double(c.value) - std::log(-std::log(draw_uniform(draw_bits(key, uint32_t(c.token)))));
    if (s > best || (s == best && c.token < winner)) {
      best = s;
      winner = c.token;
    }
  }
  return winner;
}

int sample_token(const Row& row) {
  const SamplingState& s = row.state;
  penalize(row);
  bias(row);
  mask(row);
  int top = row.kernels.argmax(row.logits, row.vocab);
  // Where the quotient is infinite, many are, and only the logits tell them apart.
  if (!(s.temperature > 0) || std::isinf(row.logits[top] / s.temperature)) return top;
  row.kernels.divide(row.logits, row.vocab, s.temperature);
  // Division may round different logits to one value: ties go to the smaller id again.
  top = row.kernels.argmax(row.logits, row.vocab);
  DrawKey key = draw_key(s.seed, s.tokens.size());
  bool restricted = s.min_p > 0 || (s.top_k > 0 && s.top_k < row.vocab) || s.top_p < 1;
  return restricted ? draw_restricted(row, top, key) : row.kernels.gumbel_argmax(row.logits, row.vocab, key, top);
}

// The `count` first tokens in the order of before().
void top_tokens(const Row& row, int count, double log_sum, SampleRow& out) {
  static thread_local std::vector<Candidate> heap;
  count = std::min(count, row.vocab);
  heap.clear();
  // A block is looked into only when something in it beats the last of the heap.
  for (int begin = 0; begin < row.vocab; begin += 256) {
    int size = std::min(256, row.vocab - begin);
    bool full = int(heap.size()) == count;
    if (full && row.kernels.count_above(row.logits + begin, size, heap.front().value) == 0) continue;
    for (int i = begin; i < begin + size; ++i) {
      Candidate c{row.logits[i], i};
      if (int(heap.size()) == count) {
        if (!before(c, heap.front())) continue;
        std::pop_heap(heap.begin(), heap.end(), before);
        heap.pop_back();
      }
      heap.push_back(c);
      std::push_heap(heap.begin(), heap.end(), before);
    }
  }
  std::sort_heap(heap.begin(), heap.end(), before);
  for (const Candidate& c : heap) {
    out.top_tokens.push_back(c.token);
    out.top_logprobs.push_back(float(double(c.value) - log_sum));
  }
}

// ln of the sum of e^logit.
double log_sum_exp(const Row& row) {
  float top = row.logits[row.kernels.argmax(row.logits, row.vocab)];
  return double(top) + std::log(row.kernels.sum_exp(row.logits, row.vocab, top));
}

void run_row(const SampleArgs& args, const SampleKernels& kernels, int64_t index) {
  const uint32_t* mask = args.masks ? args.masks[index] : nullptr;
  Row row{kernels, args.logits + index * args.vocab, args.vocab, *args.states[index], mask};
  SampleRow& out = args.out[index];
  out = SampleRow();
  int target = args.targets[index], top = args.top[index];
  if (top < 0) {
    out.token = target >= 0 ? target : sample_token(row);
    return;
  }
  double log_sum = log_sum_exp(row);
  if (top > 0) top_tokens(row, top, log_sum, out);
  // Sampling changes the logits: the raw value of the token that it picks is read from a copy.
  static thread_local std::vector<float> raw;
  if (target < 0) raw.assign(row.logits, row.logits + row.vocab);
  const float* values = target < 0 ? raw.data() : row.logits;
  out.token = target >= 0 ? target : sample_token(row);
  out.logprob = float(double(values[out.token]) - log_sum);
  out.rank = 1 + kernels.count_above(values, row.vocab, values[out.token]);
}

}  // namespace

Status sample(ThreadPool& pool, const SampleArgs& args) {
  for (int i = 0; i < args.rows; ++i) {
    if (args.targets[i] >= args.vocab) {
      return {Code::invalid_argument, "target " + std::to_string(args.targets[i]) + " is outside the vocabulary"};
    }
  }
  const SampleKernels& kernels = ES_KERNELS(pool.isa(), sample);
  pool.for_ranges(args.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) run_row(args, kernels, i);
  });
  return {};
}

}  // namespace edgeshift::cpu
