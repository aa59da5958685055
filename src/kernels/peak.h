// What the machine can do at best: products fed from registers and the first-level cache, and the
// memory's triad. The figures that efficiencies are ratios to, so they are taken on random data: on
// zeros the same instructions run 20% faster.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/cpu.h"
#include "base/result.h"
#include "base/thread_pool.h"

namespace amxt::kernels {

struct PeakOptions {
  int threads = 1;                           // the most; measured at 1, 2, 4, ... and at this
  std::vector<int> cpus;                     // CPU of each thread; empty: unpinned
  Isa isa = Isa::kAvx2;                      // the highest to measure
  double seconds = 0.2;                      // of one sample
  int samples = 5;                           // the best one counts: others have met a neighbour
  int64_t triad_bytes = int64_t{128} << 20;  // of each of three arrays
};

struct PeakCompute {
  std::string name;            // "amx bf16", "avx512 bf16", "avx512 fp32", "avx2 fp32"
  std::vector<double> tflops;  // at PeakReport::threads, all together
};

struct PeakReport {
  std::vector<int> threads;
  std::vector<PeakCompute> compute;  // widest first
  // a = b + s c, three arrays counted, in GB/s (10^9).
  std::vector<double> triad_gb_per_second, triad_huge_gb_per_second;
  bool huge_pages = false;  // the second figures were really taken on huge pages
};

// The limit of products alone, a sample at a time: for benchmarks that take turns with it.
class ComputePeak {
 public:
  struct Loop;
  struct Sample {
    double flop, seconds;  // of all threads together; from the first start to the last end
  };

  // The widest loop that `isa` allows. A sample takes about `seconds`; `pool` outlives the object.
  static Result<ComputePeak> create(ThreadPool* pool, Isa isa, double seconds);
  static Result<ComputePeak> create(ThreadPool* pool, const Loop& loop, double seconds);
  const char* name() const;
  Sample sample();

 private:
  ComputePeak(ThreadPool* pool, const Loop& loop) : pool_(pool), loop_(&loop) {}

  ThreadPool* pool_;
  const Loop* loop_;
  Buffer data_;
  std::vector<float> sinks_;
  int64_t rounds_ = 0;
};

// The limits of memory, once over arrays that the caller has: a multiple of 16 floats, or of 64 bytes, aligned to 32 bytes.
// to = x + scale y.
void triad(ThreadPool& pool, int64_t count, float scale, const float* x, const float* y, float* to);
// The bits of `mask` are flipped in each word: what updates memory in place can't be faster.
void update_stream(ThreadPool& pool, int64_t bytes, uint32_t mask, void* data);

// kInvalidArgument for a nonsensical option, kOutOfMemory for the arrays.
Result<PeakReport> measure_peak(const PeakOptions& options);

}  // namespace amxt::kernels
