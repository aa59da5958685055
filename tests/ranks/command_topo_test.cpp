// amxtrain topo, on the machines of tests/stubs and on this one.
#include "ranks/command.h"
#include "support/recorded_machine.h"

namespace amxt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CommandTopo : public CommandTest {
 protected:
  Finished topo(const std::string& machine, Arguments more = {}, Variables variables = {}) {
    return topo_of(RecordedMachine::text_of(machine), std::move(more), std::move(variables));
  }
  Finished topo_of(const std::string& text, Arguments more = {}, Variables variables = {}) {
    const RecordedMachine recording(path("machine" + std::to_string(++machines_)), text);
    variables.merge(recording.variables());
    variables["AMXTRAIN_NCCL_LIBRARY"] = "libno_nccl.so.2";
    return amxtrain(Arguments{"topo"} + more, variables);
  }
  int machines_ = 0;
};

// UPDATE_GOLDEN=1 writes them anew; docs/topology.md shows them.
void expect_golden(const std::string& name, const std::string& text) {
  const std::string path = AMXT_TEST_SOURCE_DIR "/tests/stubs/machines/" + name + ".golden";
  if (std::getenv("UPDATE_GOLDEN") != nullptr) write_text(path, text);
  EXPECT_EQ(text, contents(path)) << path;
}

class CommandTopoGolden : public CommandTopo, public ::testing::WithParamInterface<const char*> {};

TEST_P(CommandTopoGolden, PrintsTheMachineAsItAlwaysDid) {
  const Finished finished = topo(GetParam());
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_EQ(finished.err, "");
  expect_golden(GetParam(), finished.out);
}

TEST_P(CommandTopoGolden, IsShownInTheDocumentation) {
  const std::string page = contents(AMXT_TEST_SOURCE_DIR "/docs/topology.md");
  const std::string golden =
      contents(fmt::format("{}/tests/stubs/machines/{}.golden", AMXT_TEST_SOURCE_DIR, GetParam()));
  ASSERT_FALSE(golden.empty());
  EXPECT_TRUE(has(page, golden)) << GetParam();
}

INSTANTIATE_TEST_SUITE_P(Machines, CommandTopoGolden,
                         ::testing::Values("g6e.12xlarge", "p4d.24xlarge", "p5.48xlarge"),
                         [](const auto& machine) {
                           std::string name = machine.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

// Every key of the header's description, and no other.
TEST_F(CommandTopo, JsonHasTheKeysThatAreDocumented) {
  const Finished finished = topo("p5.48xlarge", {"--json"});
  ASSERT_EQ(finished.code, 0) << finished;
  const Json json = Json::parse(finished.out);
  const auto keys = [](const Json& object) {
    std::set<std::string> names;
    for (const auto& [name, value] : object.items()) names.insert(name);
    return names;
  };
  using Names = std::set<std::string>;
  EXPECT_EQ(keys(json), (Names{"machine", "numa_nodes", "interfaces", "rdma_devices", "limits",
                               "nccl", "nvml", "gpus", "pci_gpus", "matrix", "pairs",
                               "between_hosts", "environment", "warnings"}));
  EXPECT_EQ(keys(json.at("machine")), (Names{"processor", "cores", "processors", "virtual"}));
  EXPECT_EQ(keys(json.at("numa_nodes")[0]),
            (Names{"node", "cores", "processors", "memory_bytes", "free_bytes"}));
  EXPECT_EQ(keys(json.at("interfaces")[0]),
            (Names{"name", "addresses", "state", "megabits_per_second", "mtu", "driver",
                   "numa_node", "chosen", "reason"}));
  EXPECT_EQ(
      keys(json.at("rdma_devices")[0]),
      (Names{"name", "driver", "efa", "state", "gigabits_per_second", "numa_node", "usable"}));
  EXPECT_EQ(keys(json.at("limits")), (Names{"locked_memory_bytes", "dev_shm_bytes",
                                            "dev_shm_free_bytes", "own_ipc_namespace"}));
  EXPECT_EQ(keys(json.at("nccl")), (Names{"found", "version", "path", "reason"}));
  EXPECT_EQ(keys(json.at("nvml")),
            (Names{"found", "version", "path", "reason", "driver_version", "missing_functions"}));
  EXPECT_EQ(keys(json.at("gpus")[0]),
            (Names{"index", "name", "fault", "uuid", "bus_id", "memory_bytes", "compute_capability",
                   "pcie_generation", "pcie_width", "nvlinks", "nvlink_generation", "mig",
                   "virtualization", "cpu_affinity", "numa_affinity"}));
  EXPECT_EQ(keys(json.at("pairs")[0]),
            (Names{"a", "b", "path", "transport", "over", "gigabytes_per_second", "reason"}));
  EXPECT_EQ(keys(json.at("between_hosts")),
            (Names{"transport", "rdma", "devices", "interface", "plugin", "gigabytes_per_second"}));
  const std::string header = contents(AMXT_TEST_SOURCE_DIR "/include/amxtrain.h");
  for (const std::string& name : keys(json)) EXPECT_TRUE(has(header, "\"" + name + "\"")) << name;

  EXPECT_EQ(json.at("gpus").size(), 8u);
  EXPECT_EQ(json.at("pairs").size(), 28u);
  EXPECT_EQ(json.at("matrix")[3][3], "X");
  EXPECT_EQ(json.at("matrix")[3][4], "NV18");
  EXPECT_EQ(json.at("pci_gpus"), 8);
  EXPECT_EQ(json.at("between_hosts").at("gigabytes_per_second"), 400.0);
}

TEST_F(CommandTopo, AMachineWithoutDriverIsNoError) {
  const Finished finished = amxtrain({"topo"}, {{"AMXTRAIN_NVML_LIBRARY", "libno_driver.so.1"}});
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_THAT(finished.out, AllOf(HasSubstr("NVIDIA driver    no NVIDIA driver: libno_driver"),
                                  HasSubstr("NUMA node 0"), Not(HasSubstr("GPU0"))));
}

TEST_F(CommandTopo, ADriverThatRefusesSaysWhy) {
  const Finished finished = topo_of("init 18\n");
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_THAT(finished.out,
              HasSubstr("NVIDIA driver    nvmlInit: Driver/library version mismatch (18)"));
}

TEST_F(CommandTopo, OneGpuHasNoPairs) {
  const Finished finished =
      topo_of("gpu name=NVIDIA_L4 bus=0000:31:00.0 mib=23034 cc=8.9 pcie=4x16\n");
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_THAT(finished.out, AllOf(HasSubstr("GPU0             NVIDIA L4, 22.5 GiB"),
                                  HasSubstr("GPU0   X     N/A"), Not(HasSubstr("P2P"))));
}

TEST_F(CommandTopo, NoGpusLostOnesAndMigAreSaid) {
  EXPECT_THAT(topo_of("driver 1\nnvml 2\n").out, HasSubstr("GPUs             none"));
  const std::string output =
      topo_of(
          "gpu name=NVIDIA_A100 bus=0000:01:00.0 mib=40960 cc=8.0 pcie=4x16 mig=1\n"
          "gpu name=NVIDIA_A100 bus=0000:02:00.0 cc=8.0 handle_error=15\n"
          "pair * * level=20\n")
          .out;
  EXPECT_THAT(
      output,
      AllOf(HasSubstr("GPU0             NVIDIA A100, 40.0 GiB, 0000:01:00.0, PCIe 4 x16, MIG"),
            HasSubstr("GPU1             unknown: GPU is lost (15)"),
            HasSubstr("warning          GPU 0: MIG is on"),
            HasSubstr("warning          GPU 1 does not answer: GPU is lost (15)"),
            HasSubstr("GPU1  ?"), HasSubstr("?     none (a GPU does not answer): 0-1")));
}

TEST_F(CommandTopo, AnOldNvmlIsTakenAsFarAsItGoes) {
  const RecordedMachine recording(path("old"), RecordedMachine::text_of("p4d.24xlarge"));
  Variables variables = recording.variables();
  variables["AMXTRAIN_NVML_LIBRARY"] = RecordedMachine::old_nvml_stub();
  const Finished finished = amxtrain({"topo"}, variables);
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_THAT(finished.out, AllOf(HasSubstr("too old for nvmlDeviceGetMigMode"),
                                  HasSubstr("GPU0   X     PIX    NODE")));
}

TEST_F(CommandTopo, VariablesAreShownWithoutTheirControlBytes) {
  const Finished finished =
      topo("g6e.12xlarge", {}, {{"NCCL_P2P_DISABLE", "1"}, {"NCCL_NET", "a\033[31mb"}});
  EXPECT_THAT(finished.out, AllOf(HasSubstr("set              NCCL_P2P_DISABLE='1'"),
                                  HasSubstr("NCCL_NET='a\\x1b[31mb'"),
                                  HasSubstr("(NCCL_P2P_DISABLE=1): all 6 pairs")));
}

// A real mount of docker's size, in a mount namespace of its own.
TEST_F(CommandTopo, ASmallDevShmIsWarnedOf) {
  const Finished mounted =
      run_process({"unshare", "-m", "sh", "-c",
                   "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec " + kCommand + " topo"},
                  {{}, directory_.path(), {}});
  if (mounted.code != 0 && !has(mounted.err, "amxtrain")) {
    GTEST_SKIP() << "skipped: no mount namespace of one's own: " << mounted.err;
  }
  ASSERT_EQ(mounted.code, 0) << mounted;
  EXPECT_THAT(mounted.out, AllOf(HasSubstr("/dev/shm         64.0 MiB (64.0 MiB free)"),
                                 HasSubstr("warning          /dev/shm has 64.0 MiB: NCCL")));
}

TEST_F(CommandTopo, InfoTellsWhatIsOpenedAtRunTime) {
  const RecordedMachine recording(path("info"), RecordedMachine::text_of("p4d.24xlarge"));
  Variables variables = recording.variables();
  variables["AMXTRAIN_NCCL_LIBRARY"] = "libno_nccl.so.2";
  const Finished finished = amxtrain({"info"}, variables);
  ASSERT_EQ(finished.code, 0) << finished;
  EXPECT_THAT(finished.out, AllOf(HasSubstr("NVML               12.535.183.01"),
                                  HasSubstr("NCCL               not found (libno_nccl.so.2: ")));
}

}  // namespace
}  // namespace amxt::test
