#include <immintrin.h>

#include "kernels/peak_kernel.h"

namespace amxt::kernels {

// The register tile of the product: 14 x 2 accumulators, two loads and fourteen broadcasts for 28
// multiply-adds.
double peak_fp32_avx512(const void* data, int64_t rounds, float* sink) {
  constexpr int kRows = 14, kLanes = 16, kStep = 3 * kLanes;
  constexpr int64_t kSteps = kPeakBytes / 4 / kStep;
  __m512 sum[kRows][2];
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
  for (int64_t round = 0; round < rounds; ++round) {
    const float* at = static_cast<const float*>(data);
    for (int64_t step = 0; step < kSteps; ++step, at += kStep) {
      const __m512 low = _mm512_loadu_ps(at), high = _mm512_loadu_ps(at + kLanes);
#pragma GCC unroll 14
      for (int i = 0; i < kRows; ++i) {
        const __m512 row = _mm512_set1_ps(at[2 * kLanes + i]);
        sum[i][0] = _mm512_fmadd_ps(row, low, sum[i][0]);
        sum[i][1] = _mm512_fmadd_ps(row, high, sum[i][1]);
      }
    }
  }
  __m512 all = _mm512_setzero_ps();
  for (auto& row : sum) all = _mm512_add_ps(all, _mm512_add_ps(row[0], row[1]));
  *sink += _mm512_reduce_add_ps(all);
  return 2.0 * kRows * 2 * kLanes * static_cast<double>(kSteps) * static_cast<double>(rounds);
}

}  // namespace amxt::kernels
