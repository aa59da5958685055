// Transposition of bf16 matrices, for products whose first operand must run along the contracted
// index.
#pragma once

#include <cstdint>

#include "base/bf16.h"

namespace amxt::kernels {

// to[column * ld_to + row] = from[row * ld_from + column]. Needs AVX-512 (BW, VL).
void transpose_avx512(int64_t rows, int64_t columns, const bf16* from, int64_t ld_from, bf16* to,
                      int64_t ld_to);

}  // namespace amxt::kernels
