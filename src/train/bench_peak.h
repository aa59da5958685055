// bench_peak: what the machine gives, as fast as our kernels go: reads of memory and the three matrix products of training.
#pragma once

#include <string>

#include "base/result.h"
#include "train/bench.h"

namespace amxt::train {

// A JSON object: threads, isa, memory_read_gb_per_second, products [{name, m, n, k, dtype, kernel, tflops}].
// Random data larger than the caches; about half a second for each product. kTimeout, kCancelled.
Result<std::string> bench_peak(int threads, bool pin, const BenchLimits& limits);

}  // namespace amxt::train
