#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/attention_kernels.h"
#include "cpu/dispatch.h"
#include "cpu/ops.h"

namespace edgeshift::cpu {

namespace {

// Query rows of one tile: many enough to use each loaded key and value often, few enough to stay in cache.
constexpr int kTileQueries = 48;

// The layout of one call's work: for every sequence, tiles of `tile_tokens` tokens, each for every kv head.
struct Plan {
  const AttentionArgs<float>& args;
  const AttentionKernels& kernels;
  int group = 0;
  int tile_tokens = 0;
  int max_rows = 0;
  int64_t state_floats = 0;        // of one state
  const int32_t* first_tile = nullptr;  // [s + 1] prefix sums of tiles

  int64_t tiles() const { return first_tile[args.batch->s]; }
  int head_dim() const { return args.kv->head_dim; }
};

AttentionState state_at(const Plan& p, float* memory, int64_t index) {
  float* at = memory + index * p.state_floats;
  return {at, at + p.max_rows, at + 2 * p.max_rows};
}

// One (tile, kv head) and the positions that it sees.
struct Item {
  int sequence;
  int token;  // first, within the batch
  int tokens;
  int position;
  int head;
  int begin;  // positions [begin, end) over all of the tile's tokens, begin a multiple of kSpan
  int end;
};

Item item_at(const Plan& p, int64_t index) {
  const SequenceBatch& b = *p.args.batch;
  int64_t tile = index / p.args.kv->kv_heads;
  Item item;
  item.head = int(index % p.args.kv->kv_heads);
  item.sequence = int(std::upper_bound(p.first_tile, p.first_tile + b.s + 1, int32_t(tile)) - p.first_tile) - 1;
  int offset = int(tile - p.first_tile[item.sequence]) * p.tile_tokens;
  item.token = b.starts[item.sequence] + offset;
  item.tokens = std::min(p.tile_tokens, b.starts[item.sequence + 1] - item.token);
  item.position = b.first_positions[item.sequence] + offset;
  int oldest = p.args.window > 0 ? std::max(0, item.position - p.args.window + 1) : 0;
  item.begin = oldest / kSpan * kSpan;
  item.end = item.position + item.tokens;
  return item;
}

AttentionSpan span_of(const Plan& p, const Item& item, int begin) {
  const AttentionArgs<float>& a = p.args;
  AttentionSpan s;
  s.token_stride = int64_t(a.heads) * a.kv->head_dim;
  s.q = a.q + item.token * s.token_stride + int64_t(item.head) * p.group * a.kv->head_dim;
  s.rows = item.tokens * p.group;
  s.group = p.group;
  s.head_dim = a.kv->head_dim;
  s.first_position = item.position;
  s.begin = begin;
  s.end = std::min(item.end, begin + kSpan);
  s.window = a.window;
  s.scale = a.scale;
  s.softcap = a.softcap;
  const char* arena = static_cast<const char*>(a.arena);
  s.keys = arena + a.kv->key_offset(a.layer, item.head);
  s.values = arena + a.kv->value_offset(a.layer, item.head);
  s.key_scales = arena + a.kv->key_scale_offset(a.layer, item.head);
  s.value_scales = arena + a.kv->value_scale_offset(a.layer, item.head);
  s.blocks = a.batch->blocks + a.batch->block_starts[item.sequence];
  s.block_size = a.kv->block_size;
  return s;
}

void clear(AttentionState state, int rows, int head_dim) {
  std::fill_n(state.top, rows, -INFINITY);
  std::fill_n(state.sum, rows, 0.0f);
  std::fill_n(state.out, int64_t(rows) * head_dim, 0.0f);
}

void finish(const Plan& p, const Item& item, AttentionState total) {
  const AttentionArgs<float>& a = p.args;
  for (int r = 0; r < item.tokens * p.group; ++r) {
    int64_t head = int64_t(item.token + r / p.group) * a.heads + item.head * p.group + r % p.group;
    p.kernels.finish(total.out + int64_t(r) * p.head_dim(), total.sum[r], a.out + head * p.head_dim(), p.head_dim());
  }
}

// All of an item on one thread.
void run_item(const Plan& p, int64_t index, AttentionState total, AttentionState part) {
  Item item = item_at(p, index);
  int rows = item.tokens * p.group;
  clear(total, rows, p.head_dim());
  for (int begin = item.begin; begin < item.end; begin += kSpan) {
    p.kernels.span[int(p.args.kv->dtype)](span_of(p, item, begin), part);
    p.kernels.merge(total, part, rows, p.head_dim());
  }
  finish(p, item, total);
}

// Items below this many (per thread) are split into spans.
constexpr int kFewItems = 4;
// Spans (per thread) that are done before they are merged: their results would else grow with the context.
constexpr int kSpansAtOnce = 16;

int64_t spans_at_once(const ThreadPool& pool) { return int64_t(kSpansAtOnce) * pool.threads(); }

// Few items with long contexts: every span of every item is a task of its own, and each item's spans are merged in their order.
// Memory: the items' states, then those of spans_at_once.
void run_split(ThreadPool& pool, const Plan& p, int64_t items, int64_t spans, float* memory) {
  const int64_t tasks = items * spans, at_once = spans_at_once(pool);
  const auto begin_of = [&](const Item& item, int64_t task) { return item.begin + task % spans * kSpan; };
  for (int64_t index = 0; index < items; ++index) clear(state_at(p, memory, index), p.max_rows, p.head_dim());
  for (int64_t first = 0; first < tasks; first += at_once) {
    const int64_t count = std::min(at_once, tasks - first);
    pool.for_ranges(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const Item item = item_at(p, (first + i) / spans);
        const int64_t start = begin_of(item, first + i);
        if (start < item.end) p.kernels.span[int(p.args.kv->dtype)](span_of(p, item, int(start)), state_at(p, memory, items + i));
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      const int64_t index = (first + i) / spans;
      const Item item = item_at(p, index);
      if (begin_of(item, first + i) >= item.end) continue;
      p.kernels.merge(state_at(p, memory, index), state_at(p, memory, items + i), item.tokens * p.group, p.head_dim());
    }
  }
  for (int64_t index = 0; index < items; ++index) finish(p, item_at(p, index), state_at(p, memory, index));
}

Status check(const AttentionArgs<float>& a) {
  if (a.kv->head_dim < 16 || a.kv->head_dim > 256 || a.kv->head_dim % 16 != 0) {
    return {Code::unsupported, "head_dim " + std::to_string(a.kv->head_dim) + " is not a multiple of 16 up to 256"};
  }
  if (a.kv->block_size < 16 || a.kv->block_size % 16 != 0) {
    return {Code::invalid_argument, "block_size " + std::to_string(a.kv->block_size) + " is not a multiple of 16"};
  }
  if (a.heads <= 0 || a.heads % a.kv->kv_heads != 0) {
    return {Code::invalid_argument, "query heads are not a multiple of the kv heads"};
  }
  return {};
}

}  // namespace

Status attention(ThreadPool& pool, const AttentionArgs<float>& args) {
  ES_RETURN_IF_ERROR(check(args));
  const SequenceBatch& b = *args.batch;
  if (b.t <= 0) return {};
  Plan p{args, ES_KERNELS(pool.isa(), attention), args.heads / args.kv->kv_heads};
  p.tile_tokens = std::min(std::max(1, kTileQueries / p.group), std::max(1, b.max_count));
  p.max_rows = p.tile_tokens * p.group;
  p.state_floats = int64_t(p.max_rows) * (args.kv->head_dim + 2);

  int64_t tiles = 0;
  for (int i = 0; i < b.s; ++i) tiles += (b.starts[i + 1] - b.starts[i] + p.tile_tokens - 1) / p.tile_tokens;
  int64_t items = tiles * args.kv->kv_heads;
  int64_t spans = (b.max_context + kSpan - 1) / kSpan + 1;
  bool split = b.max_count == 1 && spans > 2 && pool.threads() > 1 && items < int64_t(kFewItems) * pool.threads();
  int64_t states = split ? items + std::min(spans_at_once(pool), items * spans) : 2 * int64_t(pool.threads());
  size_t prefix_bytes = (size_t(b.s + 1) * sizeof(int32_t) + 63) / 64 * 64;
  Result<void*> scratch = pool.scratch(prefix_bytes + size_t(states * p.state_floats) * sizeof(float));
  if (!scratch.ok()) return scratch.status();

  int32_t* first_tile = static_cast<int32_t*>(scratch.value());
  first_tile[0] = 0;
  for (int i = 0; i < b.s; ++i) {
    first_tile[i + 1] = first_tile[i] + (b.starts[i + 1] - b.starts[i] + p.tile_tokens - 1) / p.tile_tokens;
  }
  p.first_tile = first_tile;
  float* memory = reinterpret_cast<float*>(static_cast<char*>(scratch.value()) + prefix_bytes);
  if (split) {
    run_split(pool, p, items, spans, memory);
    return {};
  }
  pool.for_ranges(items, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      run_item(p, i, state_at(p, memory, 2 * worker), state_at(p, memory, 2 * worker + 1));
    }
  });
  return {};
}

}  // namespace edgeshift::cpu
