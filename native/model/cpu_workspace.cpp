#include "model/cpu_workspace.h"

#include <algorithm>

#include "core/checked.h"
#include "core/text.h"

namespace edgeshift {

namespace {

// Enough rows to make the head's matmul efficient; more would only cost memory (rows * vocab floats).
constexpr int kLogitRows = 64;

// Hands out 64-byte aligned stretches, first by counting, then for real.
class Layout {
 public:
  size_t take(uint64_t rows, uint64_t width) {
    const size_t at = used_;
    uint64_t bytes = 0;
    fits_ = fits_ && checked_mul(rows, width, bytes) && checked_mul(bytes, sizeof(float), bytes) &&
            checked_add(bytes, 63, bytes) && checked_add(used_, bytes / 64 * 64, used_);
    return at;
  }
  void rewind(uint64_t to) { used_ = to; }
  uint64_t used() const { return used_; }
  bool fits() const { return fits_; }

 private:
  uint64_t used_ = 0;
  bool fits_ = true;
};

}  // namespace

Result<CpuWorkspace> CpuWorkspace::create(const ModelSpec& spec, int max_batch_tokens, size_t scratch_bytes) {
  const uint64_t t = uint64_t(max_batch_tokens), heads = uint64_t(spec.heads) * uint64_t(spec.head_dim);
  const uint64_t kv = uint64_t(spec.kv_heads) * uint64_t(spec.head_dim);
  CpuWorkspace w;
  w.logit_rows = std::min(kLogitRows, max_batch_tokens);
  Layout layout;
  const size_t residual = layout.take(t, uint64_t(spec.hidden));
  const size_t normed = layout.take(t, uint64_t(spec.hidden));
  const size_t delta = layout.take(t, uint64_t(spec.hidden));
  uint64_t rotary = 0;
  for (const RopeTable& rope : spec.ropes) rotary += 2 * rope.inv_freq.size();
  const size_t cos_sin = layout.take(t, rotary);
  const size_t logits = layout.take(uint64_t(w.logit_rows), uint64_t(spec.vocab));
  const uint64_t shared = layout.used();
  const size_t qkv = layout.take(t, heads + 2 * kv);
  const size_t q = layout.take(t, heads);
  const size_t attended = layout.take(t, heads);
  uint64_t end = layout.used();
  layout.rewind(shared);
  const size_t gate_up = layout.take(t, 2 * uint64_t(spec.ffn));
  const size_t gated = layout.take(t, uint64_t(spec.ffn));
  end = std::max(end, layout.used());
  layout.rewind(shared);
  const size_t gathered = layout.take(2 * uint64_t(w.logit_rows), uint64_t(spec.hidden));
  end = std::max(end, layout.used());
  layout.rewind(end);
  const size_t scratch = layout.take(1, (scratch_bytes + sizeof(float) - 1) / sizeof(float));
  end = layout.used();
  if (!layout.fits()) return error(Code::invalid_argument, "max_batch_tokens ", max_batch_tokens, " is absurd");
  Result<cpu::Buffer> memory = cpu::Buffer::allocate(end);
  if (!memory.ok()) return memory.status();
  w.memory = std::move(memory.value());
  auto at = [&](size_t offset) { return reinterpret_cast<float*>(static_cast<char*>(w.memory.data()) + offset); };
  w.residual = at(residual);
  w.normed = at(normed);
  w.delta = at(delta);
  w.cos_sin = at(cos_sin);
  w.logits = at(logits);
  w.qkv = at(qkv);
  w.q = at(q);
  w.attended = at(attended);
  w.gate_up = at(gate_up);
  w.gated = at(gated);
  w.gathered = at(gathered);
  w.scratch = {static_cast<std::byte*>(w.memory.data()) + scratch, scratch_bytes};
  return w;
}

}  // namespace edgeshift
