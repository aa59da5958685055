// Packing and storing for gemm_blocked_scheme.h over the sixteen lanes of simd.h: the same operands and results as gemm_blocked_pack.h and
// gemm_blocked_store.h, for instruction sets without AVX-512's permutations or AVX512_BF16's rounding. Included after a simd header.
#pragma once

#include "kernels/gemm_blocked_kernel.h"
#include "kernels/simd.h"

namespace amxt::kernels {
namespace {

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// 16 elements of a row, zeros beyond the matrix.
inline F lanes_of(const RowMajor& from, int64_t row, int64_t column) {
  const int64_t left = row < from.rows ? from.columns - column : 0;
  if (left <= 0) return all(0);
  const bf16* const at = from.data + (row - from.first_row) * from.ld + column;
  return left >= kLanes ? load(at) : load(at, left);
}

// Two bf16 values in each lane, the first in the lower half.
inline F pair(F first, F second) { return floats(right<16>(bits(first)) | bits(second)); }
inline void store_words(bf16* to, F words) { store(reinterpret_cast<float*>(to), words); }
inline I words_at(const bf16* at) { return bits(load(reinterpret_cast<const float*>(at))); }

inline bf16* block_of(bf16* operand, int64_t group_stride, int64_t panel, int64_t step) {
  return operand + step / kGroupSteps * group_stride + panel * kPanelStride +
         step % kGroupSteps * kBlock;
}

void pack_rows(const RowMajor& from, int64_t row, int64_t column, int64_t column_end, bf16* to,
               int64_t group_stride) {
  for (int64_t at = column; at < column_end; at += kLine) {
    bf16* const out = block_of(to, group_stride, row / kLine, at / kLine);
    for (int64_t i = 0; i < kLine; ++i) {
      store(out + i * kLine, lanes_of(from, row + i, at));
      store(out + i * kLine + 16, lanes_of(from, row + i, at + 16));
    }
  }
}

void pack_rows_as_second(const RowMajor& from, int64_t row, int64_t column, int64_t column_end,
                         bf16* to, int64_t group_stride) {
  for (int64_t half = 0; half < kLine; half += 16) {
    for (int64_t at = column; at < column_end; at += kLine) {
      F r[16];
      for (int64_t i = 0; i < 16; ++i) {
        r[i] = pair(lanes_of(from, row + half + i, at), lanes_of(from, row + half + i, at + 16));
      }
      transpose(r);
      bf16* const out = block_of(to, group_stride, row / kLine, at / kLine) + half * kLine;
      for (int64_t j = 0; j < 16; ++j) store_words(out + j * kLine, r[j]);
    }
  }
}

template <bool kFirst>
void pack_columns(const RowMajor& from, int64_t row, int64_t column, int64_t column_end, bf16* to,
                  int64_t group_stride) {
  for (int64_t at = column; at < column_end; at += kLine) {
    for (int64_t half = 0; half < kLine; half += 16) {
      F r[16];
      for (int64_t j = 0; j < 16; ++j) {
        r[j] = pair(lanes_of(from, row + j, at + half), lanes_of(from, row + j + 16, at + half));
      }
      if (kFirst) transpose(r);
      bf16* const out = block_of(to, group_stride, at / kLine, row / kLine) + half * kLine;
      for (int64_t j = 0; j < 16; ++j) store_words(out + j * kLine, r[j]);
    }
  }
}

inline void convert_weights(const bf16* from, bf16* to) {
  const I lower = all_bits(0xFFFF), upper = all_bits(0xFFFF0000);
  for (int64_t column_pair = 0; column_pair < 16; ++column_pair, to += 2 * kLine) {
    const I n = words_at(from + column_pair * kLine),
            n16 = words_at(from + (16 + column_pair) * kLine);
    store_words(to, floats((n & lower) | left<16>(n16)));
    store_words(to + kLine, floats(right<16>(n) | (n16 & upper)));
  }
}

inline const float* sum_row(const float* sums, int64_t row, int64_t half) {
  return sums + row / 16 * 512 + half * 256 + row % 16 * 16;
}

// The first `count` of 16, none if less than 1.
template <bool kAccumulate, typename E>
inline void store_lanes(E* to, F line, int64_t count) {
  if (count <= 0) return;
  if (count >= kLanes) {
    store(to, kAccumulate ? load(to) + line : line);
  } else {
    store(to, kAccumulate ? load(to, count) + line : line, count);
  }
}

template <typename E, bool kAccumulate>
struct StoreRows {
  ResultPlace y;

  static const void* destination(int64_t, int64_t) { return nullptr; }
  void operator()(const float* sums, int64_t m, int64_t n) const {
    const int64_t rows = lesser(32, y.rows - m * 32), columns = y.columns - n * 32;
    E* to = static_cast<E*>(y.data) + m * 32 * y.ld + n * 32;
    for (int64_t row = 0; row < rows; ++row, to += y.ld) {
      store_lanes<kAccumulate>(to, load(sum_row(sums, row, 0)), columns);
      store_lanes<kAccumulate>(to + 16, load(sum_row(sums, row, 1)), columns - 16);
    }
  }
};

template <typename E, bool kAccumulate>
struct StoreTransposed {
  ResultPlace y;

  static const void* destination(int64_t, int64_t) { return nullptr; }
  void operator()(const float* sums, int64_t m, int64_t n) const {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t rows = lesser(16, y.rows - n * 32 - half * 16), columns = y.columns - m * 32;
      E* const to = static_cast<E*>(y.data) + (n * 32 + half * 16) * y.ld + m * 32;
      for (int64_t side = 0; side < 32; side += 16) {
        F r[16];
        for (int64_t j = 0; j < 16; ++j) r[j] = load(sum_row(sums, side + j, half));
        transpose(r);
        for (int64_t row = 0; row < rows; ++row) {
          store_lanes<kAccumulate>(to + row * y.ld + side, r[row], columns - side);
        }
      }
    }
  }
};

template <typename E, bool kAccumulate>
struct StoreBlocked {
  ResultPlace dw;  // rows n, columns k, ld the elements of a panel

  E* block(int64_t m, int64_t n) const { return static_cast<E*>(dw.data) + n * dw.ld + m * kBlock; }
  const void* destination(int64_t m, int64_t n) const { return block(m, n); }

  void operator()(const float* sums, int64_t m, int64_t n) const {
    E* to = block(m, n);
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t rows = dw.rows - n * 32 - half * 16;
      for (int64_t k = 0; k < 32; k += 2, to += 32) {
        const int64_t columns = dw.columns - m * 32 - k;
        const F even = first_of(sum_row(sums, k, half), columns > 0 ? rows : 0);
        const F odd = first_of(sum_row(sums, k + 1, half), columns > 1 ? rows : 0);
        if constexpr (sizeof(E) == sizeof(bf16)) {
          store_words(to, floats(round_to_bf16(even) | left<16>(round_to_bf16(odd))));
        } else {
          alignas(64) float apart[32], line[32];
          store(apart, even);
          store(apart + 16, odd);
          for (int64_t i = 0; i < 16; ++i) {
            line[2 * i] = apart[i];
            line[2 * i + 1] = apart[16 + i];
          }
          store_lanes<kAccumulate>(to, load(line), kLanes);
          store_lanes<kAccumulate>(to + 16, load(line + 16), kLanes);
        }
      }
    }
  }

 private:
  // Zeros where the weight has no element.
  static F first_of(const float* row, int64_t count) {
    if (count >= kLanes) return load(row);
    return count > 0 ? load(row, count) : all(0);
  }
};

}  // namespace
}  // namespace amxt::kernels
