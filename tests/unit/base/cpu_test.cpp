#include "base/cpu.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

namespace amxt {
namespace {

TEST(CpuTest, TheChosenInstructionSetIsNeverAboveWhatWasDetectedAndSaysWhy) {
  const auto isa = cpu_isa();
  ASSERT_TRUE(isa.ok()) << isa.error().message();
  EXPECT_LE((*isa)->chosen, (*isa)->detected);
  EXPECT_EQ((*isa)->chosen == Isa::kAmx, (*isa)->reason.empty());
  EXPECT_STREQ(isa_name(Isa::kAvx512Bf16), "avx512_bf16");
}

TEST(CpuTest, LimitsNameAtLeastOneCpuAndTheMemory) {
  const CpuLimits limits = cpu_limits();
  EXPECT_GE(limits.affinity.size(), 1u);
  EXPECT_GT(limits.memory_bytes, 0);
  EXPECT_GT(limits.memory_available_bytes, 0);
  EXPECT_LE(limits.memory_available_bytes, limits.memory_bytes);
}

TEST(CpuTest, AMachineHasNoMoreCoresThanProcessors) {
  EXPECT_GE(physical_cores(), 1);
  EXPECT_LE(physical_cores(), sysconf(_SC_NPROCESSORS_CONF));
}

TEST(CpuTest, ThreadsAreSharedOutAndTorchrunsOneIsNotAWish) {
  unsetenv("OMP_NUM_THREADS");
  unsetenv("TORCHELASTIC_RUN_ID");
  std::string why;
  const int alone = default_threads(1, &why);
  EXPECT_GE(alone, 1);
  EXPECT_EQ(default_threads(1000, &why), 1);
  setenv("OMP_NUM_THREADS", "1", 1);
  EXPECT_EQ(default_threads(1, &why), 1);
  EXPECT_EQ(why, "OMP_NUM_THREADS=1");
  setenv("TORCHELASTIC_RUN_ID", "none", 1);
  EXPECT_EQ(default_threads(1, &why), alone);
  EXPECT_NE(why.find("torchrun's own"), std::string::npos);
  setenv("OMP_NUM_THREADS", "3", 1);
  EXPECT_EQ(default_threads(1, &why), 3);
  unsetenv("OMP_NUM_THREADS");
  unsetenv("TORCHELASTIC_RUN_ID");
}

}  // namespace
}  // namespace amxt
