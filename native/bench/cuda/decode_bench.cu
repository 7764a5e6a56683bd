// Decode and prefill speed of a named shape with random weights, natively (no Node):
//   cuda_decode_bench [--shape llama2-7b] [--precision int4] [--group 128] [--batch 1,4,16] [--context 128] [--new 64]
//                     [--prefill 512,2048,8x2048] [--portable] [--lookahead BYTES] [--plain] [--splits N] [--repeat 5]
//                     [--json FILE] [--model] [--masks] [--kv fp16|fp8|int8]
// Decode: CUDA graph of one step replayed --new times from --context cached tokens, the token fed back on the device;
// median and spread over --repeat runs after one warm-up. Limit: bytes read per step (weights and mean cache) over the
// read bandwidth measured in the same run. Prefill: a prompt, or 8 of them in one step. --portable leaves out what only one
// generation of cards has. --model adds the same steps through model/backend.h as the engine makes them:
// arrays uploaded, tokens read by the host, each step begun before the one before it is waited for; wall clock. --masks adds
// these steps with a mask for every row, given right behind the step's begin ("masks"), and when the tokens of the step before
// have been read, as grammars have it ("late masks").
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>

#include "cuda/model.h"
#include "cuda/read_bandwidth.h"
#include "cuda/sample.h"
#include "random_model.cuh"

using namespace edgeshift;

namespace {

// Prompts of one length, prefilled in one step.
struct Prompts {
  int count, tokens;
};

struct Options {
  std::string shape = "llama2-7b", precision = "int4", json, kv = "fp16";
  int group = 128, context = 128, fresh = 64, repeat = 5, splits = 0;
  std::vector<int> batches = {1};
  std::vector<Prompts> prefill;
  std::optional<size_t> lookahead;
  bool plain = false, model = false, masks = false, portable = false;
};

void require(const Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.message().c_str());
  std::exit(1);
}
void require(cudaError_t error, const char* what) { require(cuda::to_status(error, what), what); }

std::vector<int> numbers(const char* text) {
  std::vector<int> out;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) out.push_back(std::atoi(part.c_str()));
  return out;
}

std::vector<Prompts> prompts(const char* text) {
  std::vector<Prompts> out;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    const size_t times = part.find('x');
    const bool many = times != std::string::npos;
    out.push_back({many ? std::atoi(part.c_str()) : 1, std::atoi(part.c_str() + (many ? times + 1 : 0))});
  }
  return out;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--plain") { o.plain = true; continue; }
    if (name == "--portable") { o.portable = true; continue; }
    if (name == "--model") { o.model = true; continue; }
    if (name == "--masks") { o.masks = true; continue; }
    if (i + 1 >= argc) { std::fprintf(stderr, "%s needs a value\n", argv[i]); std::exit(2); }
    const char* value = argv[++i];
    if (name == "--shape") o.shape = value;
    else if (name == "--precision") o.precision = value;
    else if (name == "--group") o.group = std::atoi(value);
    else if (name == "--batch") o.batches = numbers(value);
    else if (name == "--context") o.context = std::atoi(value);
    else if (name == "--new") o.fresh = std::atoi(value);
    else if (name == "--prefill") o.prefill = prompts(value);
    else if (name == "--lookahead") o.lookahead = std::strtoull(value, nullptr, 10);
    else if (name == "--splits") o.splits = std::atoi(value);
    else if (name == "--repeat") o.repeat = std::atoi(value);
    else if (name == "--json") o.json = value;
    else if (name == "--kv") o.kv = value;
    else { std::fprintf(stderr, "unknown option %s\n", name.c_str()); std::exit(2); }
  }
  return o;
}

// The sampled tokens become the next step's input.
__global__ void feed_back(const int32_t* last, int32_t* tokens, int32_t* positions, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    tokens[i] = last[i];
    ++positions[i];
  }
}

KvDtype kv_dtype(const Options& o) { return o.kv == "fp8" ? KvDtype::fp8 : o.kv == "int8" ? KvDtype::int8 : KvDtype::fp16; }

// Bytes of `tokens` cached tokens.
size_t cached_bytes(const ModelSpec& spec, const Options& o, size_t tokens) {
  const KvLayout one{spec.layers, spec.kv_heads, spec.head_dim, 1, kv_dtype(o)};
  return tokens * size_t(one.layers) * one.layer_bytes();
}

class Timer {
 public:
  Timer() {
    require(cudaEventCreate(&begin_), "event");
    require(cudaEventCreate(&end_), "event");
  }
  ~Timer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  // Seconds of the work that `enqueue` puts on the stream.
  template <class F>
  double run(cudaStream_t stream, F enqueue) {
    require(cudaEventRecord(begin_, stream), "record");
    enqueue();
    require(cudaEventRecord(end_, stream), "record");
    require(cudaEventSynchronize(end_), "kernel");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin_, end_), "elapsed");
    return ms * 1e-3;
  }

 private:
  cudaEvent_t begin_, end_;
};

struct Spread {
  double median, least, most;
};
Spread spread(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 2], v.front(), v.back()};
}

template <class T>
void put(const cuda::Buffer& buffer, const std::vector<T>& host) {
  require(cudaMemcpy(buffer.as<void>(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
}

// A batch of `s` sequences with room for `tokens` cached tokens each, blocks shuffled over the arena.
struct Cache {
  KvLayout layout;
  cuda::Buffer arena, starts, positions, block_starts, blocks, tokens, tasks, last, results;
  int s, room;

  Cache(const ModelSpec& spec, KvDtype dtype, int sequences, int capacity) : s(sequences) {
    layout = {spec.layers, spec.kv_heads, spec.head_dim, 16, dtype};
    int per = (capacity + 15) / 16;
    room = per * 16;
    size_t units = layout.block_bytes() / kKvUnitBytes;
    require(arena.allocate(layout.block_bytes() * per * s), "cache");
    bench::fill_halves<<<bench::blocks_for(arena.bytes() / 2), 256>>>(arena.as<f16>(), arena.bytes() / 2, 0.3f, true, 99);
    std::vector<int32_t> first(s + 1);
    std::vector<uint32_t> table(size_t(per) * s);
    for (int i = 0; i <= s; ++i) first[i] = i * per;
    for (size_t i = 0; i < table.size(); ++i) table[i] = uint32_t(i * 7919 % table.size() * units);
    if (table.size() % 7919 == 0) std::exit(3);
    for (auto [buffer, bytes] : {std::pair{&starts, size_t(s + 1) * 4}, {&positions, size_t(s) * 4}, {&block_starts, size_t(s + 1) * 4},
                                 {&blocks, table.size() * 4}, {&tokens, size_t(room) * s * 4}, {&tasks, s * sizeof(cuda::SampleTask)}, {&last, size_t(s) * 4}, {&results, s * sizeof(cuda::SampleResult)}})
      require(buffer->allocate(bytes), "cache");
    put(block_starts, first);
    put(blocks, table);
    std::vector<cuda::SampleTask> greedy(s);
    for (int i = 0; i < s; ++i) greedy[i].slot = i;
    put(tasks, greedy);
    reset(0, 1);
  }

  // Every sequence gets `count` tokens from `position` on.
  SequenceBatch reset(int position, int count) {
    std::vector<int32_t> start(s + 1), ids(size_t(s) * count);
    for (int i = 0; i <= s; ++i) start[i] = i * count;
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = int(i * 37 % 1000);
    put(starts, start);
    put(tokens, ids);
    put(positions, std::vector<int32_t>(s, position));
    return {s, s * count, starts.as<int32_t>(), positions.as<int32_t>(), block_starts.as<int32_t>(), blocks.as<uint32_t>(), count, position + count};
  }
};

// Whether every row of a step has a mask, and when that is given.
enum class Masks { none, at_once, late };

struct Row {
  std::string what;
  int batch, tokens;
  double rate, low, high, micros, share;
  size_t bytes;
};

class Bench {
 public:
  Bench(const Options& options, const bench::RandomModel& model, cuda::Launch on, double bandwidth)
      : o_(options), model_(model), on_(on), bandwidth_(bandwidth) {}

  Row decode(int batch) {
    int capacity = o_.context + o_.fresh + 1;
    Cache cache(model_.spec, kv_dtype(o_), batch, capacity);
    int splits = o_.splits ? o_.splits : cuda::choose_splits(model_.spec, on_.device, batch, capacity, 16);
    cuda::Workspace workspace;
    require(workspace.allocate(model_.spec, on_.device, batch, batch, 16), "workspace");
    cuda::Forward pass{&model_.spec, &model_.weights, &workspace, &cache.layout, cache.arena.as<void>(), cache.tokens.as<int32_t>(),
                       cache.reset(o_.context, 1)};
    pass.lookahead = o_.lookahead;
    cuda::SampleArgs sample;
    sample.logits = workspace.logits.as<float>();
    sample.tasks = cache.tasks.as<cuda::SampleTask>();
    sample.last_tokens = cache.last.as<int32_t>();
    sample.results = cache.results.as<cuda::SampleResult>();
    sample.rows = batch;
    sample.vocab = model_.spec.vocab;
    require(cuda::decode_forward(pass, splits, on_), "decode_forward");
    require(cudaStreamSynchronize(on_.stream), "first step");
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cuda::Launch chained = on_;
    chained.chain = !o_.plain;
    require(cudaStreamBeginCapture(on_.stream, cudaStreamCaptureModeThreadLocal), "capture");
    require(cuda::decode_forward(pass, splits, chained), "decode_forward");
    require(cuda::sample(sample, chained), "sample");
    feed_back<<<1, 256, 0, on_.stream>>>(sample.last_tokens, cache.tokens.as<int32_t>(), cache.positions.as<int32_t>(), batch);
    require(cudaStreamEndCapture(on_.stream, &graph), "capture");
    require(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    Timer timer;
    std::vector<double> seconds;
    for (int i = 0; i <= o_.repeat; ++i) {
      cache.reset(o_.context, 1);
      double s = timer.run(on_.stream, [&] {
        for (int step = 0; step < o_.fresh; ++step) require(cudaGraphLaunch(exec, on_.stream), "launch");
      });
      if (i > 0) seconds.push_back(s / o_.fresh);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    size_t kv = cached_bytes(model_.spec, o_, size_t(batch) * size_t(o_.context + o_.fresh / 2));
    return row("decode", batch, batch, seconds, model_.read_bytes + kv);
  }

  Row prefill(const Prompts& prompts) {
    const int tokens = prompts.count * prompts.tokens;
    Cache cache(model_.spec, kv_dtype(o_), prompts.count, prompts.tokens);
    cuda::Workspace workspace;
    require(workspace.allocate(model_.spec, on_.device, tokens, prompts.count, 1), "workspace");
    require(workspace.allocate_widened(model_.weights, on_.device, tokens), "workspace");
    cuda::Forward pass{&model_.spec, &model_.weights, &workspace, &cache.layout, cache.arena.as<void>(), cache.tokens.as<int32_t>(),
                       cache.reset(0, prompts.tokens), 0};
    Timer timer;
    std::vector<double> seconds;
    for (int i = 0; i <= o_.repeat; ++i) {
      double s = timer.run(on_.stream, [&] { require(cuda::prefill_forward(pass, on_), "prefill_forward"); });
      if (i > 0) seconds.push_back(s);
    }
    return row("prefill", prompts.count, tokens, seconds, 0);
  }

  // Steps through the Model, two under way at a time.
  Row through(cuda::CudaModel& model, size_t arena_bytes, int batch, Masks when) {
    StepBatch step = first_step(model, arena_bytes, batch);
    std::vector<uint32_t> masks;
    for (int i = 0; when != Masks::none && i < batch; ++i) step.row_masks.push_back(i);
    // Half of the tokens.
    if (when != Masks::none) masks.assign(size_t(batch) * size_t(mask_words(model_.spec.vocab)), 0x5a5a5a5a);
    std::vector<double> seconds;
    for (int i = 0; i <= o_.repeat; ++i) {
      std::unique_ptr<PendingStep> before;
      StepResult result;
      const auto start = std::chrono::steady_clock::now();
      for (int at = 0; at < o_.fresh; ++at) {
        for (int32_t& position : step.first_positions) position = o_.context + at;
        auto pending = model.begin(step);
        require(pending.status(), "begin");
        if (when == Masks::at_once) require(pending.value()->give_masks(masks), "give_masks");
        if (before) require(before->wait(result), "wait");
        if (when == Masks::late) require(pending.value()->give_masks(masks), "give_masks");
        before = std::move(pending.value());
      }
      require(before->wait(result), "wait");
      if (i > 0) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / o_.fresh);
    }
    size_t kv = cached_bytes(model_.spec, o_, size_t(batch) * size_t(o_.context + o_.fresh / 2));
    const char* what = when == Masks::none ? "model" : when == Masks::at_once ? "masks" : "late masks";
    return row(what, batch, batch, seconds, model_.read_bytes + kv);
  }

 private:
  StepBatch first_step(cuda::CudaModel& model, size_t arena_bytes, int batch) {
    const int per = (o_.context + o_.fresh + 15) / 16;
    const size_t units = model.block_bytes() / kKvUnitBytes, blocks = arena_bytes / model.block_bytes();
    StepBatch b;
    b.seq_starts = b.block_starts = {0};
    for (int i = 0; i < batch; ++i) {
      SamplingState state;
      state.tokens = {1};
      require(model.set_slot(i, state, {}), "set_slot");
      b.tokens.push_back(-1);
      b.seq_starts.push_back(i + 1);
      b.first_positions.push_back(o_.context);
      b.slots.push_back(i);
      for (int j = 0; j < per; ++j) b.blocks.push_back(uint32_t(size_t(i * per + j) * 7919 % blocks * units));
      b.block_starts.push_back(int32_t(b.blocks.size()));
      b.row_tokens.push_back(i);
      b.row_seqs.push_back(i);
      b.row_targets.push_back(-1);
      b.row_top.push_back(-1);
    }
    return b;
  }

  Row row(const char* what, int batch, int tokens, const std::vector<double>& seconds, size_t bytes) {
    Spread s = spread(seconds);
    double share = bytes ? bytes / bandwidth_ / s.median : 0;
    return {what, batch, tokens, tokens / s.median, tokens / s.most, tokens / s.least, s.median * 1e6, share, bytes};
  }

  const Options& o_;
  const bench::RandomModel& model_;
  cuda::Launch on_;
  double bandwidth_;
};

void print(const Options& o, double bandwidth, const std::vector<Row>& rows) {
  std::printf("%s %s group %d, %s cache, context %d + %d, read bandwidth %.2f TB/s, lookahead %s, %s\n", o.shape.c_str(), o.precision.c_str(),
              o.group, o.kv.c_str(), o.context, o.fresh, bandwidth * 1e-12, o.lookahead ? std::to_string(*o.lookahead).c_str() : "as in the engine", o.plain ? "plain graph" : "dependent launch");
  for (const Row& r : rows)
    std::printf("| %s | batch %d, %d tokens | %.0f tok/s (%.0f .. %.0f) | %.1f us | %.3f GB | %.1f%% of limit |\n", r.what.c_str(),
                r.batch, r.tokens, r.rate, r.low, r.high, r.micros, r.bytes * 1e-9, r.share * 100);
  if (o.json.empty()) return;
  std::FILE* file = std::fopen(o.json.c_str(), "w");
  if (!file) return;
  std::fprintf(file, "{\"shape\":\"%s\",\"precision\":\"%s\",\"group\":%d,\"context\":%d,\"new\":%d,\"read_bandwidth\":%.0f,\"rows\":[",
               o.shape.c_str(), o.precision.c_str(), o.group, o.context, o.fresh, bandwidth);
  for (size_t i = 0; i < rows.size(); ++i)
    std::fprintf(file, "%s{\"what\":\"%s\",\"batch\":%d,\"tokens\":%d,\"tokens_per_second\":%.1f,\"low\":%.1f,\"high\":%.1f,\"microseconds\":%.2f,\"bytes\":%zu,\"share\":%.4f}",
                 i ? "," : "", rows[i].what.c_str(), rows[i].batch, rows[i].tokens, rows[i].rate, rows[i].low, rows[i].high, rows[i].micros,
                 rows[i].bytes, rows[i].share);
  std::fprintf(file, "]}\n");
  std::fclose(file);
}

}  // namespace

int main(int argc, char** argv) {
  Options options = parse(argc, argv);
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::fprintf(stderr, "no CUDA device\n");
    return 77;
  }
  const bench::Shape* shape = nullptr;
  for (const bench::Shape& s : bench::kShapes)
    if (options.shape == s.name) shape = &s;
  if (!shape) {
    std::fprintf(stderr, "unknown shape %s\n", options.shape.c_str());
    return 2;
  }
  Precision precision = options.precision == "fp16" ? Precision::fp16 : options.precision == "int8" ? Precision::int8 : Precision::int4;
  auto traits = cuda::device_traits(0);
  require(traits.status(), "device");
  cuda::Launch on{nullptr, traits.value(), false};
  if (options.portable) on.device.hopper = false;
  require(cudaStreamCreate(&on.stream), "stream");
  const Result<double> measured = cuda::read_bandwidth(on);
  require(measured.status(), "read_bandwidth");
  const double bandwidth = measured.value();
  bench::RandomModel model;
  require(bench::random_model(*shape, precision, options.group, model), "random_model");
  Bench runner(options, model, on, bandwidth);
  std::vector<Row> rows;
  for (int batch : options.batches)
    if (batch > 0) rows.push_back(runner.decode(batch));
  for (const Prompts& prompts : options.prefill) rows.push_back(runner.prefill(prompts));
  std::vector<Masks> through;
  if (options.model) through.push_back(Masks::none);
  if (options.masks) through.insert(through.end(), {Masks::at_once, Masks::late});
  if (!through.empty()) {
    const int most = *std::max_element(options.batches.begin(), options.batches.end());
    cuda::DeviceState state;
    state.on = on;
    const size_t block = KvLayout{model.spec.layers, model.spec.kv_heads, model.spec.head_dim, 16, kv_dtype(options)}.block_bytes();
    require(state.arena.allocate(block * size_t(most) * size_t((options.context + options.fresh + 15) / 16)), "arena");
    require(cudaMemset(state.arena.as<void>(), 0, state.arena.bytes()), "arena");
    LoadOptions load{precision, most, 512, 16, {}};
    load.kv_dtype = kv_dtype(options);
    cuda::CudaModel resident(state, model.spec, load, cuda::DeviceWeights{model.weights, std::move(model.memory)});
    require(resident.prepare(), "workspace");
    for (int batch : options.batches)
      for (Masks when : through)
        if (batch > 0) rows.push_back(runner.through(resident, state.arena.bytes(), batch, when));
  }
  print(options, bandwidth, rows);
  return 0;
}
