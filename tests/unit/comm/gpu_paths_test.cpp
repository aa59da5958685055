#include "comm/gpu_paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace amxt::comm {
namespace {

using ::testing::HasSubstr;

Gpu gpu_of(int major, int minor, int generation = 4, int width = 16) {
  Gpu gpu;
  gpu.compute_major = major;
  gpu.minor = minor;
  gpu.pcie_generation = generation;
  gpu.pcie_width = width;
  return gpu;
}

GpuPair apart(GpuLevel level, GpuP2p status = GpuP2p::kOk) {
  GpuPair pair;
  pair.level = level;
  pair.read = pair.write = status;
  return pair;
}

GpuPair linked(int nvlinks) {
  GpuPair pair = apart(GpuLevel::kSystem);
  pair.nvlinks = nvlinks;
  return pair;
}

GpuPathRules rules_of(const std::map<std::string, std::string>& variables,
                      const std::string& vendor = "GenuineIntel", int gpus = 8) {
  return GpuPathRules::from(
      [&](const std::string& name) -> std::optional<std::string> {
        const auto found = variables.find(name);
        return found != variables.end() ? std::optional(found->second) : std::nullopt;
      },
      vendor, gpus);
}

TEST(GpuPaths, AreNamedAsInTheMatrixOfNvidiaSmi) {
  EXPECT_EQ(path_code(apart(GpuLevel::kInternal)), "PIX");
  EXPECT_EQ(path_code(apart(GpuLevel::kSingle)), "PIX");
  EXPECT_EQ(path_code(apart(GpuLevel::kMultiple)), "PXB");
  EXPECT_EQ(path_code(apart(GpuLevel::kHostBridge)), "PHB");
  EXPECT_EQ(path_code(apart(GpuLevel::kNode)), "NODE");
  EXPECT_EQ(path_code(apart(GpuLevel::kSystem)), "SYS");
  EXPECT_EQ(path_code(linked(12)), "NV12");
  EXPECT_EQ(path_code(GpuPair()), "?");
  EXPECT_EQ(path_code(apart(static_cast<GpuLevel>(17))), "?");
}

TEST(GpuPaths, NvlinkIsAsFastAsItsLinksTogether) {
  const GpuPath path = path_between(gpu_of(8, 0), gpu_of(8, 0), linked(12), rules_of({}));
  EXPECT_EQ(path.transport, GpuTransport::kP2p);
  EXPECT_EQ(path.over, "NVLink");
  EXPECT_EQ(path.gigabytes_per_second, 300);
  EXPECT_EQ(path.reason, "");
  EXPECT_EQ(path_between(gpu_of(8, 6), gpu_of(8, 6), linked(4), rules_of({})).gigabytes_per_second,
            56.25);
  EXPECT_EQ(
      path_between(gpu_of(42, 0), gpu_of(42, 0), linked(4), rules_of({})).gigabytes_per_second,
      std::nullopt);
}

// The sums that NVIDIA publishes, both ways, by the links of each GPU.
TEST(GpuPaths, NvlinkGenerationsAddUpToWhatIsPublished) {
  const struct {
    int major, minor, links, generation;
    double published;
  } kGpus[] = {{6, 0, 4, 1, 160},   {7, 0, 6, 2, 300},  {7, 5, 2, 2, 100},   {8, 0, 12, 3, 600},
               {8, 6, 4, 3, 112.5}, {9, 0, 18, 4, 900}, {10, 0, 18, 5, 1800}};
  for (const auto& gpu : kGpus) {
    EXPECT_EQ(*nvlink_gigabytes_per_second(gpu.major, gpu.minor) * gpu.links * 2, gpu.published);
    EXPECT_EQ(nvlink_generation(gpu.major, gpu.minor), gpu.generation);
  }
  EXPECT_EQ(nvlink_generation(8, 9), std::nullopt);  // L40S, L4: none
}

TEST(GpuPaths, PcieIsAsFastAsTheSlowerEnd) {
  EXPECT_NEAR(*pcie_gigabytes_per_second(3, 16), 15.754, 1e-3);
  EXPECT_NEAR(*pcie_gigabytes_per_second(4, 16), 31.508, 1e-3);
  EXPECT_NEAR(*pcie_gigabytes_per_second(5, 16), 63.015, 1e-3);
  EXPECT_NEAR(*pcie_gigabytes_per_second(1, 1), 0.25, 1e-9);
  EXPECT_NEAR(*pcie_gigabytes_per_second(6, 16), 121.0, 1e-9);
  EXPECT_EQ(pcie_gigabytes_per_second(0, 16), std::nullopt);
  EXPECT_EQ(pcie_gigabytes_per_second(7, 16), std::nullopt);
  EXPECT_EQ(pcie_gigabytes_per_second(4, 0), std::nullopt);
  const GpuPath path =
      path_between(gpu_of(8, 9), gpu_of(8, 9, 4, 8), apart(GpuLevel::kSingle), rules_of({}));
  EXPECT_EQ(path.transport, GpuTransport::kP2p);
  EXPECT_EQ(path.over, "PCIe");
  EXPECT_NEAR(*path.gigabytes_per_second, 15.754, 1e-3);
}

TEST(GpuPaths, AHostBridgeBetweenThemMeansSharedMemory) {
  for (const GpuLevel level : {GpuLevel::kHostBridge, GpuLevel::kNode, GpuLevel::kSystem}) {
    const GpuPath path = path_between(gpu_of(8, 9), gpu_of(8, 9), apart(level), rules_of({}));
    EXPECT_EQ(path.transport, GpuTransport::kSharedMemory) << path.code;
    EXPECT_THAT(path.reason, HasSubstr(path.code + " is farther than NCCL's limit PXB"));
  }
  for (const GpuLevel level : {GpuLevel::kSingle, GpuLevel::kMultiple}) {
    const GpuPath path = path_between(gpu_of(8, 9), gpu_of(8, 9), apart(level), rules_of({}));
    EXPECT_EQ(path.transport, GpuTransport::kP2p) << path.code;
  }
}

TEST(GpuPaths, TwoGpusOfAnAmdProcessorReachEachOtherFromAnywhere) {
  const auto transport = [](const std::string& vendor, int gpus) {
    return path_between(gpu_of(8, 9), gpu_of(8, 9), apart(GpuLevel::kSystem),
                        rules_of({}, vendor, gpus))
        .transport;
  };
  EXPECT_EQ(transport("AuthenticAMD", 2), GpuTransport::kP2p);
  EXPECT_EQ(transport("AuthenticAMD", 3), GpuTransport::kSharedMemory);
  EXPECT_EQ(transport("GenuineIntel", 2), GpuTransport::kSharedMemory);
}

TEST(GpuPaths, VariablesOfNcclMoveTheLimit) {
  const auto path = [](const char* name, const char* value, const GpuPair& pair) {
    return path_between(gpu_of(8, 0), gpu_of(8, 0), pair, rules_of({{name, value}}));
  };
  const GpuPair node = apart(GpuLevel::kNode), pix = apart(GpuLevel::kSingle);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "PHB", node).transport, GpuTransport::kP2p);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "PXB", node).transport, GpuTransport::kSharedMemory);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "SYS", apart(GpuLevel::kSystem)).transport, GpuTransport::kP2p);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "NVL", pix).transport, GpuTransport::kSharedMemory);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "NVL", linked(2)).transport, GpuTransport::kP2p);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "LOC", linked(2)).transport, GpuTransport::kSharedMemory);
  EXPECT_THAT(path("NCCL_P2P_LEVEL", "NVL", pix).reason, HasSubstr("NCCL_P2P_LEVEL"));
  // The old numbers; one that is too large is the last.
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "0", pix).transport, GpuTransport::kSharedMemory);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "1", pix).transport, GpuTransport::kP2p);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "2", node).transport, GpuTransport::kSharedMemory);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "3", node).transport, GpuTransport::kP2p);
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "99", apart(GpuLevel::kSystem)).transport, GpuTransport::kP2p);
  // What is no level is as if it were not there.
  EXPECT_EQ(path("NCCL_P2P_LEVEL", "near", pix).transport, GpuTransport::kP2p);
  EXPECT_EQ(path("NCCL_P2P_DISABLE", "1", linked(12)).transport, GpuTransport::kSharedMemory);
  EXPECT_EQ(path("NCCL_P2P_DISABLE", "0", linked(12)).transport, GpuTransport::kP2p);
}

TEST(GpuPaths, WithoutSharedMemoryTheNetworkIsLeft) {
  const GpuPath path = path_between(gpu_of(8, 9), gpu_of(8, 9), apart(GpuLevel::kNode),
                                    rules_of({{"NCCL_SHM_DISABLE", "1"}}));
  EXPECT_EQ(path.transport, GpuTransport::kNetwork);
  EXPECT_EQ(path.gigabytes_per_second, std::nullopt);
  EXPECT_THAT(path.reason, HasSubstr("NCCL_SHM_DISABLE=1"));
}

TEST(GpuPaths, WhatNvmlSaysOfP2pCounts) {
  GpuPair pair = apart(GpuLevel::kSingle, GpuP2p::kChipsetNotSupported);
  GpuPath path = path_between(gpu_of(8, 9), gpu_of(8, 9), pair, rules_of({}));
  EXPECT_EQ(path.transport, GpuTransport::kSharedMemory);
  EXPECT_THAT(path.reason, HasSubstr("chipset not supported"));
  pair = apart(GpuLevel::kSingle);
  pair.write = GpuP2p::kDisabledByDriver;
  path = path_between(gpu_of(8, 9), gpu_of(8, 9), pair, rules_of({}));
  EXPECT_THAT(path.reason, HasSubstr("disabled in the driver"));
  pair.read = pair.write = std::nullopt;  // an NVML that does not tell
  path = path_between(gpu_of(8, 9), gpu_of(8, 9), pair, rules_of({}));
  EXPECT_EQ(path.transport, GpuTransport::kP2p);
}

TEST(GpuPaths, AGpuWithMigOrAFaultHasNoP2p) {
  Gpu split = gpu_of(8, 0);
  split.mig = true;
  EXPECT_EQ(path_between(split, gpu_of(8, 0), linked(12), rules_of({})).reason, "MIG is on");
  EXPECT_EQ(path_between(gpu_of(8, 0), split, linked(12), rules_of({})).reason, "MIG is on");
  Gpu lost = gpu_of(8, 0);
  lost.fault = "GPU is lost";
  EXPECT_EQ(path_between(gpu_of(8, 0), lost, linked(12), rules_of({})).transport,
            GpuTransport::kNone);
  EXPECT_THAT(path_between(gpu_of(8, 0), gpu_of(8, 0), GpuPair(), rules_of({})).reason,
              HasSubstr("does not tell"));
}

}  // namespace
}  // namespace amxt::comm
