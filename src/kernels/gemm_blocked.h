// bf16 products of a linear layer whose weight lies in the blocked order (blocked_layout.h): forward, gradient of the input, gradient of
// the weight. Activations are row-major and packed in the call; the weight is read, and its gradient written, as it lies.
//
// Legend: T tokens, N output features, K input features. Sums are in fp32. An element of a result is one sum over the contracted index
// in an order that the instruction set fixes (32 at a time with tiles, else one by one): its bits never depend on threads, nor on which
// other rows and columns the call computes. What is added to (accumulate) is added last.
//
// Denormals: with AMX and AVX512_BF16 bf16 denormals count as zero, and denormal sums become zero, as the instructions define; with AVX2
// and AVX-512 they are kept.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "base/buffer.h"
#include "base/cpu.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "kernels/gemm.h"
#include "kernels/gemm_blocked_kernel.h"

namespace amxt::kernels {

// Methods are called by one thread at a time, like ThreadPool::run. The first call with a shape may take scratch; later ones allocate
// nothing. The only failure is memory. A sum over no elements is 0.
class BlockedGemm {
 public:
  using GradientPair = Gemm<bf16>::Pair;
  static constexpr int64_t kScratchBytes = int64_t{64} << 20;

  // The kernel of `isa`. `pool` outlives the object.
  static Result<std::unique_ptr<BlockedGemm>> create(ThreadPool* pool, Isa isa);
  // Packed activations take two buffers of about `scratch_bytes` at most: longer ones are multiplied in parts.
  static Result<std::unique_ptr<BlockedGemm>> create(ThreadPool* pool, const BlockedKernel& kernel,
                                                     int64_t scratch_bytes = kScratchBytes);

  // Y[T,N] = X[T,K] W[N,K]^T. Y is bf16, or float (logits) in the second form.
  Status forward(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx, const bf16* w,
                 bf16* y, int64_t ldy);
  Status forward_float(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx, const bf16* w,
                       float* y, int64_t ldy);

  // dX[T,K] = dY[T,N] W[N,K] (+ dX when accumulate).
  Status grad_input(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy, const bf16* w,
                    bf16* dx, int64_t lddx);
  Status grad_input_float(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                          const bf16* w, float* dx, int64_t lddx, bool accumulate);

  // dW[N,K] = dY[T,N]^T X[T,K], summed over all pairs (+ dW when accumulate), blocked. Where the order has no element of dW, zeros are
  // stored or added.
  Status grad_weight(std::span<const GradientPair> pairs, int64_t N, int64_t K, int64_t lddy,
                     int64_t ldx, bf16* dw);
  Status grad_weight_float(std::span<const GradientPair> pairs, int64_t N, int64_t K, int64_t lddy,
                           int64_t ldx, float* dw, bool accumulate);
  Status grad_weight(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy, const bf16* x,
                     int64_t ldx, bf16* dw) {
    return grad_weight({{{dy, x, T}}}, N, K, lddy, ldx, dw);
  }
  Status grad_weight_float(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                           const bf16* x, int64_t ldx, float* dw, bool accumulate) {
    return grad_weight_float({{{dy, x, T}}}, N, K, lddy, ldx, dw, accumulate);
  }

  const std::string& name() const { return name_; }

  // What products of at most these sides come to take, with any kernel.
  // `all_T`: the tokens that gradients of weights are summed over together, those of each pair rounded up to 32.
  static int64_t scratch_bytes_needed(int64_t T, int64_t all_T, int64_t N, int64_t K, int threads);

 private:
  BlockedGemm(ThreadPool* pool, const BlockedKernel& kernel, int64_t scratch_bytes);

  Result<PackedOperand> pack(PackRows pack_rows, std::span<const RowMajor> matrices, int64_t panels,
                             int64_t steps, Buffer* to);
  void multiply(const BlockedProduct& product, PackedOperand a, int64_t a_panels, PackedOperand b,
                int64_t b_panels, int64_t steps, const ResultPlace& result);
  Status forward_to(int64_t T, int64_t K, const bf16* x, int64_t ldx, const bf16* w, ResultPlace y);
  Status grad_input_to(int64_t T, int64_t N, const bf16* dy, int64_t lddy, const bf16* w,
                       ResultPlace dx);
  Status grad_weight_to(std::span<const GradientPair> pairs, int64_t lddy, int64_t ldx,
                        ResultPlace dw);

  int64_t rows_at_once(int64_t columns) const;

  ThreadPool* pool_;
  const BlockedKernel& kernel_;
  int64_t scratch_bytes_;
  std::string name_;
  Buffer first_, second_;  // packed activations
  std::vector<RowMajor> packing_;
  Buffer blocks_;  // sums and converted weights of each thread
};

}  // namespace amxt::kernels
