// Blocks of 16 rows x 32 columns: a row of the block is one cache line and is touched once, since
// the rows of a wide matrix often fall into one set of the first-level cache.

#include <immintrin.h>

#include "kernels/gemm_transpose.h"

namespace amxt::kernels {
namespace {

constexpr int kRows = 16;
constexpr int kColumns = 32;

__mmask32 first32(int64_t count) {
  return count >= 32 ? 0xFFFFFFFFu : (static_cast<__mmask32>(1) << count) - 1u;
}
__mmask16 first16(int64_t count) {
  return static_cast<__mmask16>(first32(count > 16 ? 16 : count));
}

// Eight rows; quarter q of r[c] becomes column 8 q + c of them.
void transpose_quarters(__m512i* r) {
  __m512i s[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    s[i] = _mm512_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    s[4 + i] = _mm512_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
  // s[i] has columns 0-3 of rows 2i and 2i+1 as pairs, s[4 + i] columns 4-7.
#pragma GCC unroll 2
  for (int half = 0; half < 8; half += 4) {
    const __m512i a = _mm512_unpacklo_epi32(s[half], s[half + 1]);
    const __m512i b = _mm512_unpackhi_epi32(s[half], s[half + 1]);
    const __m512i c = _mm512_unpacklo_epi32(s[half + 2], s[half + 3]);
    const __m512i d = _mm512_unpackhi_epi32(s[half + 2], s[half + 3]);
    r[half] = _mm512_unpacklo_epi64(a, c);
    r[half + 1] = _mm512_unpackhi_epi64(a, c);
    r[half + 2] = _mm512_unpacklo_epi64(b, d);
    r[half + 3] = _mm512_unpackhi_epi64(b, d);
  }
}

void transpose_block(int64_t rows, int64_t columns, const bf16* from, int64_t ld_from, bf16* to,
                     int64_t ld_to) {
  const __mmask32 across = first32(columns);
  const __mmask16 down = first16(rows);
  __m512i r[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    r[i] = i < rows ? _mm512_maskz_loadu_epi16(across, from + i * ld_from) : _mm512_setzero_si512();
  }
  transpose_quarters(r);
  transpose_quarters(r + 8);
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 8
  for (int c = 0; c < 8; ++c) {
    const __m512i first = _mm512_permutex2var_epi64(r[c], low, r[8 + c]);
    const __m512i second = _mm512_permutex2var_epi64(r[c], high, r[8 + c]);
    const __m256i column[4] = {_mm512_castsi512_si256(first), _mm512_extracti64x4_epi64(first, 1),
                               _mm512_castsi512_si256(second),
                               _mm512_extracti64x4_epi64(second, 1)};
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      if (8 * q + c < columns) {
        _mm256_mask_storeu_epi16(to + (8 * q + c) * ld_to, down, column[q]);
      }
    }
  }
}

// Asks for what the next blocks touch. The hardware sees too many streams to follow; without this,
// 2-5 times as long.
void prefetch(int64_t rows, const bf16* from, int64_t ld_from, const bf16* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; ++i) {
    _mm_prefetch(reinterpret_cast<const char*>(from + i * ld_from + 2 * kColumns), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(to + (2 * kColumns + i) * ld_to), _MM_HINT_T0);
  }
}

}  // namespace

// Along the rows, 32 at a time: the source is read in order, and what is written is whole cache
// lines.
void transpose_avx512(int64_t rows, int64_t columns, const bf16* from, int64_t ld_from, bf16* to,
                      int64_t ld_to) {
  for (int64_t row = 0; row < rows; row += 2 * kRows) {
    const int64_t left = rows - row < 2 * kRows ? rows - row : 2 * kRows;
    for (int64_t column = 0; column < columns; column += kColumns) {
      const bf16* source = from + row * ld_from + column;
      bf16* target = to + column * ld_to + row;
      prefetch(left, source, ld_from, target, ld_to);
      transpose_block(left, columns - column, source, ld_from, target, ld_to);
      if (left > kRows) {
        transpose_block(left - kRows, columns - column, source + kRows * ld_from, ld_from,
                        target + kRows, ld_to);
      }
    }
  }
}

}  // namespace amxt::kernels
