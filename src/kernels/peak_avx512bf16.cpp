#include <immintrin.h>

#include "kernels/peak_kernel.h"

namespace amxt::kernels {

// 12 x 2 accumulators; each instruction multiplies 32 pairs. A pair of A is broadcast as one 32-bit
// word.
double peak_bf16_avx512(const void* data, int64_t rounds, float* sink) {
  constexpr int kRows = 12, kWords = 16, kStep = 3 * kWords;
  constexpr int64_t kSteps = kPeakBytes / 4 / kStep;
  __m512 sum[kRows][2];
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
  for (int64_t round = 0; round < rounds; ++round) {
    const int32_t* at = static_cast<const int32_t*>(data);
    for (int64_t step = 0; step < kSteps; ++step, at += kStep) {
      const auto low = reinterpret_cast<__m512bh>(_mm512_loadu_si512(at));
      const auto high = reinterpret_cast<__m512bh>(_mm512_loadu_si512(at + kWords));
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const auto row = reinterpret_cast<__m512bh>(_mm512_set1_epi32(at[2 * kWords + i]));
        sum[i][0] = _mm512_dpbf16_ps(sum[i][0], row, low);
        sum[i][1] = _mm512_dpbf16_ps(sum[i][1], row, high);
      }
    }
  }
  __m512 all = _mm512_setzero_ps();
  for (auto& row : sum) all = _mm512_add_ps(all, _mm512_add_ps(row[0], row[1]));
  *sink += _mm512_reduce_add_ps(all);
  return 2.0 * kRows * 2 * 32 * static_cast<double>(kSteps) * static_cast<double>(rounds);
}

}  // namespace amxt::kernels
