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
  const bf16* const at = from.data + (row - from.first_row) * from.ld + column;
  // The hardware does not follow 32 rows at once: without this twice the time over columns.
  _mm_prefetch(at + 2 * kLine, _MM_HINT_T0);
  return _mm512_maskz_loadu_epi16(first_of_32(from.columns - column), at);
}

inline bf16* block_of(bf16* operand, int64_t group_stride, int64_t panel, int64_t step) {
  return operand + step / kGroupSteps * group_stride + panel * kPanelStride +
         step % kGroupSteps * kBlock;
}

// Rows of the matrix are rows of the first operand.
void pack_rows(const RowMajor& from, int64_t row, int64_t column, int64_t column_end, bf16* to,
               int64_t group_stride) {
  for (int64_t at = column; at < column_end; at += kLine) {
    bf16* const out = block_of(to, group_stride, row / kLine, at / kLine);
    for (int64_t i = 0; i < kLine; ++i) {
      _mm512_store_si512(out + i * kLine, line_of(from, row + i, at));
    }
  }
}

// Rows of the matrix are columns of the second operand.
void pack_rows_as_second(const RowMajor& from, int64_t row, int64_t column, int64_t column_end,
                         bf16* to, int64_t group_stride) {
  for (int64_t half = 0; half < kLine; half += 16) {
    for (int64_t at = column; at < column_end; at += kLine) {
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) r[i] = alternate_halves(line_of(from, row + half + i, at));
      transpose_words(r);
      bf16* const out = block_of(to, group_stride, row / kLine, at / kLine) + half * kLine;
      for (int64_t j = 0; j < 16; ++j) _mm512_store_si512(out + j * kLine, r[j]);
    }
  }
}

// Columns of the matrix are columns of the second operand, or rows of the first; its rows are contracted.
template <bool kFirst>
void pack_columns(const RowMajor& from, int64_t row, int64_t column, int64_t column_end, bf16* to,
                  int64_t group_stride) {
  for (int64_t at = column; at < column_end; at += kLine) {
    __m512i low[16], high[16];
    for (int64_t j = 0; j < 16; ++j) {
      const TwoLines pairs = alternate(line_of(from, row + j, at), line_of(from, row + j + 16, at));
      low[j] = pairs.low;
      high[j] = pairs.high;
    }
    if (kFirst) {
      transpose_words(low);
      transpose_words(high);
    }
    bf16* const out = block_of(to, group_stride, at / kLine, row / kLine);
    for (int64_t j = 0; j < 16; ++j) {
      _mm512_store_si512(out + j * kLine, low[j]);
      _mm512_store_si512(out + (16 + j) * kLine, high[j]);
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
