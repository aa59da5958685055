// The tile kernel over tiles of plain C++, so that its scheme is tested where there is no AMX.
#pragma once

#include "kernels/gemm_blocked_kernel.h"

namespace amxt::kernels {

// Needs AVX512_BF16, for packing and storing.
const BlockedKernel& blocked_kernel_emulated();

}  // namespace amxt::kernels
