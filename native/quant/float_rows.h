// Rows of floats to canonical form, with checks of their range.
#pragma once

#include <string>

#include "core/status.h"
#include "quant/canonical.h"

namespace edgeshift {

// Sizes the arrays of `out` for `rows` rows of k in a form; codes are zeroed.
void prepare(CanonicalStorage& out, CanonicalForm form, int rows, int k);

// invalid_file where a value is not finite; unsupported where the form is fp16 and one lies outside binary16 (bf16 and
// float checkpoints can hold such; the int8 rung takes them). `slot` is for the message.
Status check_rows(const std::string& slot, const float* rows, int64_t count, Precision precision);

// check_rows, then rounding to nearest.
Status round_rows(const std::string& slot, const float* values, int rows, int k, CanonicalForm form,
                  CanonicalStorage& out);

}  // namespace edgeshift
