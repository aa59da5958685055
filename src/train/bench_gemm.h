// bench_gemm: the three products of a linear layer by each implementation of the ordered list, in turn, beside the limit of the same run.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "train/bench.h"

namespace amxt::train {

// `options`: a JSON object or empty; "shapes", an array of [T, N, K] (default: sides of an 8b model's layer, T 512 and 2048), and
// "repeat", the rounds (default 5). The result is a JSON object, described at amxt_preview_bench(). kInvalidArgument, kOutOfMemory,
// kTimeout, kCancelled.
Result<std::string> bench_gemm(std::string_view options, int threads, bool pin,
                               const BenchLimits& limits);

}  // namespace amxt::train
