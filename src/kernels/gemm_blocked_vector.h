// AVX-512 on lines of 32 bf16 or 16 floats: what packing and storing share. Included by files with wider flags only.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/bf16.h"

namespace amxt::kernels {
namespace {

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

inline __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0u : (static_cast<__mmask32>(1) << count) - 1u;
}
inline __mmask16 first_of_16(int64_t count) {
  return static_cast<__mmask16>(first_of_32(lesser(16, count)));
}

// The first and the second half of 32 elements, alternating.
inline __m512i alternate_halves(__m512i line) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), line);
}

// Elements of two lines, alternating: the first 16 of each, then the last 16.
struct TwoLines {
  __m512i low, high;
};
inline TwoLines alternate(__m512i a, __m512i b) {
  const __m512i first = _mm512_inserti64x4(a, _mm512_castsi512_si256(b), 1);
  const __m512i last = _mm512_shuffle_i64x2(a, b, 0xEE);
  return {alternate_halves(first), alternate_halves(last)};
}

// Two rows of 16 floats, rounded to nearest even, as 32 bf16 one after the other.
inline __m512i round_two(const float* low, const float* high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_load_ps(high), _mm512_load_ps(low)));
}

// 16 x 16 words, in place: word j of r[i] becomes word i of r[j].
inline void transpose_words(__m512i* r) {
  __m512i s[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  // Word c of four rows in each quarter of r[i + c].
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i even_top = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i odd_top = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xDD);
    const __m512i even_bottom = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i odd_bottom = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xDD);
    s[c] = _mm512_shuffle_i32x4(even_top, even_bottom, 0x88);
    s[8 + c] = _mm512_shuffle_i32x4(even_top, even_bottom, 0xDD);
    s[4 + c] = _mm512_shuffle_i32x4(odd_top, odd_bottom, 0x88);
    s[12 + c] = _mm512_shuffle_i32x4(odd_top, odd_bottom, 0xDD);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = s[i];
}

}  // namespace
}  // namespace amxt::kernels
