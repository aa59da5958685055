#include "comm/topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

namespace amxt::comm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// A machine of two GPUs with 12 NVLinks each, and nothing to warn of.
class TopologyTest : public ::testing::Test {
 protected:
  TopologyTest() {
    machine_.processor = "X";
    machine_.vendor = "GenuineIntel";
    machine_.numa_nodes = {{0, {0, 1, 2, 3}, 2, 1 << 20, 1 << 19}};
    machine_.interfaces = {{"eth0", {"10.0.0.1"}, "up", "ena", 25000, 9001, 0}};
    machine_.chosen_interface = "eth0";
    machine_.chosen_reason = "default route";
    machine_.dev_shm_bytes = int64_t{8} << 30;
    machine_.dev_shm_free_bytes = int64_t{8} << 30;
    machine_.own_ipc_namespace = false;
    machine_.has_nvidia_driver = true;
    machine_.pci_gpus = {{"0000:01:00.0", 0, {}}, {"0000:02:00.0", 0, {}}};
    survey_.found = survey_.library_found = true;
    for (const PciGpu& pci : machine_.pci_gpus) {
      Gpu gpu;
      gpu.name = "A100";
      gpu.bus_id = pci.bus_id;
      gpu.compute_major = 8;
      gpu.pcie_generation = 4;
      gpu.pcie_width = 16;
      gpu.nvlinks = gpu.switch_nvlinks = 12;
      survey_.gpus.push_back(gpu);
    }
    GpuPair pair;
    pair.level = GpuLevel::kNode;
    pair.read = pair.write = GpuP2p::kOk;
    pair.nvlinks = 12;
    survey_.pairs.assign(2, std::vector<GpuPair>(2, pair));
  }
  Json describe() {
    return describe_topology(
        machine_, survey_, [this](const std::string& name) -> std::optional<std::string> {
          const auto found = variables_.find(name);
          return found != variables_.end() ? std::optional(found->second) : std::nullopt;
        });
  }
  // Code to message.
  std::map<std::string, std::string> warnings() {
    std::map<std::string, std::string> found;
    const Json json = describe();
    for (const Json& warning : json.at("warnings")) {
      found[warning.at("code").get<std::string>()] = warning.at("message").get<std::string>();
    }
    return found;
  }
  std::set<std::string> codes() {
    std::set<std::string> found;
    for (const auto& [code, message] : warnings()) found.insert(code);
    return found;
  }
  RdmaDevice efa() const { return {"rdmap0s6", "efa", "ACTIVE", 100, 0, true}; }

  Machine machine_;
  GpuSurvey survey_;
  std::map<std::string, std::string> variables_;
};

TEST_F(TopologyTest, AMachineInOrderHasNoWarnings) { EXPECT_THAT(codes(), IsEmpty()); }

TEST_F(TopologyTest, TellsMatrixAndPairs) {
  const Json json = describe();
  EXPECT_EQ(json.at("matrix").dump(), R"([["X","NV12"],["NV12","X"]])");
  ASSERT_EQ(json.at("pairs").size(), 1u);
  EXPECT_EQ(json.at("pairs")[0].dump(),
            R"({"a":0,"b":1,"path":"NV12","transport":"p2p","over":"NVLink",)"
            R"("gigabytes_per_second":300.0,"reason":null})");
  // Where NVML does not tell the NUMA node, the PCI bus does.
  EXPECT_EQ(json.at("gpus")[1].at("numa_affinity"), "0");
  EXPECT_EQ(json.at("gpus")[1].at("nvlink_generation"), 3);
}

TEST_F(TopologyTest, WarnsOfAFewThingsThatAContainerSpoils) {
  machine_.pci_gpus.push_back({"0000:03:00.0", 0, {}});
  machine_.own_ipc_namespace = true;
  machine_.dev_shm_bytes = 64 << 20;
  machine_.locked_memory_bytes = 65536;
  variables_["NVIDIA_VISIBLE_DEVICES"] = "0,1";
  const auto found = warnings();
  EXPECT_THAT(codes(), UnorderedElementsAre("gpus_hidden", "ipc_not_shared", "dev_shm_small",
                                            "locked_memory"));
  EXPECT_THAT(found.at("gpus_hidden"), HasSubstr("2 of 3 GPUs on the PCI bus are visible here "
                                                 "(NVIDIA_VISIBLE_DEVICES=0,1)"));
  EXPECT_THAT(found.at("dev_shm_small"), HasSubstr("/dev/shm has 64.0 MiB"));
  EXPECT_THAT(found.at("locked_memory"), HasSubstr("64.0 KiB"));
}

TEST_F(TopologyTest, LimitsThatAreWideEnoughAreNoWarning) {
  machine_.dev_shm_bytes = (64 << 20) + 4096;
  machine_.locked_memory_bytes = int64_t{1} << 30;
  EXPECT_THAT(codes(), IsEmpty());
}

TEST_F(TopologyTest, LockedMemoryMattersToGpusAndRdmaAlone) {
  machine_.locked_memory_bytes = 65536;
  survey_.gpus.clear();
  survey_.pairs.clear();
  machine_.pci_gpus.clear();
  EXPECT_THAT(codes(), IsEmpty());
  machine_.rdma_devices = {efa()};
  machine_.net_plugin = "/lib/libnccl-net.so";
  EXPECT_THAT(codes(), ElementsAre("locked_memory"));
}

TEST_F(TopologyTest, WarnsOfWhatVariablesTurnOff) {
  variables_["NCCL_P2P_DISABLE"] = "1";
  variables_["NCCL_SHM_DISABLE"] = "1";
  EXPECT_THAT(codes(), UnorderedElementsAre("p2p_disabled", "shm_disabled"));
  const Json json = describe();
  EXPECT_EQ(json.at("pairs")[0].at("transport"), "network");
  EXPECT_EQ(json.at("environment").dump(), R"({"NCCL_P2P_DISABLE":"1","NCCL_SHM_DISABLE":"1"})");
}

TEST_F(TopologyTest, WarnsOfGpusThatAreNotWhole) {
  survey_.gpus[0].mig = true;
  survey_.gpus[1].fault = "GPU is lost (15)";
  survey_.gpus[1].nvlinks = 0;
  EXPECT_THAT(warnings().at("gpu_fault"), HasSubstr("GPU 1 does not answer: GPU is lost (15)"));
  EXPECT_THAT(warnings().at("mig"), HasSubstr("GPU 0"));
  survey_.gpus[1].fault = "";
  survey_.gpus[1].nvlinks = 10;
  EXPECT_EQ(warnings().at("nvlink_uneven"), "GPU 1 has 10 active NVLinks, others have 12");
  survey_.gpus[1].virtualization = GpuVirtualization::kVirtualGpu;
  EXPECT_EQ(warnings().at("vgpu"), "GPU 1 is a virtual GPU");
}

TEST_F(TopologyTest, NvlinksWithoutP2pPointToTheFabricManager) {
  survey_.pairs[0][1].read = GpuP2p::kNotSupported;
  EXPECT_THAT(warnings().at("nvlink_without_p2p"), HasSubstr("fabricmanager"));
  EXPECT_THAT(codes(), ElementsAre("nvlink_without_p2p"));
}

TEST_F(TopologyTest, WarnsOfBridgesThatRedirect) {
  machine_.pci_gpus[0].redirecting_bridges = {"0000:00:01.0"};
  machine_.pci_gpus[1].redirecting_bridges = {"0000:00:01.0", "0000:00:02.0"};
  EXPECT_THAT(warnings().at("acs"), HasSubstr("at 0000:00:01.0, 0000:00:02.0:"));
}

TEST_F(TopologyTest, ADriverWhoseLibraryIsNotHereIsNoMissingDriver) {
  survey_ = GpuSurvey();
  survey_.reason = "libnvidia-ml.so.1: not found";
  EXPECT_THAT(codes(), ElementsAre("driver_without_nvml"));
  EXPECT_EQ(describe().at("nvml").at("reason"),
            "the NVIDIA driver is loaded, its library is not here: libnvidia-ml.so.1: not found");
  machine_.has_nvidia_driver = false;
  EXPECT_THAT(codes(), IsEmpty());
  EXPECT_EQ(describe().at("nvml").at("reason"), "no NVIDIA driver: libnvidia-ml.so.1: not found");
  EXPECT_EQ(describe().at("gpus").dump(), "[]");
}

TEST_F(TopologyTest, BetweenHostsEfaNeedsItsPlugin) {
  machine_.rdma_devices = {efa(), efa()};
  EXPECT_THAT(warnings().at("efa_without_plugin"), HasSubstr("2 EFA devices"));
  Json between = describe().at("between_hosts");
  EXPECT_EQ(between.at("rdma"), false);
  EXPECT_EQ(between.at("gigabytes_per_second"), 3.125);  // of eth0
  machine_.net_plugin = "/lib/libnccl-net.so";
  EXPECT_THAT(codes(), IsEmpty());
  between = describe().at("between_hosts");
  EXPECT_EQ(between.at("rdma"), true);
  EXPECT_EQ(between.at("devices"), 2);
  EXPECT_EQ(between.at("gigabytes_per_second"), 25.0);
}

TEST_F(TopologyTest, BetweenHostsOnlyDevicesThatCanBeUsedCount) {
  RdmaDevice mlx{"mlx5_0", "mlx5_core", "ACTIVE", 200, 0, true};
  RdmaDevice down{"mlx5_1", "mlx5_core", "DOWN", 200, 0, true};
  RdmaDevice missing{"mlx5_2", "mlx5_core", "ACTIVE", 200, 0, false};
  machine_.rdma_devices = {mlx, down, missing};
  EXPECT_THAT(warnings().at("rdma_device_missing"), HasSubstr("mlx5_2"));
  EXPECT_EQ(describe().at("between_hosts").at("devices"), 1);
  EXPECT_EQ(describe().at("between_hosts").at("gigabytes_per_second"), 25.0);
  variables_["NCCL_IB_DISABLE"] = "1";
  EXPECT_EQ(describe().at("between_hosts").at("rdma"), false);
  EXPECT_EQ(codes().count("rdma_disabled"), 1u);
}

TEST_F(TopologyTest, AMachineOfWhichNothingIsKnownIsDescribed) {
  machine_ = Machine();
  survey_ = GpuSurvey();
  const Json json = describe();
  EXPECT_EQ(json.at("machine").at("processor"), nullptr);
  EXPECT_EQ(json.at("between_hosts").at("interface"), nullptr);
  EXPECT_EQ(json.at("limits").at("dev_shm_bytes"), nullptr);
  EXPECT_THAT(codes(), IsEmpty());
}

}  // namespace
}  // namespace amxt::comm
