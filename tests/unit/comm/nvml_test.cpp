#include "comm/nvml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "support/recorded_machine.h"

namespace amxt::comm {
namespace {

using test::RecordedMachine;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class NvmlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(::testing::TempDir()) /
        ("nvml_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override {
    unsetenv("NVML_STUB_FIXTURE");
    std::filesystem::remove_all(folder_);
  }
  GpuSurvey survey(const std::string& text,
                   const std::string& library = RecordedMachine::nvml_stub()) {
    const RecordedMachine machine(folder_ / std::to_string(++machines_), text);
    setenv("NVML_STUB_FIXTURE", machine.fixture().c_str(), 1);
    return survey_gpus(library);
  }
  std::filesystem::path folder_;
  int machines_ = 0;
};

std::vector<int> range(int first, int last) {
  std::vector<int> numbers(static_cast<size_t>(last - first + 1));
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

TEST_F(NvmlTest, TellsTheGpusOfAP4d) {
  const GpuSurvey found = survey(RecordedMachine::text_of("p4d.24xlarge"));
  ASSERT_TRUE(found.found) << found.reason;
  EXPECT_EQ(found.driver_version, "535.183.01");
  EXPECT_EQ(found.nvml_version, "12.535.183.01");
  EXPECT_EQ(found.path, RecordedMachine::nvml_stub());
  EXPECT_THAT(found.missing, IsEmpty());
  ASSERT_EQ(found.gpus.size(), 8u);
  const Gpu& gpu = found.gpus[5];
  EXPECT_EQ(gpu.fault, "");
  EXPECT_EQ(gpu.name, "NVIDIA A100-SXM4-40GB");
  EXPECT_EQ(gpu.uuid, "GPU-00000005-0000-0000-0000-000000000000");
  EXPECT_EQ(gpu.bus_id, "0000:90:1d.0");
  EXPECT_EQ(gpu.memory_bytes, int64_t{40960} << 20);
  EXPECT_EQ(gpu.compute_major, 8);
  EXPECT_EQ(gpu.minor, 0);
  EXPECT_EQ(gpu.pcie_generation, 4);
  EXPECT_EQ(gpu.pcie_width, 16);
  EXPECT_EQ(gpu.mig, false);
  EXPECT_EQ(gpu.virtualization, GpuVirtualization::kPassthrough);
  std::vector<int> cpus = range(24, 47);
  const std::vector<int> second = range(72, 95);
  cpus.insert(cpus.end(), second.begin(), second.end());
  EXPECT_EQ(gpu.cpus, cpus);
  EXPECT_THAT(gpu.numa_nodes, ElementsAre(1));
  EXPECT_EQ(gpu.nvlinks, 12);
  EXPECT_EQ(gpu.switch_nvlinks, 12);
  EXPECT_EQ(found.pairs[0][7].nvlinks, 12);
  EXPECT_EQ(found.pairs[0][7].level, GpuLevel::kSystem);
  EXPECT_EQ(found.pairs[1][0].level, GpuLevel::kSingle);
  EXPECT_EQ(found.pairs[0][7].read, GpuP2p::kOk);
}

TEST_F(NvmlTest, CountsTheLinksOfEachPairWithoutSwitches) {
  const GpuSurvey found = survey(
      "gpu name=V bus=0000:01:00.0 cc=7.0 pcie=3x16 links=2g1,1g2\n"
      "gpu name=V bus=0000:02:00.0 cc=7.0 pcie=3x16 links=2g0\n"
      "gpu name=V bus=0000:03:00.0 cc=7.0 pcie=3x16 links=1g0\n"
      "pair * * level=50\n");
  ASSERT_TRUE(found.found);
  EXPECT_EQ(found.gpus[0].nvlinks, 3);
  EXPECT_EQ(found.gpus[0].switch_nvlinks, 0);
  EXPECT_EQ(found.pairs[0][1].nvlinks, 2);
  EXPECT_EQ(found.pairs[1][0].nvlinks, 2);
  EXPECT_EQ(found.pairs[2][0].nvlinks, 1);
  EXPECT_EQ(found.pairs[1][2].nvlinks, 0);
}

TEST_F(NvmlTest, LinksThatAreDownDoNotCount) {
  const GpuSurvey found = survey(
      "gpu name=A bus=0000:01:00.0 cc=8.0 links=12s,2!\n"
      "gpu name=A bus=0000:02:00.0 cc=8.0 links=12s\n");
  EXPECT_EQ(found.gpus[0].nvlinks, 10);
  EXPECT_EQ(found.pairs[0][1].nvlinks, 10);
  EXPECT_EQ(found.pairs[1][0].nvlinks, 10);
}

TEST_F(NvmlTest, NamesALibraryThatIsMissing) {
  const GpuSurvey found = survey_gpus("libno_such_driver.so.1");
  EXPECT_FALSE(found.found);
  EXPECT_FALSE(found.library_found);
  EXPECT_THAT(found.reason, HasSubstr("libno_such_driver.so.1"));
  EXPECT_THAT(found.gpus, IsEmpty());
}

TEST_F(NvmlTest, NamesALibraryThatIsNoNvml) {
  const GpuSurvey found = survey_gpus("libm.so.6");
  EXPECT_FALSE(found.found);
  EXPECT_TRUE(found.library_found);
  EXPECT_THAT(found.reason, HasSubstr("has no function nvmlInit_v2"));
}

TEST_F(NvmlTest, TellsWhyTheDriverDoesNotAnswer) {
  EXPECT_THAT(survey("init 18\n").reason, HasSubstr("Driver/library version mismatch (18)"));
  const GpuSurvey unloaded = survey("init 9\n");
  EXPECT_FALSE(unloaded.found);
  EXPECT_THAT(unloaded.reason, HasSubstr("Driver Not Loaded (9) (no NVIDIA driver)"));
}

TEST_F(NvmlTest, AMachineWithoutGpusHasNone) {
  const GpuSurvey found = survey("driver 1.2\n");
  EXPECT_TRUE(found.found);
  EXPECT_THAT(found.gpus, IsEmpty());
  EXPECT_THAT(found.pairs, IsEmpty());
  EXPECT_EQ(found.reason, "");
}

TEST_F(NvmlTest, AGpuThatIsLostIsNamedAndTheOthersAreTold) {
  const GpuSurvey found = survey(
      "gpu name=A bus=0000:01:00.0 cc=8.0 links=12s\n"
      "gpu name=B bus=0000:02:00.0 cc=8.0 links=12s error=15\n"
      "gpu name=C bus=0000:03:00.0 cc=8.0 links=12s handle_error=15\n"
      "gpu name=D bus=0000:04:00.0 cc=8.0 links=12s\n");
  ASSERT_EQ(found.gpus.size(), 4u);
  EXPECT_EQ(found.gpus[0].fault, "");
  EXPECT_THAT(found.gpus[1].fault, HasSubstr("GPU is lost"));
  EXPECT_THAT(found.gpus[2].fault, HasSubstr("GPU is lost"));
  EXPECT_EQ(found.pairs[0][3].nvlinks, 12);
  EXPECT_EQ(found.pairs[0][1].nvlinks, 0);
  EXPECT_EQ(found.pairs[2][0].level, std::nullopt);
}

TEST_F(NvmlTest, AnOldOneTellsWhatItCan) {
  const GpuSurvey found =
      survey(RecordedMachine::text_of("p4d.24xlarge"), RecordedMachine::old_nvml_stub());
  ASSERT_TRUE(found.found) << found.reason;
  EXPECT_THAT(found.missing,
              ElementsAre("nvmlDeviceGetMigMode", "nvmlDeviceGetVirtualizationMode",
                          "nvmlDeviceGetMemoryAffinity", "nvmlDeviceGetNvLinkState",
                          "nvmlDeviceGetNvLinkRemotePciInfo_v2",
                          "nvmlDeviceGetNvLinkRemoteDeviceType", "nvmlDeviceGetP2PStatus"));
  ASSERT_EQ(found.gpus.size(), 8u);
  EXPECT_EQ(found.gpus[0].name, "NVIDIA A100-SXM4-40GB");
  EXPECT_EQ(found.gpus[0].mig, std::nullopt);
  EXPECT_THAT(found.gpus[0].numa_nodes, IsEmpty());
  EXPECT_EQ(found.gpus[0].nvlinks, 0);
  EXPECT_EQ(found.pairs[0][1].level, GpuLevel::kSingle);
  EXPECT_EQ(found.pairs[0][1].read, std::nullopt);
}

TEST_F(NvmlTest, DescribesNoMoreThanSixtyFourGpus) {
  std::string text;
  for (int gpu = 0; gpu < 70; ++gpu) text += "gpu name=A bus=0000:01:00.0 cc=8.0\n";
  const GpuSurvey found = survey(text);
  EXPECT_EQ(found.gpus.size(), 64u);
  EXPECT_THAT(found.reason, HasSubstr("70 GPUs; the first 64 are described"));
}

TEST_F(NvmlTest, TheDriverAloneIsToldWithoutItsGpus) {
  const RecordedMachine machine(folder_ / "driver", RecordedMachine::text_of("p4d.24xlarge"));
  setenv("NVML_STUB_FIXTURE", machine.fixture().c_str(), 1);
  const GpuSurvey found = survey_driver(RecordedMachine::nvml_stub());
  EXPECT_EQ(found.driver_version, "535.183.01");
  EXPECT_THAT(found.gpus, IsEmpty());
}

}  // namespace
}  // namespace amxt::comm
