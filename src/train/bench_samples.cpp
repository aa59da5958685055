#include "train/bench_samples.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace amxt::train {

namespace {

double clock_seconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}
double least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}
double most(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

const char* unit_name(BenchLimit::Unit unit) {
  return unit == BenchLimit::Unit::kFlop ? "tflops" : "gb_per_second";
}
double unit_size(BenchLimit::Unit unit) { return unit == BenchLimit::Unit::kFlop ? 1e12 : 1e9; }

}  // namespace

CpuClocks::CpuClocks(ThreadPool& pool) : clocks_(static_cast<size_t>(pool.threads())) {
  std::atomic<int> arrived{0};
  pool.run(pool.threads(), [&](int64_t, int thread) {
    pthread_getcpuclockid(pthread_self(), &clocks_[static_cast<size_t>(thread)]);
    // A thread that waits here can't take a second task.
    arrived.fetch_add(1);
    while (arrived.load() < pool.threads()) std::this_thread::yield();
  });
}

double CpuClocks::mean_seconds() const {
  double sum = 0;
  for (const clockid_t clock : clocks_) sum += clock_seconds(clock);
  return sum / static_cast<double>(clocks_.size());
}

Status BenchSamples::add(const CpuClocks& clocks, const std::function<Status()>& run) {
  const double cpu = clocks.mean_seconds(), begin = clock_seconds(CLOCK_MONOTONIC);
  AMXT_TRY(run());
  seconds.push_back(clock_seconds(CLOCK_MONOTONIC) - begin);
  cpu_seconds.push_back(clocks.mean_seconds() - cpu);
  return {};
}

Result<std::unique_ptr<BenchRun>> BenchRun::create(const BenchKind& kind,
                                                   const BenchRequest& request, int threads,
                                                   bool pin, const BenchLimits& limits) {
  AMXT_TRY(limits.check());
  std::unique_ptr<BenchRun> run(new BenchRun(kind, request, limits));
  AMXT_ASSIGN(const CpuIsa* isa, cpu_isa());
  run->isa_ = isa->chosen;
  AMXT_ASSIGN(run->pool_, bench_pool(threads, pin));
  run->pool_->pin_caller();
  run->clocks_ = std::make_unique<CpuClocks>(*run->pool_);
  return run;
}

Status BenchRun::limit_by_compute() {
  constexpr double kSeconds = 0.02;
  AMXT_ASSIGN(kernels::ComputePeak peak, kernels::ComputePeak::create(pool_.get(), isa_, kSeconds));
  compute_ = std::make_unique<kernels::ComputePeak>(std::move(peak));
  limit_by({compute_->name(), BenchLimit::Unit::kFlop, compute_->sample().flop, [this]() -> Status {
              compute_->sample();
              return {};
            }});
  return {};
}

Status BenchRun::limit_by_triad() {
  constexpr int64_t kCount = int64_t{32} << 20;  // 128 MiB an array
  AMXT_ASSIGN(triad_, Buffer::allocate(3 * kCount * int64_t{sizeof(float)}, "arrays of the triad"));
  float* const a = triad_.as<float>();
  fill_random(a, 3 * kCount, 99);
  limit_by({"triad", BenchLimit::Unit::kBytes, 3.0 * sizeof(float) * static_cast<double>(kCount),
            [this, a]() -> Status {
              kernels::triad(*pool_, kCount, 3.0f, a + kCount, a + 2 * kCount, a);
              return {};
            }});
  return limit_.run();
}

Status BenchRun::take_turns(const BenchShape& shape, std::vector<Contender> contenders) {
  for (Contender& contender : contenders) {
    for (size_t i = 0; i < shape.size(); ++i) contender.row[kind_.sides[i].name] = shape[i];
    AMXT_TRY(limits_.check());
    AMXT_TRY(contender.run());
  }
  for (int64_t round = 0; round < repeat_; ++round) {
    AMXT_TRY(limit_.samples.add(*clocks_, limit_.run));
    for (Contender& contender : contenders) {
      AMXT_TRY(limits_.check());
      AMXT_TRY(contender.samples.add(*clocks_, contender.run));
    }
  }
  for (Contender& contender : contenders) {
    contender.run = nullptr;  // what it holds goes
    finished_.push_back(std::move(contender));
  }
  return {};
}

double BenchRun::best_rate(const std::vector<double>& seconds) const {
  return limit_.amount / least(seconds) / unit_size(limit_.unit);
}

Json BenchRun::peak_json() const {
  const std::string unit = unit_name(limit_.unit);
  Json peak{{"name", limit_.name}};
  peak[unit] = best_rate(limit_.samples.seconds);
  peak[unit + "_median"] = limit_.amount / median(limit_.samples.seconds) / unit_size(limit_.unit);
  peak[unit + "_of_cpu_seconds"] = best_rate(limit_.samples.cpu_seconds);
  return peak;
}

Json BenchRun::row_json(const Contender& contender) const {
  const BenchSamples& samples = contender.samples;
  const double seconds = median(samples.seconds), cpu_seconds = median(samples.cpu_seconds);
  const double amount =
      (limit_.unit == BenchLimit::Unit::kFlop ? contender.flop : contender.bytes) /
      unit_size(limit_.unit);
  Json row = contender.row;
  if (contender.flop > 0) row["flop"] = contender.flop;
  row["bytes"] = contender.bytes;
  row["seconds"] = seconds;
  row["seconds_least"] = least(samples.seconds);
  row["seconds_most"] = most(samples.seconds);
  row["cpu_seconds"] = cpu_seconds;
  row[unit_name(limit_.unit)] = amount / seconds;
  row["ratio_to_peak"] = amount / seconds / best_rate(limit_.samples.seconds);
  row["cpu_ratio_to_peak"] = amount / cpu_seconds / best_rate(limit_.samples.cpu_seconds);
  return row;
}

Json BenchRun::result() const {
  Json json;
  json["isa"] = isa_name(isa_);
  json["threads"] = pool_->threads();
  json["data"] = "random";
  json["repeat"] = repeat_;
  json["sides"] = Json::array();
  for (const BenchKind::Side& side : kind_.sides) json["sides"].push_back(side.name);
  json["peak"] = peak_json();
  json["rows"] = Json::array();
  for (const Contender& contender : finished_) json["rows"].push_back(row_json(contender));
  return json;
}

}  // namespace amxt::train
