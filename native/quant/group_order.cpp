#include "quant/group_order.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/text.h"

namespace edgeshift {

Result<GroupOrder> read_group_order(const uint8_t* index, int k, int group, int groups) {
  std::vector<int32_t> group_of(static_cast<size_t>(k));
  std::memcpy(group_of.data(), index, group_of.size() * sizeof(int32_t));
  GroupOrder out;
  if (std::ranges::all_of(group_of, [](int32_t g) { return g == -1; })) return out;
  bool plain = true;
  for (int i = 0; i < k; ++i) {
    const int32_t g = group_of[size_t(i)];
    if (g < 0 || g >= groups) {
      return error(Code::invalid_file, "the group index names group ", g, " of ", groups, " at input ", i);
    }
    plain = plain && g == i / group;
  }
  if (plain) return out;
  out.order.resize(size_t(k));
  std::iota(out.order.begin(), out.order.end(), 0);
  std::ranges::stable_sort(out.order, {}, [&](int32_t i) { return group_of[size_t(i)]; });
  for (int j = 0; j < k; ++j) out.regular = out.regular && group_of[size_t(out.order[size_t(j)])] == j / group;
  if (std::ranges::is_sorted(out.order)) out.order.clear();
  out.group_of = std::move(group_of);
  return out;
}

}  // namespace edgeshift
