// bench_samples: what is measured takes turns with its limit, and comes out as rows of figures.
//
// Machines are shared: a neighbour's work that falls on one of two things that are compared is as good as a lie. So each round measures
// the limit and every contender once, and the median of the rounds counts; of the limit the best, since neighbours only ever slow it down.
#pragma once

#include <ctime>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "kernels/peak.h"
#include "train/bench.h"
#include "train/bench_request.h"

namespace amxt::train {

// Processor time of the pool's threads. Each has a clock of its own: the process's is told only at the ticks of threads that run.
class CpuClocks {
 public:
  explicit CpuClocks(ThreadPool& pool);
  double mean_seconds() const;

 private:
  std::vector<clockid_t> clocks_;
};

// Of one thing that takes its turn. Processor seconds, a thread's on average, are what a busy machine leaves as it is.
struct BenchSamples {
  std::vector<double> seconds, cpu_seconds;

  Status add(const CpuClocks& clocks, const std::function<Status()>& run);
};

// One thing that is measured. Its row begins with `row`, which says what it is.
struct Contender {
  Json row;
  double flop = 0;  // 0: not told
  double bytes =
      0;  // of operands read and results written, as often as the operation must touch them
  std::function<Status()> run;
  BenchSamples samples = {};
};

// What contenders are ratios to: floating-point operations or bytes, `amount` of them in one run.
struct BenchLimit {
  enum class Unit { kFlop, kBytes };
  std::string name;
  Unit unit = Unit::kFlop;
  double amount = 0;
  std::function<Status()> run;
  BenchSamples samples = {};
};

class BenchRun {
 public:
  static Result<std::unique_ptr<BenchRun>> create(const BenchKind& kind,
                                                  const BenchRequest& request, int threads,
                                                  bool pin, const BenchLimits& limits);

  ThreadPool* pool() const { return pool_.get(); }
  Isa isa() const { return isa_; }

  // Products fed from registers and the first-level cache.
  Status limit_by_compute();
  // a = b + s c over arrays beyond the caches.
  Status limit_by_triad();
  void limit_by(BenchLimit limit) { limit_ = std::move(limit); }

  // Each contender once, to prepare what the first call needs, then the rounds. Its operands may go afterwards; `shape` is put into rows.
  Status take_turns(const BenchShape& shape, std::vector<Contender> contenders);

  // "isa", "threads", "data", "repeat", "sides", "peak", "rows".
  Json result() const;

 private:
  BenchRun(const BenchKind& kind, const BenchRequest& request, const BenchLimits& limits)
      : kind_(kind), repeat_(request.repeat), limits_(limits) {}
  Json peak_json() const;
  Json row_json(const Contender& contender) const;
  double best_rate(const std::vector<double>& seconds) const;

  const BenchKind& kind_;
  int64_t repeat_;
  BenchLimits limits_;
  Isa isa_ = Isa::kAvx2;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<CpuClocks> clocks_;
  std::unique_ptr<kernels::ComputePeak> compute_;
  Buffer triad_;
  BenchLimit limit_;
  std::vector<Contender> finished_;
};

}  // namespace amxt::train
