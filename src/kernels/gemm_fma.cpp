#include "kernels/gemm_fma.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/buffer.h"

namespace amxt::kernels {
namespace {

template <typename E>
struct Operand {
  const E* data;
  int64_t ld;
  Lay lay;

  const E* at(int64_t i, int64_t p) const {
    return lay == Lay::kAlong ? data + i * ld + p : data + p * ld + i;
  }
};

template <typename E>
class FmaGemm final : public Gemm<E> {
 public:
  FmaGemm(ThreadPool* pool, const FmaKernel& kernel, std::vector<GemmCandidate> candidates,
          Buffer memory)
      : pool_(pool), kernel_(kernel), memory_(std::move(memory)) {
    this->name_ = kernel.name;
    this->candidates_ = std::move(candidates);
  }

  // An odd number of cache lines, so that the rows of a tile fall into different sets.
  static int64_t ld_sums(const FmaKernel& k) { return k.block_columns + 16; }

  // Floats of one thread, whole cache lines: a block of A, of B and of C.
  static int64_t thread_floats(const FmaKernel& k) {
    const int64_t floats = (k.block_rows + k.block_columns) * k.depth + k.block_rows * ld_sums(k);
    return (floats + 15) / 16 * 16;
  }

  Status forward(int64_t T, int64_t N, int64_t K, const E* x, int64_t ldx, const E* w, int64_t ldw,
                 E* y, int64_t ldy) override {
    return multiply<E>(T, N, K, {x, ldx, Lay::kAlong}, {w, ldw, Lay::kAlong}, y, ldy, false);
  }
  Status forward_float(int64_t T, int64_t N, int64_t K, const E* x, int64_t ldx, const E* w,
                       int64_t ldw, float* y, int64_t ldy) override {
    return multiply<float>(T, N, K, {x, ldx, Lay::kAlong}, {w, ldw, Lay::kAlong}, y, ldy, false);
  }
  Status grad_input(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* w,
                    int64_t ldw, E* dx, int64_t lddx) override {
    return multiply<E>(T, K, N, {dy, lddy, Lay::kAlong}, {w, ldw, Lay::kAcross}, dx, lddx, false);
  }
  Status grad_input_float(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* w,
                          int64_t ldw, float* dx, int64_t lddx, bool accumulate) override {
    return multiply<float>(T, K, N, {dy, lddy, Lay::kAlong}, {w, ldw, Lay::kAcross}, dx, lddx,
                           accumulate);
  }
  Status grad_weight(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* x,
                     int64_t ldx, float* dw, int64_t lddw, bool accumulate) override {
    return multiply<float>(N, K, T, {dy, lddy, Lay::kAcross}, {x, ldx, Lay::kAcross}, dw, lddw,
                           accumulate);
  }
  Status grad_weight_rounded(int64_t T, int64_t N, int64_t K, const E* dy, int64_t lddy, const E* x,
                             int64_t ldx, E* dw, int64_t lddw) override {
    return multiply<E>(N, K, T, {dy, lddy, Lay::kAcross}, {x, ldx, Lay::kAcross}, dw, lddw, false);
  }
  bool one_order() const override { return true; }

 private:
  void pack(const Operand<E>& operand, int64_t width, int64_t begin, int64_t end, int64_t p,
            int64_t depth, float* to) const {
    if constexpr (std::is_same_v<E, float>) {
      kernel_.pack_float(operand.lay, width, end - begin, depth, operand.at(begin, p), operand.ld,
                         to);
    } else {
      kernel_.pack_bf16(operand.lay, width, end - begin, depth, operand.at(begin, p), operand.ld,
                        to);
    }
  }

  // The block [rows] x [columns] of C over all of P. It is summed in `scratch`: rows of a wide C
  // fall into one set of the first-level cache, more of them than it has ways (a fifth of the speed
  // at 2048 columns).
  template <typename C>
  void block(int64_t row, int64_t row_end, int64_t column, int64_t column_end, int64_t P,
             const Operand<E>& a, const Operand<E>& b, C* c, int64_t ldc, bool accumulate,
             float* scratch) const {
    float* const packed_a = scratch;
    float* const packed_b = packed_a + kernel_.block_rows * kernel_.depth;
    float* const sums = packed_b + kernel_.block_columns * kernel_.depth;
    const int64_t rows = row_end - row, columns = column_end - column, ld = ld_sums(kernel_);
    C* const out = c + row * ldc + column;
    if constexpr (std::is_same_v<C, float>) {
      for (int64_t i = 0; accumulate && i < rows; ++i) {
        std::memcpy(sums + i * ld, out + i * ldc, static_cast<size_t>(columns) * sizeof(float));
      }
    }
    for (int64_t p = 0; p < P; p += kernel_.depth) {
      const int64_t depth = std::min(kernel_.depth, P - p);
      pack(a, kernel_.rows, row, row_end, p, depth, packed_a);
      pack(b, kernel_.columns, column, column_end, p, depth, packed_b);
      for (int64_t j = 0; j < columns; j += kernel_.columns) {
        for (int64_t i = 0; i < rows; i += kernel_.rows) {
          kernel_.tile(std::min(kernel_.rows, rows - i), std::min(kernel_.columns, columns - j),
                       depth, packed_a + i * depth, packed_b + j * depth, sums + i * ld + j, ld,
                       p == 0 && !accumulate);
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      if constexpr (std::is_same_v<C, float>) {
        std::memcpy(out + i * ldc, sums + i * ld, static_cast<size_t>(columns) * sizeof(float));
      } else {
        kernel_.round(columns, sums + i * ld, out + i * ldc);
      }
    }
  }

  template <typename C>
  Status multiply(int64_t M, int64_t N, int64_t P, Operand<E> a, Operand<E> b, C* c, int64_t ldc,
                  bool accumulate) {
    if (M == 0 || N == 0) return {};
    if (P == 0) {
      if (!accumulate) {
        for (int64_t i = 0; i < M; ++i) {
          std::memset(c + i * ldc, 0, static_cast<size_t>(N) * sizeof(C));
        }
      }
      return {};
    }
    const int64_t down = (M + kernel_.block_rows - 1) / kernel_.block_rows;
    const int64_t across = (N + kernel_.block_columns - 1) / kernel_.block_columns;
    pool_->run(down * across, [&](int64_t task, int thread) {
      const int64_t row = task % down * kernel_.block_rows;
      const int64_t column = task / down * kernel_.block_columns;
      block(row, std::min(M, row + kernel_.block_rows), column,
            std::min(N, column + kernel_.block_columns), P, a, b, c, ldc, accumulate,
            memory_.template as<float>() + thread * thread_floats(kernel_));
    });
    return {};
  }

  ThreadPool* pool_;
  const FmaKernel& kernel_;
  Buffer memory_;
};

}  // namespace

template <typename E>
Result<std::unique_ptr<Gemm<E>>> create_fma_gemm(ThreadPool* pool, const FmaKernel& kernel,
                                                 std::vector<GemmCandidate> candidates) {
  const int64_t floats = FmaGemm<E>::thread_floats(kernel) * pool->threads();
  AMXT_ASSIGN(Buffer memory,
              Buffer::allocate(floats * int64_t{sizeof(float)}, "blocks of the matrix product"));
  return std::unique_ptr<Gemm<E>>(
      new FmaGemm<E>(pool, kernel, std::move(candidates), std::move(memory)));
}

template Result<std::unique_ptr<Gemm<float>>> create_fma_gemm(ThreadPool*, const FmaKernel&,
                                                              std::vector<GemmCandidate>);
template Result<std::unique_ptr<Gemm<bf16>>> create_fma_gemm(ThreadPool*, const FmaKernel&,
                                                             std::vector<GemmCandidate>);

}  // namespace amxt::kernels
