// What the benchmarks share: when to stop, random operands, threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/bf16.h"
#include "base/cpu.h"
#include "base/deadline.h"
#include "base/result.h"
#include "base/thread_pool.h"

namespace amxt::train {

struct BenchLimits {
  Deadline deadline;
  const std::atomic<bool>* cancel;

  Status check() const {
    if (cancel != nullptr && cancel->load()) return Error(Code::kCancelled, "cancelled");
    if (deadline.passed()) return Error(Code::kTimeout, "not done by the deadline");
    return {};
  }
};

// Full mantissas of magnitude 0.5 to 1, times `scale`, and both signs: products of zeros, or of few bits, take less power and run faster.
template <typename E>
void fill_random(E* values, int64_t count, uint64_t seed, float scale = 1) {
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    const float unit = static_cast<float>(static_cast<uint32_t>(seed >> 32)) * 0x1p-32f;
    values[i] = from_float<E>((unit < 0.5f ? -scale : scale) * (0.5f + 0.5f * unit));
  }
}

inline Result<std::unique_ptr<ThreadPool>> bench_pool(int threads, bool pin) {
  ThreadPool::Options options;
  options.threads = threads;
  const std::vector<int> cpus = cpu_limits().affinity;
  if (pin && static_cast<int>(cpus.size()) >= threads)
    options.cpus.assign(cpus.begin(), cpus.begin() + threads);
  return ThreadPool::create(options);
}

}  // namespace amxt::train
