// The packed fp32 product: C[M,N] (+)= A[M,P] B[P,N], one chain of fused multiply-adds per element
// over the contracted index p, starting from C. Whatever the instruction set, the block sizes or a
// split of P into several calls: the same bits.
//
// Both operands are converted to fp32 and copied into panels that the register tile reads front to
// back: A as [M/rows][P][rows], B as [N/columns][P][columns], the last panel filled up with zeros.
// A block of B's panels stays in L2 and one panel of it in L1 while all of A's panels pass; C is
// read and written once for each `depth` of P.
#pragma once

#include <memory>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/gemm_fma_kernel.h"

namespace amxt::kernels {

// kOutOfMemory when the threads' blocks can't be had; they are all the memory that it ever takes.
template <typename E>
Result<std::unique_ptr<Gemm<E>>> create_fma_gemm(ThreadPool* pool, const FmaKernel& kernel,
                                                 std::vector<GemmCandidate> candidates);

}  // namespace amxt::kernels
