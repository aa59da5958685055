#include "kernels/simd_avx2.h"
//
#include "kernels/gemm_blocked_fma.h"

namespace amxt::kernels {
namespace {

constinit const BlockedKernel kKernel = multiply_add_kernel<6, 1>("blocked-avx2");

}  // namespace

const BlockedKernel& blocked_kernel_avx2() { return kKernel; }

}  // namespace amxt::kernels
