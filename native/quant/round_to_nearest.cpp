#include "quant/round_to_nearest.h"

#include <algorithm>
#include <cmath>

#include "quant/half.h"

namespace edgeshift {

namespace {

// Nearest integer in [low, high]; NaN becomes low.
int round_code(float value, int low, int high) {
  float inside = value > float(low) ? (value < float(high) ? value : float(high)) : float(low);
  // 1.5 * 2^23: the sum has no fraction bits left, so the addition rounds to nearest even; no call as std::nearbyint is.
  return int((inside + 12582912.0f) - 12582912.0f);
}

struct Line {
  float scale = 0;
  float minimum = 0;
};

// Squared error of coding w with the line, and the least squares line for those codes.
float fit_line(const float* w, int count, Line line, Line& better) {
  float inverse = line.scale > 0 ? 1.0f / line.scale : 0.0f;
  double sum_q = 0, sum_qq = 0, sum_w = 0, sum_qw = 0, error = 0;
  for (int i = 0; i < count; ++i) {
    int q = round_code((w[i] - line.minimum) * inverse, 0, 15);
    double miss = double(w[i]) - (double(q) * line.scale + line.minimum);
    error += miss * miss;
    sum_q += q;
    sum_qq += q * q;
    sum_w += w[i];
    sum_qw += q * double(w[i]);
  }
  double spread = count * sum_qq - sum_q * sum_q;
  better = line;
  if (spread > 0) {
    better.scale = float((count * sum_qw - sum_q * sum_w) / spread);
    better.minimum = float((sum_w - double(better.scale) * sum_q) / count);
  }
  return float(error);
}

Line rounded(Line line) { return {to_float(to_finite_f16(line.scale)), to_float(to_finite_f16(line.minimum))}; }

}  // namespace

f16 to_finite_f16(float value) { return to_f16(std::clamp(value, -kLargestHalf, kLargestHalf)); }

void round_symmetric(const float* w, int count, CodedGroup& out) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(w[i]));
  out.scale = to_finite_f16(largest / 127.0f);
  out.minimum = {};
  float scale = to_float(out.scale);
  float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int i = 0; i < count; ++i) out.codes[i] = round_code(w[i] * inverse, -127, 127);
}

void round_asymmetric(const float* w, int count, CodedGroup& out) {
  float low = w[0], high = w[0];
  for (int i = 1; i < count; ++i) {
    low = std::min(low, w[i]);
    high = std::max(high, w[i]);
  }
  Line best;
  float best_error = INFINITY;
  for (float shrink : {1.0f, 0.92f, 0.84f}) {
    float cut = (1.0f - shrink) * (high - low) / 2;
    Line line = rounded({(high - low - 2 * cut) / 15.0f, low + cut});
    for (int i = 0; i < 2; ++i) {
      Line better;
      float error = fit_line(w, count, line, better);
      if (error < best_error) {
        best_error = error;
        best = line;
      }
      line = rounded(better);
    }
  }
  out.scale = to_f16(best.scale);
  out.minimum = to_f16(best.minimum);
  float inverse = best.scale > 0 ? 1.0f / best.scale : 0.0f;
  for (int i = 0; i < count; ++i) out.codes[i] = round_code((w[i] - best.minimum) * inverse, 0, 15);
}

}  // namespace edgeshift
