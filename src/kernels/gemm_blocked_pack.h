// Packing of activations into the operands of gemm_blocked_kernel.h, and of weights into the first operand of the gradient of the input.
// A pair of the second operand, and the order along a row of the first, is (p, p + 16) wherever rows of the matrix are what is contracted
// over: then two loaded lines make one by a permutation.
#pragma once

#include "kernels/gemm_blocked_kernel.h"
#include "kernels/gemm_blocked_vector.h"

namespace amxt::kernels {
namespace {

// 32 elements of a row, zeros beyond the matrix.
inline __m512i line_of(const RowMajor& from, int64_t row, int64_t column) {
  if (row >= from.rows) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi16(first_of_32(from.columns - column),
                                  from.data + row * from.ld + column);
}

// Rows of the matrix are rows of the first operand.
void pack_rows(const RowMajor& from, int64_t group, int64_t panel_begin, int64_t panel_end,
               bf16* to) {
  const int64_t first = group * kGroupSteps * kLine;
  const int64_t steps = lesser(kGroupSteps, (from.columns - first + kLine - 1) / kLine);
  for (int64_t row = panel_begin * kLine; row < panel_end * kLine; ++row) {
    bf16* const out = to + row / kLine * kPanelStride + row % kLine * kLine;
    for (int64_t step = 0; step < steps; ++step) {
      _mm512_store_si512(out + step * kBlock, line_of(from, row, first + step * kLine));
    }
  }
}

// Rows of the matrix are columns of the second operand.
void pack_rows_as_second(const RowMajor& from, int64_t group, int64_t panel_begin,
                         int64_t panel_end, bf16* to) {
  const int64_t first = group * kGroupSteps * kLine;
  const int64_t steps = lesser(kGroupSteps, (from.columns - first + kLine - 1) / kLine);
  for (int64_t half = panel_begin * 2; half < panel_end * 2; ++half) {
    for (int64_t step = 0; step < steps; ++step) {
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) {
        r[i] = alternate_halves(line_of(from, half * 16 + i, first + step * kLine));
      }
      transpose_words(r);
      bf16* const out = to + half / 2 * kPanelStride + step * kBlock + half % 2 * (kBlock / 2);
      for (int64_t j = 0; j < 16; ++j) _mm512_store_si512(out + j * kLine, r[j]);
    }
  }
}

// Columns of the matrix are columns of the second operand, or rows of the first; its rows are contracted.
template <bool kFirst>
void pack_columns(const RowMajor& from, int64_t group, int64_t panel_begin, int64_t panel_end,
                  bf16* to) {
  const int64_t first = group * kGroupSteps * kLine;
  const int64_t steps = lesser(kGroupSteps, (from.rows - first + kLine - 1) / kLine);
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      __m512i low[16], high[16];
      for (int64_t j = 0; j < 16; ++j) {
        const int64_t row = first + step * kLine + j;
        const TwoLines pairs =
            alternate(line_of(from, row, panel * kLine), line_of(from, row + 16, panel * kLine));
        low[j] = pairs.low;
        high[j] = pairs.high;
      }
      if (kFirst) {
        transpose_words(low);
        transpose_words(high);
      }
      bf16* const out = to + panel * kPanelStride + step * kBlock;
      for (int64_t j = 0; j < 16; ++j) {
        _mm512_store_si512(out + j * kLine, low[j]);
        _mm512_store_si512(out + (16 + j) * kLine, high[j]);
      }
    }
  }
}

// A block of W, [2 halves of n][16 pairs of k][16 n][2], as a block of the first operand: rows k, along n in the order (n, n + 16).
inline void convert_weights(const bf16* from, bf16* to) {
  constexpr __mmask32 kOdd = 0xAAAAAAAAu;
  for (int64_t pair = 0; pair < 16; ++pair) {
    const __m512i n = _mm512_loadu_si512(from + pair * kLine);
    const __m512i n16 = _mm512_loadu_si512(from + (16 + pair) * kLine);
    _mm512_store_si512(to + 2 * pair * kLine,
                       _mm512_mask_blend_epi16(kOdd, n, _mm512_slli_epi32(n16, 16)));
    _mm512_store_si512(to + (2 * pair + 1) * kLine,
                       _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(n, 16), n16));
  }
}

}  // namespace
}  // namespace amxt::kernels
