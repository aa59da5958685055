// What an instruction set provides for the blocked products of gemm_blocked.h. Light: the files with wider flags include it.
//
// A packed operand is [R panels of 32] x [P steps of 32], P the contracted index; panel by panel in groups of 8 steps, 2 KiB a block:
//   first operand   [32 rows][32 p]
//   second operand  [2 halves of 16 columns][16 pairs of p][16 columns][2 p of the pair]
// Which p stand beside each other in a row or a pair is the same in both operands of a product, and otherwise free.
#pragma once

#include <cstdint>

#include "base/bf16.h"

namespace amxt::kernels {

inline constexpr int64_t kGroupSteps = 8;  // the depth that a block of sums is visited with, 256
inline constexpr int64_t kLine = 32, kBlock = kLine * kLine, kPanelStride = kGroupSteps * kBlock;

// A matrix in memory as it stands, or rows [first_row, rows) of one: `data` is of the first that is there.
struct RowMajor {
  const bf16* data;
  int64_t rows, columns, ld, first_row = 0;
};

// Where the block of a panel and a step is: data + step / 8 * group_stride + panel * panel_stride + step % 8 * 1024, in elements. Packed
// activations have their panels 8 blocks apart.
struct PackedOperand {
  const bf16* data;
  int64_t panel_stride, group_stride;
};

// Packs 32 rows of memory, from `row` on, and their columns from `column` to `column_end` (multiples of 32), into the operand at `to`:
// block by block, since a block is written together (row by row took 1.6 times as long). Zeros stand for what lies outside the matrix.
using PackRows = void (*)(const RowMajor& from, int64_t row, int64_t column, int64_t column_end,
                          bf16* to, int64_t group_stride);

// Where a result goes: rows x columns, `ld` apart when row-major, `ld` the elements of a panel when blocked. bf16 or float; added to what
// is there, float only.
struct ResultPlace {
  void* data;
  int64_t rows, columns, ld;
  bool to_float, accumulate;
};

// One block of sums: panels [m_begin, m_end) of the first operand by [n_begin, n_end) of the second.
struct SumBlock {
  PackedOperand a, b;
  int64_t m_begin, m_end, n_begin, n_end;
  int64_t next_m, next_n;  // where the thread's next block is likely to begin: asked for ahead
  int64_t steps;
  float* sums;      // scratch: a block each panel of m and n
  bf16* converted;  // scratch of grad_input: 8 blocks each panel of m
};

struct BlockSides {
  int64_t m, n;  // panels
};

struct BlockedProduct {
  BlockSides sides;  // of a block of sums, at most
  void (*multiply)(const SumBlock& block, const ResultPlace& result);
};

struct BlockedKernel {
  const char* name;
  // Of X [T,K] and dY [T,N]: contracted along the row (forward, grad_input), or over T (grad_weight).
  PackRows pack_x, pack_dy, pack_x_over_t, pack_dy_over_t;
  BlockedProduct forward;  // first X, second W
  BlockedProduct
      grad_input;  // first W as it lies, its columns for rows; second dY; the result is transposed
  BlockedProduct grad_weight;  // first X over t, its columns for rows; second dY over t
};

const BlockedKernel& blocked_kernel_avx2();
const BlockedKernel& blocked_kernel_avx512();
const BlockedKernel& blocked_kernel_avx512bf16();
const BlockedKernel& blocked_kernel_amx();

}  // namespace amxt::kernels
