// Act-order: the g_idx of a GPTQ or compressed-tensors matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"

namespace edgeshift {

struct GroupOrder {
  std::vector<int32_t> group_of;  // [k]; empty = input i is in group i / group
  std::vector<int32_t> order;     // [k] stable argsort by group; empty = identity
  bool regular = true;            // in sorted order every group has `group` inputs, the last one maybe fewer
};

// `index`: k int32, unaligned. All entries -1 mean that there is no order (compressed-tensors). invalid_file where an
// entry is outside 0 .. groups - 1.
Result<GroupOrder> read_group_order(const uint8_t* index, int k, int group, int groups);

}  // namespace edgeshift
