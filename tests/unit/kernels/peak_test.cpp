#include "kernels/peak.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "base/buffer.h"
#include "kernels/peak_kernel.h"

namespace amxt::kernels {
namespace {

PeakOptions quick() {
  PeakOptions options;
  options.seconds = 0.002;
  options.samples = 2;
  options.triad_bytes = int64_t{4} << 20;
  return options;
}

TEST(Peak, HasARateForEachInstructionSetAndThreadCount) {
  const auto cpu = cpu_isa();
  ASSERT_TRUE(cpu.ok());
  PeakOptions options = quick();
  options.threads = 3;
  options.isa = (*cpu)->chosen;
  const auto report = measure_peak(options);
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_EQ(report->threads, (std::vector<int>{1, 2, 3}));
  ASSERT_EQ(report->compute.size(), static_cast<size_t>(options.isa) + 1);
  EXPECT_EQ(report->compute.back().name, "avx2 fp32");
  for (const PeakCompute& compute : report->compute) {
    ASSERT_EQ(compute.tflops.size(), 3u) << compute.name;
    for (const double tflops : compute.tflops) EXPECT_GT(tflops, 1e-4) << compute.name;
  }
  for (const auto* triad : {&report->triad_gb_per_second, &report->triad_huge_gb_per_second}) {
    ASSERT_EQ(triad->size(), 3u);
    for (const double rate : *triad) EXPECT_GT(rate, 0.01);
  }
}

std::unique_ptr<ThreadPool> two_threads() {
  ThreadPool::Options options;
  options.threads = 2;
  auto pool = ThreadPool::create(options);
  EXPECT_TRUE(pool.ok());
  return std::move(*pool);
}

// Lengths of less than, and of more than, what a thread takes at a time.
TEST(Peak, TriadIsOneOfAllElements) {
  const auto pool = two_threads();
  for (const int64_t count : {int64_t{16}, int64_t{600'000}}) {
    auto memory = Buffer::allocate(3 * count * int64_t{sizeof(float)}, "arrays");
    ASSERT_TRUE(memory.ok());
    float* const to = memory->as<float>();
    float *const x = to + count, *const y = x + count;
    for (int64_t i = 0; i < count; ++i) {
      x[i] = static_cast<float>(i);
      y[i] = static_cast<float>(i % 5);
    }
    triad(*pool, count, 3.0f, x, y, to);
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(to[i], static_cast<float>(i + i % 5 * 3)) << i << " of " << count;
    }
  }
}

TEST(Peak, UpdateStreamReachesEachWordOnce) {
  const auto pool = two_threads();
  const int64_t bytes = (int64_t{5} << 19) + 64, words = bytes / 4;
  auto memory = Buffer::allocate(bytes + 4096, "words");
  ASSERT_TRUE(memory.ok());
  uint32_t* const data = memory->as<uint32_t>();
  for (int64_t i = 0; i < words; ++i) data[i] = static_cast<uint32_t>(i);
  update_stream(*pool, bytes, 0x80000001u, data);
  for (int64_t i = 0; i < words; ++i) {
    ASSERT_EQ(data[i], static_cast<uint32_t>(i) ^ 0x80000001u) << i;
  }
  EXPECT_EQ(data[words], 0u) << "behind the end";
}

TEST(Peak, LeavesOutWhatIsAboveTheInstructionSetAsked) {
  const auto report = measure_peak(quick());
  ASSERT_TRUE(report.ok());
  ASSERT_EQ(report->compute.size(), 1u);
  EXPECT_EQ(report->compute[0].name, "avx2 fp32");
}

// All operands 1: each accumulator holds the number of steps, so a loop that skips work or data
// shows.
TEST(Peak, LoopsReallyMultiplyAllTheyCount) {
  const auto cpu = cpu_isa();
  ASSERT_TRUE(cpu.ok());
  struct Case {
    Isa isa;
    PeakLoop loop;
    bool bf16;
    double sink_per_flop;  // sum of what the sink takes in, for each operation
  };
  const Case cases[] = {{Isa::kAvx2, peak_fp32_avx2, false, 0.5},
                        {Isa::kAvx512, peak_fp32_avx512, false, 0.5},
                        {Isa::kAvx512Bf16, peak_bf16_avx512, true, 0.5},
                        {Isa::kAmx, peak_bf16_amx, true, 0.5 * 2 / 1024}};
  for (const Case& c : cases) {
    if (c.isa > (*cpu)->chosen) continue;
    alignas(64) static uint32_t data[kPeakBytes / 4];
    for (uint32_t& word : data) word = c.bf16 ? 0x3F803F80u : 0x3F800000u;
    float sink = 0;
    const double flops = c.loop(data, 3, &sink);
    EXPECT_NEAR(sink, flops * c.sink_per_flop, flops * 1e-5) << isa_name(c.isa);
  }
  if ((*cpu)->chosen < Isa::kAmx) GTEST_SKIP() << "skipped: no AMX: " << (*cpu)->reason;
}

TEST(Peak, RefusesNonsense) {
  for (const int which : {0, 1, 2, 3}) {
    PeakOptions options = quick();
    if (which == 0) options.threads = 0;
    if (which == 1) options.samples = 0;
    if (which == 2) options.seconds = 0;
    if (which == 3) options.triad_bytes = 1;
    const auto report = measure_peak(options);
    ASSERT_FALSE(report.ok()) << which;
    EXPECT_EQ(report.error().code(), Code::kInvalidArgument);
  }
}

}  // namespace
}  // namespace amxt::kernels
