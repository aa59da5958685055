#include "kernels/simd_avx2.h"
//
#include "kernels/rows_vector.h"

namespace amxt::kernels {

constinit const RowTables rows_avx2 = row_tables();

void convert_f16_avx2(int64_t count, const uint16_t* from, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
  for (; i < count; ++i) to[i] = _cvtsh_ss(from[i]);
}

void convert_f16_avx2(int64_t count, const float* from, uint16_t* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  for (; i < count; ++i) to[i] = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
}

}  // namespace amxt::kernels
