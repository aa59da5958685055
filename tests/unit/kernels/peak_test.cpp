#include "kernels/peak.h"

#include <gtest/gtest.h>

#include <cmath>

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
