// What becomes of 32 x 32 finished sums, four tiles of 16 x 16 (00, 01, 10, 11): functors called with the sums and their panels. What a
// product fuses (bias, residual, SwiGLU) is one more functor of this kind. destination() is where 4 KiB together will be
// touched, which are worth asking for before (fp32 dW at T = 512: from 77% to 88% of the peak on AVX512_BF16, bf16 from 84% to 89%), or
// null.
#pragma once

#include "kernels/gemm_blocked_kernel.h"
#include "kernels/gemm_blocked_vector.h"

namespace amxt::kernels {
namespace {

inline const float* sum_row(const float* sums, int64_t row, int64_t half) {
  return sums + row / 16 * 512 + half * 256 + row % 16 * 16;
}

inline void store(bf16* to, __m512i line, __mmask32 used) {
  if (used == 0xFFFFFFFFu) {
    _mm512_storeu_si512(to, line);
  } else {
    _mm512_mask_storeu_epi16(to, used, line);
  }
}

template <bool kAccumulate>
inline void store(float* to, __m512 line, __mmask16 used) {
  if (kAccumulate) line = _mm512_add_ps(_mm512_maskz_loadu_ps(used, to), line);
  _mm512_mask_storeu_ps(to, used, line);
}

// y[m][n] = sums[m][n]
template <typename E, bool kAccumulate>
struct StoreRows {
  ResultPlace y;

  static const void* destination(int64_t, int64_t) { return nullptr; }

  void operator()(const float* sums, int64_t m, int64_t n) const {
    const int64_t rows = lesser(32, y.rows - m * 32), columns = y.columns - n * 32;
    E* to = static_cast<E*>(y.data) + m * 32 * y.ld + n * 32;
    for (int64_t row = 0; row < rows; ++row, to += y.ld) {
      const float *low = sum_row(sums, row, 0), *high = sum_row(sums, row, 1);
      if constexpr (sizeof(E) == sizeof(bf16)) {
        store(to, round_two(low, high), first_of_32(columns));
      } else {
        store<kAccumulate>(to, _mm512_load_ps(low), first_of_16(columns));
        if (columns > 16)
          store<kAccumulate>(to + 16, _mm512_load_ps(high), first_of_16(columns - 16));
      }
    }
  }
};

// y[n][m] = sums[m][n]
template <typename E, bool kAccumulate>
struct StoreTransposed {
  ResultPlace y;

  static const void* destination(int64_t, int64_t) { return nullptr; }

  void operator()(const float* sums, int64_t m, int64_t n) const {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t rows = lesser(16, y.rows - n * 32 - half * 16), columns = y.columns - m * 32;
      E* const to = static_cast<E*>(y.data) + (n * 32 + half * 16) * y.ld + m * 32;
      __m512i r[16];
      if constexpr (sizeof(E) == sizeof(bf16)) {
        for (int64_t j = 0; j < 16; ++j) {
          r[j] = alternate_halves(
              round_two(sum_row(sums, 2 * j, half), sum_row(sums, 2 * j + 1, half)));
        }
        transpose_words(r);
        for (int64_t row = 0; row < rows; ++row)
          store(to + row * y.ld, r[row], first_of_32(columns));
      } else {
        for (int64_t side = 0; side < 32 && side < columns; side += 16) {
          for (int64_t j = 0; j < 16; ++j) {
            r[j] = _mm512_load_si512(sum_row(sums, side + j, half));
          }
          transpose_words(r);
          for (int64_t row = 0; row < rows; ++row) {
            store<kAccumulate>(to + row * y.ld + side, _mm512_castsi512_ps(r[row]),
                               first_of_16(columns - side));
          }
        }
      }
    }
  }
};

// The block of dW in the blocked order, from sums[k][n]; zeros where the weight has no element.
template <typename E, bool kAccumulate>
struct StoreBlocked {
  ResultPlace dw;  // rows n, columns k, ld the elements of a panel

  E* block(int64_t m, int64_t n) const { return static_cast<E*>(dw.data) + n * dw.ld + m * 1024; }
  const void* destination(int64_t m, int64_t n) const { return block(m, n); }

  void operator()(const float* sums, int64_t m, int64_t n) const {
    alignas(64) static constexpr int32_t kLow[16] = {0, 16, 1, 17, 2, 18, 3, 19,
                                                     4, 20, 5, 21, 6, 22, 7, 23};
    const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const int64_t rows = dw.rows - n * 32, columns = dw.columns - m * 32;
    E* to = block(m, n);
    for (int64_t half = 0; half < 2; ++half) {
      const __mmask16 in_rows = first_of_16(rows - half * 16);
      for (int64_t k = 0; k < 32; k += 2, to += 32) {
        const __m512 even =
            _mm512_maskz_load_ps(k < columns ? in_rows : __mmask16{0}, sum_row(sums, k, half));
        const __m512 odd = _mm512_maskz_load_ps(k + 1 < columns ? in_rows : __mmask16{0},
                                                sum_row(sums, k + 1, half));
        if constexpr (sizeof(E) == sizeof(bf16)) {
          _mm512_storeu_si512(
              to, alternate_halves(reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even))));
        } else {
          store<kAccumulate>(to, _mm512_permutex2var_ps(even, low, odd), 0xFFFF);
          store<kAccumulate>(to + 16, _mm512_permutex2var_ps(even, high, odd), 0xFFFF);
        }
      }
    }
  }
};

}  // namespace
}  // namespace amxt::kernels
