// The backend of gemm_blocked_scheme.h in fp32 multiply-adds over the sixteen lanes of simd.h: panels are converted once for each use,
// which costs 3 of 100 instructions for the first operand and less for the second, that stays for all panels of the first. One chain for
// each element, in the order of pairs: the same bits on AVX2 and on AVX-512. Denormals are kept.
#pragma once

#include "kernels/gemm_blocked_lanes.h"
//
#include "kernels/gemm_blocked_scheme.h"

namespace amxt::kernels {
namespace {

// Sums in registers: kRows x 16 kHalves.
template <int64_t kRows, int64_t kHalves>
class MultiplyAdds {
 public:
  static constexpr BlockSides kSides{8, 8};

  void multiply(const bf16* a, const bf16* b, int64_t steps, bool from_zero, float* sums,
                Ahead ahead) {
    if (b != second_of_) convert_second(b, steps);
    convert_first(a, steps);
    // Half of the depth after the other: then both panels are in the first-level cache.
    for (int64_t p = 0; p < steps * kLine; p += kChunk) {
      const int64_t depth = lesser(kChunk, steps * kLine - p);
      for (int64_t half = 0; half < 2; half += kHalves) {
        for (int64_t tile = 0; tile < 2; ++tile) {
          ask(&ahead);
          rows_of_tile(first_ + tile * 16 * kDepth + p, second_ + p * 32 + half * 16, depth,
                       from_zero && p == 0, sums + tile * 512 + half * 256);
        }
      }
    }
  }
  void finish() {}

 private:
  static constexpr int64_t kDepth = kGroupSteps * kLine, kChunk = kDepth / 2;

  // The part of a call's lines that falls to a chunk, a half and a tile.
  static void ask(Ahead* ahead) {
    constexpr int64_t kParts = kDepth / kChunk * (2 / kHalves) * 2, kLines = 32 / kParts;
    for (int64_t i = 0; i < kLines; ++i) {
      __builtin_prefetch(ahead->first + i * kLine, 0, 2);
      __builtin_prefetch(ahead->second + i * kLine, 0, 2);
    }
    ahead->first += kLines * kLine;
    ahead->second += kLines * kLine;
    if (ahead->result == nullptr) return;
    for (int64_t i = 0; i < 2 * kLines; ++i) {
      __builtin_prefetch(lines_behind(ahead->result, i), 0, 2);
    }
    ahead->result = lines_behind(ahead->result, 2 * kLines);
  }

  // 16 rows, kRows at a time, and what is left.
  static void rows_of_tile(const float* a, const float* b, int64_t depth, bool from_zero,
                           float* sums) {
    constexpr int64_t kWhole = 16 / kRows * kRows, kLeft = 16 - kWhole;
    for (int64_t row = 0; row < kWhole; row += kRows) {
      tile<kRows>(a + row * kDepth, b, depth, from_zero, sums + row * 16);
    }
    if constexpr (kLeft > 0) {
      tile<kLeft>(a + kWhole * kDepth, b, depth, from_zero, sums + kWhole * 16);
    }
  }

  void convert_first(const bf16* a, int64_t steps) {
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t row = 0; row < 32; ++row, a += kLine) {
        float* const to = first_ + row * kDepth + step * kLine;
        store(to, load(a));
        store(to + 16, load(a + 16));
      }
    }
  }
  void convert_second(const bf16* b, int64_t steps) {
    second_of_ = b;
    for (int64_t step = 0; step < steps; ++step, b += kBlock) {
      for (int64_t line = 0; line < 32; ++line) {  // halves of 16 pairs
        const I words = words_at(b + line * kLine);
        float* const to = second_ + (step * kLine + line % 16 * 2) * 32 + line / 16 * 16;
        store(to, floats(left<16>(words)));
        store(to + 32, floats(words & all_bits(0xFFFF0000)));
      }
    }
  }

  template <int64_t kCount>
  static void tile(const float* a, const float* b, int64_t depth, bool from_zero, float* sums) {
    F sum[kCount][kHalves];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kCount; ++i) {
#pragma GCC unroll 2
      for (int64_t half = 0; half < kHalves; ++half) {
        sum[i][half] = from_zero ? all(0) : load(sums + half * 256 + i * 16);
      }
    }
    for (int64_t p = 0; p < depth; ++p, b += 32) {
      F line[kHalves];
#pragma GCC unroll 2
      for (int64_t half = 0; half < kHalves; ++half) line[half] = load(b + half * 16);
#pragma GCC unroll 8
      for (int64_t i = 0; i < kCount; ++i) {
        const F row = all(a[i * kDepth + p]);
#pragma GCC unroll 2
        for (int64_t half = 0; half < kHalves; ++half) {
          sum[i][half] = fma(row, line[half], sum[i][half]);
        }
      }
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kCount; ++i) {
#pragma GCC unroll 2
      for (int64_t half = 0; half < kHalves; ++half) {
        store(sums + half * 256 + i * 16, sum[i][half]);
      }
    }
  }

  const bf16* second_of_ = nullptr;
  alignas(64) float first_[32 * kDepth], second_[kDepth * 32];  // [32 rows][p], [p][32 columns]
};

template <int64_t kRows, int64_t kHalves>
constexpr BlockedKernel multiply_add_kernel(const char* name) {
  using Backend = MultiplyAdds<kRows, kHalves>;
  return blocked_kernel<Backend, Backend, Backend>(name);
}

}  // namespace
}  // namespace amxt::kernels
