#include "comm/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "support/recorded_machine.h"

namespace amxt::comm {
namespace {

using test::RecordedMachine;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class MachineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(::testing::TempDir()) /
        ("machine_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  RecordedMachine recorded(const std::string& text) {
    return RecordedMachine(folder_ / std::to_string(++machines_), text);
  }
  Machine read(const std::string& text) {
    return read_machine(recorded(text).root(), environment());
  }
  Environment environment() {
    return [this](const std::string& name) -> std::optional<std::string> {
      const auto found = variables_.find(name);
      return found != variables_.end() ? std::optional(found->second) : std::nullopt;
    };
  }
  std::filesystem::path folder_;
  std::map<std::string, std::string> variables_;
  int machines_ = 0;
};

TEST(MachineLists, AreReadAndWrittenAsTheKernelDoes) {
  EXPECT_THAT(parse_list("0-2,5,7-8"), ElementsAre(0, 1, 2, 5, 7, 8));
  EXPECT_THAT(parse_list("3"), ElementsAre(3));
  EXPECT_THAT(parse_list(""), IsEmpty());
  EXPECT_THAT(parse_list("x,1-y,-4,2-1,0-99999999"), IsEmpty());
  EXPECT_EQ(list_text({0, 1, 2, 5, 7, 8}), "0-2,5,7-8");
  EXPECT_EQ(list_text({}), "");
}

TEST_F(MachineTest, TellsProcessorsAndNumaNodes) {
  const Machine machine = read(RecordedMachine::text_of("p4d.24xlarge"));
  EXPECT_EQ(machine.processor, "Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz");
  EXPECT_EQ(machine.vendor, "GenuineIntel");
  EXPECT_TRUE(machine.is_virtual);
  ASSERT_EQ(machine.numa_nodes.size(), 2u);
  EXPECT_EQ(machine.numa_nodes[1].number, 1);
  EXPECT_EQ(machine.numa_nodes[1].cores, 24);
  EXPECT_EQ(list_text(machine.numa_nodes[1].processors), "24-47,72-95");
  EXPECT_EQ(machine.numa_nodes[1].memory_bytes, int64_t{576} << 30);
}

TEST_F(MachineTest, AKernelWithoutNumaHasOneNode) {
  const RecordedMachine recording = recorded("processor X\n");
  recording.put("sys/devices/system/cpu/online", "0-3\n");
  recording.put("proc/meminfo", "MemTotal:       1024 kB\nMemFree:   512 kB\n");
  const Machine machine = read_machine(recording.root(), environment());
  ASSERT_EQ(machine.numa_nodes.size(), 1u);
  EXPECT_EQ(machine.numa_nodes[0].cores, 4);
  EXPECT_EQ(machine.numa_nodes[0].memory_bytes, 1024 * 1024);
  EXPECT_FALSE(machine.is_virtual);
}

TEST_F(MachineTest, TellsInterfacesAndTheOneOfTheDefaultRoute) {
  const RecordedMachine recording = recorded(
      "net eth10 speed=25000 mtu=9001 state=up driver=ena node=1\n"
      "net eth2 speed=-1 mtu=1500 state=up\n"
      "default_route eth10\n");
  recording.put("sys/class/net/bonding_masters", "\n");  // a file, no interface
  const Machine machine = read_machine(recording.root(), environment());
  ASSERT_EQ(machine.interfaces.size(), 2u);
  EXPECT_EQ(machine.interfaces[0].name, "eth2");
  EXPECT_EQ(machine.interfaces[0].megabits_per_second, std::nullopt);
  EXPECT_EQ(machine.interfaces[0].driver, "");
  EXPECT_EQ(machine.interfaces[1].name, "eth10");
  EXPECT_EQ(machine.interfaces[1].megabits_per_second, 25000);
  EXPECT_EQ(machine.interfaces[1].mtu, 9001);
  EXPECT_EQ(machine.interfaces[1].driver, "ena");
  EXPECT_EQ(machine.interfaces[1].numa_node, 1);
  EXPECT_EQ(machine.chosen_interface, "eth10");
  EXPECT_EQ(machine.chosen_reason, "default route");
}

TEST_F(MachineTest, TheCheapestDefaultRouteCountsAndIpv6WhereThereIsNoOther) {
  const RecordedMachine recording = recorded("net a mtu=1500\nnet b mtu=1500\nnet c mtu=1500\n");
  const std::string heading = "Iface Destination Gateway Flags RefCnt Use Metric Mask\n";
  recording.put("proc/net/route", heading +
                                      "a 00000000 01 3 0 0 200 0\nb 00000000 01 3 0 0 100 0\n"
                                      "c 0000000A 01 3 0 0 0 0\n");
  EXPECT_EQ(read_machine(recording.root(), environment()).chosen_interface, "b");
  const std::string zero(32, '0');
  recording.put("proc/net/route", heading);
  recording.put("proc/net/ipv6_route", zero + " 00 " + zero + " 00 " + zero +
                                           " ffffffff 00000001 00000000 00200200 lo\n" + zero +
                                           " 00 " + zero +
                                           " 00 fe800000000000000000000000000001 "
                                           "00000400 00000001 00000000 00000003 c\n");
  EXPECT_EQ(read_machine(recording.root(), environment()).chosen_interface, "c");
}

TEST_F(MachineTest, TheVariableChoosesTheInterface) {
  const std::string text = "net a mtu=1500\nnet b mtu=1500\ndefault_route a\n";
  variables_["AMXTRAIN_SOCKET_IFNAME"] = "b";
  EXPECT_EQ(read(text).chosen_interface, "b");
  EXPECT_EQ(read(text).chosen_reason, "AMXTRAIN_SOCKET_IFNAME");
  variables_["AMXTRAIN_SOCKET_IFNAME"] = "none_such";
  EXPECT_EQ(read(text).chosen_interface, "");
}

TEST_F(MachineTest, OnThisMachineTheRouteToTheMasterChooses) {
  variables_["MASTER_ADDR"] = "127.0.0.1";
  const Machine machine = read_machine("", environment());
  EXPECT_EQ(machine.chosen_interface, "lo");
  EXPECT_EQ(machine.chosen_reason, "route to MASTER_ADDR 127.0.0.1");
  EXPECT_FALSE(machine.numa_nodes.empty());
  EXPECT_GT(machine.numa_nodes[0].cores, 0);
  EXPECT_TRUE(machine.dev_shm_bytes.has_value());
}

TEST_F(MachineTest, TellsRdmaDevicesAndThoseThatAContainerLacks) {
  const Machine machine = read(
      "rdma rdmap16s27 driver=efa gbit=100 state=ACTIVE node=1\n"
      "rdma mlx5_0 driver=mlx5_core state=DOWN hidden=1\n");
  ASSERT_EQ(machine.rdma_devices.size(), 2u);
  const RdmaDevice& mlx = machine.rdma_devices[0];
  EXPECT_EQ(mlx.name, "mlx5_0");
  EXPECT_FALSE(mlx.is_efa());
  EXPECT_FALSE(mlx.usable);
  EXPECT_EQ(mlx.state, "DOWN");
  EXPECT_EQ(mlx.gigabits_per_second, std::nullopt);
  const RdmaDevice& efa = machine.rdma_devices[1];
  EXPECT_TRUE(efa.is_efa());
  EXPECT_TRUE(efa.usable);
  EXPECT_EQ(efa.state, "ACTIVE");
  EXPECT_EQ(efa.gigabits_per_second, 100);
  EXPECT_EQ(efa.numa_node, 1);
}

TEST_F(MachineTest, TellsLimits) {
  const Machine machine = read("locked 65536\nipc 4026532291\n");
  EXPECT_EQ(machine.locked_memory_bytes, 65536);
  EXPECT_EQ(machine.own_ipc_namespace, true);
  EXPECT_EQ(machine.dev_shm_bytes, std::nullopt);
  EXPECT_EQ(read("locked unlimited\n").locked_memory_bytes, std::nullopt);
  EXPECT_EQ(read("ipc 4026531839\n").own_ipc_namespace, false);
  EXPECT_EQ(read("vendor X\n").own_ipc_namespace, std::nullopt);
}

// 4 KiB of registers of a bridge: a chain of two extended capabilities, the second one ACS with this control word.
std::string bridge_registers(unsigned control) {
  std::string registers(4096, '\0');
  const auto put = [&](size_t at, unsigned value) {
    registers[at] = static_cast<char>(value & 0xFF);
    registers[at + 1] = static_cast<char>(value >> 8);
  };
  put(0x100, 0x0001);
  put(0x102, 0x1400 | 2);  // the next one at 0x140
  put(0x140, 0x000D);
  put(0x142, 1);
  put(0x146, control);
  return registers;
}

TEST_F(MachineTest, FindsTheBridgesThatRedirectRequests) {
  const RecordedMachine recording = recorded("vendor X\n");
  const std::string bridge = "sys/devices/pci0000:00/0000:00:01.0";
  const auto put_bridge = [&](const std::string& path, unsigned control) {
    recording.put(path + "/class", "0x060400\n");
    recording.put(path + "/config", bridge_registers(control));
  };
  put_bridge(bridge, 0x1D);
  put_bridge(bridge + "/0000:01:00.0", 0x01);
  const std::string gpu = bridge + "/0000:01:00.0/0000:02:00.0";
  recording.put(gpu + "/vendor", "0x10de\n");
  recording.put(gpu + "/class", "0x030200\n");
  recording.link("sys/bus/pci/devices/0000:02:00.0", recording.root() + "/" + gpu);
  recording.put("sys/bus/pci/devices/0000:03:00.0/vendor", "0x1af4\n");  // of another maker
  recording.put("sys/bus/pci/devices/0000:03:00.0/class", "0x030000\n");
  recording.put("sys/bus/pci/devices/0000:04:00.0/vendor", "0x10de\n");  // its sound card
  recording.put("sys/bus/pci/devices/0000:04:00.0/class", "0x040300\n");
  Machine machine = read_machine(recording.root(), environment());
  ASSERT_EQ(machine.pci_gpus.size(), 1u);
  EXPECT_EQ(machine.pci_gpus[0].bus_id, "0000:02:00.0");
  EXPECT_TRUE(machine.acs_known);
  EXPECT_THAT(machine.pci_gpus[0].redirecting_bridges, ElementsAre("0000:00:01.0"));

  put_bridge(bridge, 0x19);  // all but the redirection
  EXPECT_THAT(read_machine(recording.root(), environment()).pci_gpus[0].redirecting_bridges,
              IsEmpty());

  // Without root the kernel gives 64 bytes; and a chain that bites its tail ends.
  recording.put(bridge + "/config", std::string(64, '\0'));
  std::string loop = bridge_registers(0x1D);
  loop[0x100] = loop[0x140] = 1;
  loop[0x142] = 0x02;
  loop[0x143] = 0x10;
  recording.put(bridge + "/0000:01:00.0/config", loop);
  machine = read_machine(recording.root(), environment());
  EXPECT_THAT(machine.pci_gpus[0].redirecting_bridges, IsEmpty());
}

TEST_F(MachineTest, FindsThePluginWhereNcclWouldLook) {
  const RecordedMachine recording = recorded("vendor X\n");
  EXPECT_EQ(read_machine(recording.root(), environment()).net_plugin, "");
  recording.put("opt/amazon/ofi-nccl/lib/libnccl-net.so", "");
  EXPECT_EQ(read_machine(recording.root(), environment()).net_plugin,
            "/opt/amazon/ofi-nccl/lib/libnccl-net.so");
  variables_["NCCL_NET_PLUGIN"] = "mine";
  EXPECT_EQ(read_machine(recording.root(), environment()).net_plugin, "");
  variables_["LD_LIBRARY_PATH"] = "/a::/b";
  recording.put("b/libnccl-net-mine.so", "");
  EXPECT_EQ(read_machine(recording.root(), environment()).net_plugin, "/b/libnccl-net-mine.so");
}

TEST_F(MachineTest, AnEmptyRecordingIsAMachineOfWhichNothingIsKnown) {
  const Machine machine = read_machine((folder_ / "nothing").string(), environment());
  EXPECT_EQ(machine.processor, "");
  EXPECT_THAT(machine.numa_nodes, IsEmpty());
  EXPECT_THAT(machine.interfaces, IsEmpty());
  EXPECT_THAT(machine.rdma_devices, IsEmpty());
  EXPECT_THAT(machine.pci_gpus, IsEmpty());
  EXPECT_EQ(machine.chosen_interface, "");
}

}  // namespace
}  // namespace amxt::comm
