// bf16 products by oneDNN's matmul, called from the pool's threads on blocks of the result that the
// shape alone fixes, one thread each. dY is transposed into scratch before dW: oneDNN runs at half
// speed on a transposed first operand.
//
// Seen, not promised by oneDNN: cutting rows or columns of the result changes no bit when the
// contracted side is a multiple of 32 and no side is 1. Cutting the contracted side does: the sum
// so far is added last.
#pragma once

#include <memory>
#include <vector>

#include "kernels/gemm.h"

namespace amxt::kernels {

const char* onednn_gemm_name(Isa isa);

// kUnsupported, with the reason for the list of candidates, when oneDNN can't be used.
Result<std::unique_ptr<Gemm<bf16>>> create_onednn_gemm(ThreadPool* pool, Isa isa);

}  // namespace amxt::kernels
