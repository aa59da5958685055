#include "kernels/simd_avx512.h"
//
#include "kernels/gemm_blocked_fma.h"

namespace amxt::kernels {
namespace {

constinit const BlockedKernel kKernel = multiply_add_kernel<8, 2>("blocked-avx512");

}  // namespace

const BlockedKernel& blocked_kernel_avx512() { return kKernel; }

}  // namespace amxt::kernels
