#include "kernels/peak.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <memory>
#include <random>
#include <thread>

#include "base/buffer.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "kernels/peak_kernel.h"

namespace amxt::kernels {

struct ComputePeak::Loop {
  const char* name;
  Isa needs;
  bool bf16_data;
  PeakLoop run;
};

namespace {

using Loop = ComputePeak::Loop;

// What a thread takes of a stream at a time.
constexpr int64_t kStreamBytes = int64_t{1} << 20;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr Loop kLoops[] = {{"amx bf16", Isa::kAmx, true, peak_bf16_amx},
                           {"avx512 bf16", Isa::kAvx512Bf16, true, peak_bf16_avx512},
                           {"avx512 fp32", Isa::kAvx512, false, peak_fp32_avx512},
                           {"avx2 fp32", Isa::kAvx2, false, peak_fp32_avx2}};

// Seconds from the first start to the last end of `work`, once on each thread of the pool at the
// same time.
template <typename Work>
double seconds_of(ThreadPool& pool, Work work) {
  const int threads = pool.threads();
  std::atomic<int> arrived{0};
  std::vector<double> begin(static_cast<size_t>(threads)), end(begin.size());
  pool.run(threads, [&](int64_t task, int) {
    // A thread that waits here can't take a second task.
    arrived.fetch_add(1);
    while (arrived.load() < threads) std::this_thread::yield();
    begin[static_cast<size_t>(task)] = now();
    work(task);
    end[static_cast<size_t>(task)] = now();
  });
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

// Values of both signs around 1/64: sums stay finite however long the run.
void fill(const Loop& loop, uint64_t seed, std::byte* to) {
  std::mt19937_64 random(seed);
  for (int64_t i = 0; i < kPeakBytes / 4; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const uint32_t high = 0x3C000000u | (bits & 0x81FF0000u);
    const uint32_t low = loop.bf16_data ? 0x3C00u | (bits & 0x81FFu) : bits & 0xFFFFu;
    reinterpret_cast<uint32_t*>(to)[i] = high | low;
  }
}

Result<double> measure_loop(ThreadPool& pool, const Loop& loop, const PeakOptions& options) {
  AMXT_ASSIGN(ComputePeak peak, ComputePeak::create(&pool, loop, options.seconds));
  double best = 0;
  for (int i = 0; i < options.samples; ++i) {
    const ComputePeak::Sample sample = peak.sample();
    best = std::max(best, sample.flop / sample.seconds / 1e12);
  }
  return best;
}

// Three arrays of floats on small or on huge pages.
class Triad {
 public:
  Triad() = default;
  ~Triad() {
    if (data_ != nullptr) munmap(data_, mapped());
  }
  Triad(const Triad&) = delete;
  Triad& operator=(const Triad&) = delete;

  Status allocate(int64_t bytes, bool huge) {
    bytes_ = bytes;
    void* at = mmap(nullptr, mapped(), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
      const int error = errno;
      return Error(Code::kOutOfMemory,
                   fmt::format("arrays of the triad: {} could not be allocated",
                               bytes_text(static_cast<uint64_t>(mapped()))),
                   error);
    }
    data_ = at;
    madvise(data_, mapped(), huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return {};
  }

  // The best rate in GB/s. Each thread touches its part first.
  double measure(ThreadPool& pool, int samples) const {
    const int64_t count = bytes_ / int64_t{sizeof(float)} / 16 * 16;
    const int64_t part = count / pool.threads() / 16 * 16;
    constexpr int64_t kHuge = int64_t{2} << 20;
    const auto start = (reinterpret_cast<uintptr_t>(data_) + kHuge - 1) / kHuge * kHuge;
    float* const a = reinterpret_cast<float*>(start);
    float* const b = a + count;
    float* const c = b + count;
    seconds_of(pool, [&](int64_t i) {
      std::fill_n(a + i * part, part, 0.0f);
      std::fill_n(b + i * part, part, 1.5f);
      std::fill_n(c + i * part, part, 0.25f);
    });
    double best = 0;
    for (int sample = 0; sample < samples; ++sample) {
      const float scale = 3.0f + static_cast<float>(sample);
      const double seconds = seconds_of(pool, [&](int64_t i) {
        triad_avx2(part, scale, b + i * part, c + i * part, a + i * part);
      });
      const double bytes = 3.0 * sizeof(float) * static_cast<double>(part) * pool.threads();
      best = std::max(best, bytes / seconds / 1e9);
    }
    return best;
  }

 private:
  // One huge page more, to align the first array.
  size_t mapped() const { return 3 * static_cast<size_t>(bytes_) + (size_t{2} << 20); }

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

int64_t anonymous_huge_bytes() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  std::string line;
  while (std::getline(rollup, line)) {
    if (line.starts_with("AnonHugePages:")) return std::atoll(line.c_str() + 14) * 1024;
  }
  return 0;
}

std::vector<int> thread_counts(int most) {
  std::vector<int> counts;
  for (int threads = 1; threads < most; threads *= 2) counts.push_back(threads);
  counts.push_back(most);
  return counts;
}

Status measure_triad(ThreadPool& pool, const PeakOptions& options, PeakReport* report) {
  for (const bool huge : {false, true}) {
    const int64_t before = anonymous_huge_bytes();
    Triad triad;
    AMXT_TRY(triad.allocate(options.triad_bytes, huge));
    const double rate = triad.measure(pool, options.samples);
    if (huge) {
      report->huge_pages = anonymous_huge_bytes() - before >= 2 * options.triad_bytes;
      report->triad_huge_gb_per_second.push_back(rate);
    } else {
      report->triad_gb_per_second.push_back(rate);
    }
  }
  return {};
}

}  // namespace

Result<ComputePeak> ComputePeak::create(ThreadPool* pool, Isa isa, double seconds) {
  const Loop* loop = kLoops;
  while (loop->needs > isa) ++loop;
  return create(pool, *loop, seconds);
}

Result<ComputePeak> ComputePeak::create(ThreadPool* pool, const Loop& loop, double seconds) {
  const int threads = pool->threads();
  ComputePeak peak(pool, loop);
  AMXT_ASSIGN(peak.data_, Buffer::allocate(threads * kPeakBytes, "operands of the peak"));
  for (int i = 0; i < threads; ++i) {
    fill(loop, static_cast<uint64_t>(i), peak.data_.data() + i * kPeakBytes);
  }
  peak.sinks_.resize(static_cast<size_t>(threads) * 16);  // a cache line each
  // The first, short run wakes the wide units; the second says how many rounds fill a sample.
  peak.rounds_ = 100;
  peak.sample();
  constexpr int64_t kTrial = 2000;
  peak.rounds_ = kTrial;
  const double trial = std::max(peak.sample().seconds, 1e-6);
  peak.rounds_ = std::max<int64_t>(kTrial, static_cast<int64_t>(kTrial * seconds / trial));
  return peak;
}

const char* ComputePeak::name() const { return loop_->name; }

ComputePeak::Sample ComputePeak::sample() {
  std::vector<double> flop(sinks_.size() / 16);
  const double seconds = seconds_of(*pool_, [&](int64_t i) {
    const size_t thread = static_cast<size_t>(i);
    flop[thread] = loop_->run(data_.data() + i * kPeakBytes, rounds_, &sinks_[thread * 16]);
  });
  return {flop[0] * static_cast<double>(flop.size()), seconds};
}

void triad(ThreadPool& pool, int64_t count, float scale, const float* x, const float* y,
           float* to) {
  pool.run_blocks(count, kStreamBytes / int64_t{sizeof(float)}, [&](int64_t begin, int64_t end) {
    triad_avx2(end - begin, scale, x + begin, y + begin, to + begin);
  });
}

void update_stream(ThreadPool& pool, int64_t bytes, uint32_t mask, void* data) {
  pool.run_blocks(bytes, kStreamBytes, [&](int64_t begin, int64_t end) {
    update_avx2(end - begin, mask, static_cast<std::byte*>(data) + begin);
  });
}

Result<PeakReport> measure_peak(const PeakOptions& options) {
  if (options.threads < 1 || options.samples < 1 || !(options.seconds > 0) ||
      options.triad_bytes < 4096) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("peak: {} threads, {} samples, {} s, {} bytes; at least 1, 1, above 0 "
                    "and 4096 are needed",
                    options.threads, options.samples, options.seconds, options.triad_bytes));
  }
  PeakReport report;
  report.threads = thread_counts(options.threads);
  for (const Loop& loop : kLoops) {
    if (loop.needs <= options.isa) report.compute.push_back({loop.name, {}});
  }
  for (const int threads : report.threads) {
    ThreadPool::Options pool_options;
    pool_options.threads = threads;
    pool_options.cpus = options.cpus;
    AMXT_ASSIGN(const std::unique_ptr<ThreadPool> pool, ThreadPool::create(pool_options));
    size_t row = 0;
    for (const Loop& loop : kLoops) {
      if (loop.needs > options.isa) continue;
      AMXT_ASSIGN(const double tflops, measure_loop(*pool, loop, options));
      report.compute[row++].tflops.push_back(tflops);
    }
    AMXT_TRY(measure_triad(*pool, options, &report));
  }
  return report;
}

}  // namespace amxt::kernels
