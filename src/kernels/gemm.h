// Matrix products of a linear layer: forward, gradient of the input, gradient of the weight.
//
// Matrices are row-major; ld* is the distance between rows in elements. Weights and their gradients
// lie in the order that create() was asked for: in the blocked one (blocked_layout.h; bf16 only) ldw
// and lddw mean nothing. E is float or bf16 (activations and weights); sums are in fp32. Legend: T tokens, N output features, K input
// features.
//
// What a result may depend on: an element of Y depends on its row of X and its row of W only; an
// element of dX on its row of dY and all of W; an element of dW on its column of dY, its column of
// X and what it is added to. Never on the number of threads, nor on which other rows or columns the
// call computes: work is cut in blocks that the shape alone fixes. So that owners of different row
// ranges, at any world size, get the bits that one owner of all rows would get wherever the
// implementation adds in one order (`one_order()`); the others still repeat their own bits from run
// to run and from thread count to thread count.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "base/cpu.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "kernels/blocked_layout.h"

namespace amxt::kernels {

// One implementation of the list, and why it was not taken ("" for the one that was).
struct GemmCandidate {
  std::string name;
  std::string skipped_because;
};

// Methods are called by one thread at a time, like ThreadPool::run. The first call with a shape may
// take scratch; later ones with it allocate nothing of ours. A sum over no elements is 0. The only
// failures are memory and, in oneDNN, what its message says.
template <typename E>
class Gemm {
 public:
  // Takes the first implementation of the ordered list that `isa` and the machine allow. `pool`
  // outlives the object.
  static Result<std::unique_ptr<Gemm<E>>> create(ThreadPool* pool, Isa isa,
                                                 WeightOrder order = WeightOrder::kRowMajor);
  virtual ~Gemm() = default;

  // Y[T,N] = X[T,K] W[N,K]^T. Y is E, or float (logits) in the second form.
  virtual Status forward(int64_t T, int64_t N, int64_t K, const E* x, int64_t ldx, const E* w,
                         int64_t ldw, E* y, int64_t ldy) = 0;
  virtual Status forward_float(int64_t T, int64_t N, int64_t K, const E* x, int64_t ldx, const E* w,
                               int64_t ldw, float* y, int64_t ldy) = 0;

  // dX[T,K] = dY[T,N] W[N,K] (+ dX when accumulate, fp32 only: the form with E stores once).
  virtual Status grad_input(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* w,
                            int64_t ldw, E* dx, int64_t lddx) = 0;
  virtual Status grad_input_float(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy,
                                  const E* w, int64_t ldw, float* dx, int64_t lddx,
                                  bool accumulate) = 0;

  // dW[N,K] = dY[T,N]^T X[T,K] (+ dW when accumulate). The second form rounds to E and stores once.
  virtual Status grad_weight(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* x,
                             int64_t ldx, float* dw, int64_t lddw, bool accumulate) = 0;
  virtual Status grad_weight_rounded(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy,
                                     const E* x, int64_t ldx, E* dw, int64_t lddw) = 0;

  // dW of several micro-batches in one sum, rounded once; only where sums_pairs().
  struct Pair {
    const E *dy, *x;
    int64_t T;
  };
  virtual bool sums_pairs() const { return false; }
  virtual Status grad_weight_of_pairs(std::span<const Pair> pairs, int64_t N, int64_t K,
                                      int64_t lddy, int64_t ldx, E* dw) {
    (void)pairs, (void)N, (void)K, (void)lddy, (void)ldx, (void)dw;
    return Error(Code::kUnsupported, name_ + " sums no pairs");
  }

  // Scratch that products of at most these sides may come to take, sums over pairs of `all_T` tokens among them; 0 for what is taken
  // elsewhere.
  static int64_t scratch_bytes_needed(WeightOrder order, int64_t T, int64_t all_T, int64_t N,
                                      int64_t K, int threads);

  // The ordered list with reasons; the taken one has an empty reason.
  const std::vector<GemmCandidate>& candidates() const { return candidates_; }
  const std::string& name() const { return name_; }
  // True when splitting N (in dX), or T (in dW with accumulate), gives the bits of one call.
  virtual bool one_order() const = 0;

 protected:
  std::vector<GemmCandidate> candidates_;
  std::string name_;
};

// Plain scalar truth for tests: sums in fp32, in order of the contracted index.
template <typename E>
void gemm_forward_ref(int64_t T, int64_t N, int64_t K, const E* x, int64_t ldx, const E* w,
                      int64_t ldw, float* y, int64_t ldy);
template <typename E>
void gemm_grad_input_ref(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* w,
                         int64_t ldw, float* dx, int64_t lddx, bool accumulate);
template <typename E>
void gemm_grad_weight_ref(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* x,
                          int64_t ldx, float* dw, int64_t lddw, bool accumulate);

// oneDNN, opened at run time: "3.13.0", or why it could not be opened.
struct OnednnInfo {
  bool loaded = false;
  std::string version;
  std::string path;
  std::string reason;
};
OnednnInfo onednn_info();

}  // namespace amxt::kernels
