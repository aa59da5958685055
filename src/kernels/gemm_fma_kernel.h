// What an instruction set provides for the packed fp32 product of gemm_fma.h. Light: the files with
// wider flags include it.
#pragma once

#include <cstdint>

#include "base/bf16.h"

namespace amxt::kernels {

// How an operand lies in memory: element (i, p) at [i * ld + p] (along) or at [p * ld + i]
// (across).
enum class Lay { kAlong, kAcross };

// One instruction set's part.
struct FmaKernel {
  const char* name;
  int64_t rows, columns;              // register tile
  int64_t block_rows, block_columns;  // of C, in one task
  int64_t depth;                      // of P, between two visits of C

  // The panels of `count` rows of A (columns of B), width = `rows` (`columns`): panel q starts at
  // q * width * depth and holds element (q * width + i, p) at p * width + i, 0 where there is none.
  void (*pack_float)(Lay lay, int64_t width, int64_t count, int64_t depth, const float* from,
                     int64_t ld, float* to);
  void (*pack_bf16)(Lay lay, int64_t width, int64_t count, int64_t depth, const bf16* from,
                    int64_t ld, float* to);
  // c[rows_used, columns_used] (+)= panel a times panel b over `depth`.
  void (*tile)(int64_t rows_used, int64_t columns_used, int64_t depth, const float* a,
               const float* b, float* c, int64_t ldc, bool from_zero);
  // To nearest even; a NaN stays a quiet NaN.
  void (*round)(int64_t count, const float* from, bf16* to);
};

const FmaKernel& fma_kernel_avx2();
const FmaKernel& fma_kernel_avx512();

}  // namespace amxt::kernels
