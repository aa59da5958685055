#include "kernels/gemm_blocked_pack.h"
#include "kernels/gemm_blocked_store.h"
//
#include "kernels/gemm_blocked_scheme.h"

namespace amxt::kernels {
namespace {

// 8 rows x 2 vectors of sums: enough independent chains for two products a cycle, 10 loads for 16 products.
class DotProducts {
 public:
  static constexpr BlockSides kSides{8, 8};

  void multiply(const bf16* a, const bf16* b, int64_t steps, bool from_zero, float* sums,
                Ahead ahead) {
    // A line of each operand a step and strip, two of the result: what a call has to ask for of blocks of 8 x 8 panels.
    for (int64_t row = 0; row < 32; row += kRows) {
      strip(a + row * 32, b, steps, from_zero, sums + row / 16 * 512 + row % 16 * 16, ahead);
      ahead.first += kGroupSteps * kLine;
      ahead.second += kGroupSteps * kLine;
      if (ahead.result != nullptr) ahead.result = lines_behind(ahead.result, 2 * kGroupSteps);
    }
  }
  void finish() {}

 private:
  static constexpr int64_t kRows = 8;

  static void strip(const bf16* a, const bf16* b, int64_t steps, bool from_zero, float* sums,
                    Ahead ahead) {
    __m512 sum[kRows][2];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
      sum[i][0] = from_zero ? _mm512_setzero_ps() : _mm512_load_ps(sums + i * 16);
      sum[i][1] = from_zero ? _mm512_setzero_ps() : _mm512_load_ps(sums + 256 + i * 16);
    }
    for (int64_t step = 0; step < steps; ++step, a += kBlock, b += kBlock) {
      _mm_prefetch(ahead.second + step * kLine, _MM_HINT_T1);
      if (ahead.result == nullptr) {
        _mm_prefetch(ahead.first + step * kLine, _MM_HINT_T1);
      } else {
        _mm_prefetch(lines_behind(ahead.result, 2 * step), _MM_HINT_T1);
        _mm_prefetch(lines_behind(ahead.result, 2 * step + 1), _MM_HINT_T1);
      }
#pragma GCC unroll 4
      for (int64_t pair = 0; pair < 16; ++pair) {
        const auto low = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + pair * 32));
        const auto high = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + 512 + pair * 32));
#pragma GCC unroll 8
        for (int64_t i = 0; i < kRows; ++i) {
          int32_t word;
          __builtin_memcpy(&word, a + i * 32 + pair * 2, sizeof word);
          const auto row = reinterpret_cast<__m512bh>(_mm512_set1_epi32(word));
          sum[i][0] = _mm512_dpbf16_ps(sum[i][0], row, low);
          sum[i][1] = _mm512_dpbf16_ps(sum[i][1], row, high);
        }
      }
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
      _mm512_store_ps(sums + i * 16, sum[i][0]);
      _mm512_store_ps(sums + 256 + i * 16, sum[i][1]);
    }
  }
};

// More tokens, for which weights are converted once.
struct DotProductsOfWeights : DotProducts {
  static constexpr BlockSides kSides{8, 16};
};

constinit const BlockedKernel kKernel =
    blocked_kernel<DotProducts, DotProductsOfWeights, DotProducts>("blocked-avx512_bf16");

}  // namespace

const BlockedKernel& blocked_kernel_avx512bf16() { return kKernel; }

}  // namespace amxt::kernels
