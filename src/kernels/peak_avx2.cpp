#include <immintrin.h>

#include "kernels/peak_kernel.h"

namespace amxt::kernels {

// The register tile of the product: 6 x 2 accumulators, two loads and six broadcasts for twelve
// multiply-adds.
double peak_fp32_avx2(const void* data, int64_t rounds, float* sink) {
  constexpr int kRows = 6, kLanes = 8, kStep = 2 * kLanes + kRows;
  constexpr int64_t kSteps = kPeakBytes / 4 / kStep;
  // Unrolled to the end, or GCC keeps the sums in memory too, and stores take half of the time.
  __m256 sum[kRows][2];
#pragma GCC unroll 6
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_ps();
  for (int64_t round = 0; round < rounds; ++round) {
    const float* at = static_cast<const float*>(data);
    for (int64_t step = 0; step < kSteps; ++step, at += kStep) {
      const __m256 low = _mm256_loadu_ps(at), high = _mm256_loadu_ps(at + kLanes);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const __m256 row = _mm256_broadcast_ss(at + 2 * kLanes + i);
        sum[i][0] = _mm256_fmadd_ps(row, low, sum[i][0]);
        sum[i][1] = _mm256_fmadd_ps(row, high, sum[i][1]);
      }
    }
  }
  __m256 all = _mm256_setzero_ps();
#pragma GCC unroll 6
  for (auto& row : sum) all = _mm256_add_ps(all, _mm256_add_ps(row[0], row[1]));
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, all);
  for (const float lane : lanes) *sink += lane;
  return 2.0 * kRows * 2 * kLanes * static_cast<double>(kSteps) * static_cast<double>(rounds);
}

void triad_avx2(int64_t count, float scale, const float* x, const float* y, float* to) {
  const __m256 factor = _mm256_set1_ps(scale);
  for (int64_t i = 0; i < count; i += 16) {
    const __m256 low = _mm256_mul_ps(factor, _mm256_load_ps(y + i));
    const __m256 high = _mm256_mul_ps(factor, _mm256_load_ps(y + i + 8));
    _mm256_store_ps(to + i, _mm256_add_ps(low, _mm256_load_ps(x + i)));
    _mm256_store_ps(to + i + 8, _mm256_add_ps(high, _mm256_load_ps(x + i + 8)));
  }
}

void update_avx2(int64_t bytes, uint32_t mask, void* data) {
  const __m256i bits = _mm256_set1_epi32(static_cast<int>(mask));
  __m256i* at = static_cast<__m256i*>(data);
  for (const __m256i* const end = at + bytes / 32; at < end; at += 2) {
    _mm256_store_si256(at, _mm256_xor_si256(bits, _mm256_load_si256(at)));
    _mm256_store_si256(at + 1, _mm256_xor_si256(bits, _mm256_load_si256(at + 1)));
  }
}

}  // namespace amxt::kernels
