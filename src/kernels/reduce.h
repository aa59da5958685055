// Element-wise reduction of the same range of several ranks' arrays, in the order of ranks.
// bf16 and fp16 are added in fp32 and rounded once.
//
// Memory is the limit, not arithmetic, so there is one version, for the baseline (AVX2, F16C), and each byte is read and written once.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace amxt::kernels {

// kAvg is the sum divided by the number of sources; of integers, rounded towards zero. Sums of integers wrap around. A NaN in any source
// makes the result a NaN for every operation.
enum class ReduceOp : int32_t { kSum = 0, kMax = 1, kMin = 2, kAvg = 3 };

// fp32, bf16, fp16, int32, int64, uint8.
constexpr bool is_reducible(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 ||
         dtype == DType::kI32 || dtype == DType::kI64 || dtype == DType::kU8;
}

// to[i] = op over s of from[s][i], i < count. `to` may be one of the sources. sources >= 1. `divisor` is that of kAvg: the number of values
// that were put together into the sources, which differs from `sources` when they are partial results.
// `around` writes past the caches: for results that are large and not read soon; stream_fence() must follow before others are told.
void reduce(DType dtype, ReduceOp op, const void* const* from, int sources, int64_t divisor,
            int64_t count, void* to, bool around = false);

// memcpy past the caches.
void stream_copy(void* to, const void* from, int64_t bytes);
void stream_fence();

}  // namespace amxt::kernels
