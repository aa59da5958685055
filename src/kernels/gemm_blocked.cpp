#include "kernels/gemm_blocked.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/blocked_layout.h"

namespace amxt::kernels {
namespace {

constexpr int64_t kGroupElements = kGroupSteps * kBlockElements;  // of a panel
constexpr int64_t kGroupLength = kGroupSteps * kBlockSide;

int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// In parts of about `most`, but none much shorter than the others.
int64_t even(int64_t whole, int64_t most) { return parts(whole, parts(whole, most)); }

// Panels of a block of sums: the kernel's, but small results are cut on for some threads to share; first the shorter side, since the longer
// one is that of the tokens, for which weights are read again. Fixed by the shape alone.
BlockSides cut_of(const BlockSides& most, int64_t m_panels, int64_t n_panels) {
  constexpr int64_t kLeastBlocks = 16, kLeastSide = 2;
  BlockSides cut{even(m_panels, most.m), even(n_panels, most.n)};
  int64_t& first = most.m < most.n ? cut.m : cut.n;
  int64_t& second = most.m < most.n ? cut.n : cut.m;
  while (parts(m_panels, cut.m) * parts(n_panels, cut.n) < kLeastBlocks && second > kLeastSide) {
    int64_t& side = first > kLeastSide ? first : second;
    side = (side + 1) / 2;
  }
  return cut;
}

PackedOperand weights_in_steps(const bf16* w, int64_t K) {
  return {w, BlockedShape{0, K}.panel_elements(), kGroupElements};
}

// Without a contracted index: zeros, or nothing to add.
void fill_zero(const ResultPlace& result, int64_t rows, int64_t row_elements) {
  if (result.accumulate) return;
  const size_t element = result.to_float ? sizeof(float) : sizeof(bf16);
  for (int64_t row = 0; row < rows; ++row) {
    std::memset(
        static_cast<std::byte*>(result.data) + static_cast<size_t>(row * result.ld) * element, 0,
        static_cast<size_t>(row_elements) * element);
  }
}

void* advance(const ResultPlace& result, int64_t elements) {
  return static_cast<std::byte*>(result.data) +
         elements * static_cast<int64_t>(result.to_float ? sizeof(float) : sizeof(bf16));
}

// Of one thread.
int64_t sum_bytes(const BlockedKernel& kernel) {
  int64_t panels = 0;
  for (const BlockedProduct* product : {&kernel.forward, &kernel.grad_input, &kernel.grad_weight}) {
    panels = std::max(panels, product->sides.m * product->sides.n);
  }
  return panels * kBlockElements * int64_t{sizeof(float)};
}
int64_t thread_bytes(const BlockedKernel& kernel) {
  return sum_bytes(kernel) + kernel.grad_input.sides.m * kGroupElements * int64_t{sizeof(bf16)};
}

}  // namespace

BlockedGemm::BlockedGemm(ThreadPool* pool, const BlockedKernel& kernel, int64_t scratch_bytes)
    : pool_(pool), kernel_(kernel), scratch_bytes_(scratch_bytes), name_(kernel.name) {}

Result<std::unique_ptr<BlockedGemm>> BlockedGemm::create(ThreadPool* pool, Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return create(pool, blocked_kernel_avx2());
    case Isa::kAvx512:
      return create(pool, blocked_kernel_avx512());
    case Isa::kAvx512Bf16:
      return create(pool, blocked_kernel_avx512bf16());
    case Isa::kAmx:
      break;
  }
  return create(pool, blocked_kernel_amx());
}

Result<std::unique_ptr<BlockedGemm>> BlockedGemm::create(ThreadPool* pool,
                                                         const BlockedKernel& kernel,
                                                         int64_t scratch_bytes) {
  std::unique_ptr<BlockedGemm> gemm(new BlockedGemm(pool, kernel, scratch_bytes));
  AMXT_ASSIGN(gemm->blocks_, Buffer::allocate(thread_bytes(kernel) * pool->threads(),
                                              "blocks of the matrix product"));
  return gemm;
}

// Rows of activations that are packed together.
int64_t BlockedGemm::rows_at_once(int64_t columns) const {
  const int64_t row_bytes = parts(columns, kGroupLength) * kGroupLength * int64_t{sizeof(bf16)};
  return std::max(scratch_bytes_ / row_bytes / kGroupLength, int64_t{1}) * kGroupLength;
}

Result<PackedOperand> BlockedGemm::pack(PackRows pack_rows, std::span<const RowMajor> matrices,
                                        int64_t panels, int64_t steps, Buffer* to) {
  const int64_t group_stride = panels * kGroupElements;
  const int64_t bytes = parts(steps, kGroupSteps) * group_stride * int64_t{sizeof(bf16)};
  if (bytes > to->bytes()) {
    to->reset();
    AMXT_ASSIGN(*to, Buffer::allocate(bytes, "operands of the matrix product"));
  }
  bf16* const data = to->as<bf16>();
  constexpr int64_t kColumns = 2048;  // of a task: a page of each row
  for (const RowMajor& from : matrices) {
    const int64_t first = from.first_row / kBlockSide;
    const int64_t down = parts(from.rows, kBlockSide) - first,
                  across = parts(from.columns, kColumns);
    const int64_t column_end = parts(from.columns, kBlockSide) * kBlockSide;
    pool_->run(down * across, [&](int64_t task, int) {
      const int64_t column = task % across * kColumns;
      pack_rows(from, (first + task / across) * kBlockSide, column,
                std::min(column_end, column + kColumns), data, group_stride);
    });
  }
  return PackedOperand{data, kGroupElements, group_stride};
}

// Blocks one after the other share panels of `b`, which are the most.
void BlockedGemm::multiply(const BlockedProduct& product, PackedOperand a, int64_t a_panels,
                           PackedOperand b, int64_t b_panels, int64_t steps,
                           const ResultPlace& result) {
  const BlockSides cut = cut_of(product.sides, a_panels, b_panels);
  const int64_t down = parts(a_panels, cut.m), tasks = down * parts(b_panels, cut.n);
  pool_->run(tasks, [&](int64_t task, int thread) {
    std::byte* const scratch = blocks_.data() + thread * thread_bytes(kernel_);
    SumBlock block{};
    block.a = a;
    block.b = b;
    block.steps = steps;
    block.m_begin = task % down * cut.m;
    block.m_end = std::min(a_panels, block.m_begin + cut.m);
    block.n_begin = task / down * cut.n;
    block.n_end = std::min(b_panels, block.n_begin + cut.n);
    // If threads keep pace.
    const int64_t next = std::min(task + pool_->threads(), tasks - 1);
    block.next_m = std::min(next % down * cut.m, a_panels - (block.m_end - block.m_begin));
    block.next_n = next / down * cut.n;
    block.sums = reinterpret_cast<float*>(scratch);
    block.converted = reinterpret_cast<bf16*>(scratch + sum_bytes(kernel_));
    product.multiply(block, result);
  });
}

Status BlockedGemm::forward_to(int64_t T, int64_t K, const bf16* x, int64_t ldx, const bf16* w,
                               ResultPlace y) {
  const int64_t N = y.columns;
  if (T == 0 || N == 0) return {};
  if (K == 0) {
    fill_zero(y, T, N);
    return {};
  }
  const int64_t most = rows_at_once(K), steps = parts(K, kBlockSide);
  for (int64_t row = 0; row < T; row += most) {
    ResultPlace part = y;
    part.rows = std::min(most, T - row);
    part.data = advance(y, row * y.ld);
    const int64_t panels = parts(part.rows, kBlockSide);
    AMXT_ASSIGN(const PackedOperand a, pack(kernel_.pack_x, {{{x + row * ldx, part.rows, K, ldx}}},
                                            panels, steps, &first_));
    multiply(kernel_.forward, a, panels, weights_in_steps(w, K), parts(N, kBlockSide), steps, part);
  }
  return {};
}

Status BlockedGemm::grad_input_to(int64_t T, int64_t N, const bf16* dy, int64_t lddy, const bf16* w,
                                  ResultPlace dx) {
  const int64_t K = dx.columns;
  if (T == 0 || K == 0) return {};
  if (N == 0) {
    fill_zero(dx, T, K);
    return {};
  }
  const int64_t most = rows_at_once(N), steps = parts(N, kBlockSide);
  for (int64_t row = 0; row < T; row += most) {
    ResultPlace part = dx;
    part.rows = std::min(most, T - row);
    part.data = advance(dx, row * dx.ld);
    const int64_t panels = parts(part.rows, kBlockSide);
    AMXT_ASSIGN(
        const PackedOperand b,
        pack(kernel_.pack_dy, {{{dy + row * lddy, part.rows, N, lddy}}}, panels, steps, &second_));
    multiply(kernel_.grad_input, weights_in_steps(w, K), parts(K, kBlockSide), b, panels, steps,
             part);
  }
  return {};
}

// Long sequences: by columns of X, and for each part by columns of dY, so that the sum over T stays one. Each pair begins a step of its own.
Status BlockedGemm::grad_weight_to(std::span<const GradientPair> pairs, int64_t lddy, int64_t ldx,
                                   ResultPlace dw) {
  const int64_t N = dw.rows, K = dw.columns;
  int64_t steps = 0;
  for (const GradientPair& pair : pairs) steps += parts(pair.T, kBlockSide);
  if (N == 0 || K == 0) return {};
  if (steps == 0) {
    fill_zero(dw, parts(N, kBlockSide), dw.ld);
    return {};
  }
  const auto matrices = [&](bool of_x, int64_t column, int64_t columns) {
    packing_.clear();
    int64_t first = 0;
    for (const GradientPair& pair : pairs) {
      const bf16* const data = (of_x ? pair.x : pair.dy) + column;
      packing_.push_back({data, first + pair.T, columns, of_x ? ldx : lddy, first});
      first += parts(pair.T, kBlockSide) * kBlockSide;
    }
    return std::span<const RowMajor>(packing_);
  };
  const int64_t most = rows_at_once(steps * kBlockSide);
  for (int64_t column = 0; column < K; column += most) {
    const int64_t columns = std::min(most, K - column), a_panels = parts(columns, kBlockSide);
    AMXT_ASSIGN(const PackedOperand a, pack(kernel_.pack_x_over_t, matrices(true, column, columns),
                                            a_panels, steps, &first_));
    for (int64_t row = 0; row < N; row += most) {
      ResultPlace part = dw;
      part.rows = std::min(most, N - row);
      part.columns = columns;
      part.data = advance(dw, row / kBlockSide * dw.ld + column / kBlockSide * kBlockElements);
      const int64_t b_panels = parts(part.rows, kBlockSide);
      AMXT_ASSIGN(
          const PackedOperand b,
          pack(kernel_.pack_dy_over_t, matrices(false, row, part.rows), b_panels, steps, &second_));
      multiply(kernel_.grad_weight, a, a_panels, b, b_panels, steps, part);
    }
  }
  return {};
}

// Each buffer keeps the largest operand that was packed into it.
int64_t BlockedGemm::scratch_bytes_needed(int64_t T, int64_t all_T, int64_t N, int64_t K,
                                          int threads) {
  const auto packed = [](int64_t rows, int64_t contracted) {
    const int64_t row_bytes =
        parts(contracted, kGroupLength) * kGroupLength * int64_t{sizeof(bf16)};
    const int64_t most =
        std::max(kScratchBytes / row_bytes / kGroupLength, int64_t{1}) * kGroupLength;
    return parts(std::min(rows, most), kBlockSide) * kBlockSide * row_bytes;
  };
  int64_t of_thread = 0;
  for (const BlockedKernel* kernel : {&blocked_kernel_avx2(), &blocked_kernel_avx512(),
                                      &blocked_kernel_avx512bf16(), &blocked_kernel_amx()})
    of_thread = std::max(of_thread, thread_bytes(*kernel));
  return of_thread * threads + std::max(packed(T, K), packed(K, all_T)) +
         std::max(packed(T, N), packed(N, all_T));
}

Status BlockedGemm::forward(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx,
                            const bf16* w, bf16* y, int64_t ldy) {
  return forward_to(T, K, x, ldx, w, {y, T, N, ldy, false, false});
}

Status BlockedGemm::forward_float(int64_t T, int64_t N, int64_t K, const bf16* x, int64_t ldx,
                                  const bf16* w, float* y, int64_t ldy) {
  return forward_to(T, K, x, ldx, w, {y, T, N, ldy, true, false});
}

Status BlockedGemm::grad_input(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                               const bf16* w, bf16* dx, int64_t lddx) {
  return grad_input_to(T, N, dy, lddy, w, {dx, T, K, lddx, false, false});
}

Status BlockedGemm::grad_input_float(int64_t T, int64_t N, int64_t K, const bf16* dy, int64_t lddy,
                                     const bf16* w, float* dx, int64_t lddx, bool accumulate) {
  return grad_input_to(T, N, dy, lddy, w, {dx, T, K, lddx, true, accumulate});
}

Status BlockedGemm::grad_weight(std::span<const GradientPair> pairs, int64_t N, int64_t K,
                                int64_t lddy, int64_t ldx, bf16* dw) {
  const int64_t panel = BlockedShape{N, K}.panel_elements();
  return grad_weight_to(pairs, lddy, ldx, {dw, N, K, panel, false, false});
}

Status BlockedGemm::grad_weight_float(std::span<const GradientPair> pairs, int64_t N, int64_t K,
                                      int64_t lddy, int64_t ldx, float* dw, bool accumulate) {
  const int64_t panel = BlockedShape{N, K}.panel_elements();
  return grad_weight_to(pairs, lddy, ldx, {dw, N, K, panel, true, accumulate});
}

}  // namespace amxt::kernels
