// Matrices whose file holds integer codes with a scale and a zero point per group of inputs: GPTQ, AWQ, and
// compressed-tensors' pack-quantized and int-quantized.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "quant/weight_source.h"

namespace edgeshift {

// w[n, k] = (code - zero_point) * scale + minimum, group of input k = group_of(k). Codes are 0 .. 2^bits - 1; signed
// ones are moved there together with their zero point. Only AWQ gemv_fast stores a minimum, and no zero point then.
struct AffineMatrix {
  WeightSource source;
  int n = 0;
  int k = 0;
  int bits = 0;
  int group = 0;   // inputs per group, k when there is one
  int groups = 0;
  std::vector<int32_t> group_of;  // [k] group of each input; empty = k / group
  std::vector<int32_t> order;     // [k] inputs sorted by group, stable; empty = they are
  bool regular = true;            // sorted, group j holds inputs j * group .. : codes can be kept in groups
  bool stores_minimums = false;
  bool minus_one_by_code = false;  // GPTQ v1, 3 bits, symmetric, of an old writer

  int group_of_input(int i) const { return group_of.empty() ? i / group : group_of[size_t(i)]; }
};

// Checks and opens. Errors name the slot, the tensor and the reason.
Result<AffineMatrix> open_affine(const WeightSource& source, int n, int k);

// out[end - begin, k]: codes of rows [begin, end), inputs in file order.
void read_codes(const AffineMatrix& m, int begin, int end, uint8_t* out);

// Parameters of rows [begin, end), [end - begin, groups] each.
struct AffineParameters {
  std::vector<float> scales;
  std::vector<int> zero_points;
  std::vector<float> minimums;  // empty unless stores_minimums
};

// invalid_file where one is not finite.
Status read_parameters(const AffineMatrix& m, int begin, int end, AffineParameters& out);

// Whether every zero point is the middle code 2^(bits - 1).
bool is_symmetric(const AffineMatrix& m);

}  // namespace edgeshift
