// Machine: what the kernel says of this machine as far as it matters to ranks that talk to each other: processors and NUMA nodes, network
// interfaces, RDMA devices, NVIDIA GPUs on the PCI bus, and the limits that a container may have set.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/launchers.h"

namespace amxt::comm {

struct NumaNode {
  int number = 0;
  std::vector<int> processors;
  int cores = 0;
  int64_t memory_bytes = 0, free_bytes = 0;
};

struct InterfaceFacts {
  std::string name;
  std::vector<std::string> addresses;
  std::string state;                           // of the kernel: "up", "down", "unknown"
  std::string driver;                          // empty for one without hardware
  std::optional<int64_t> megabits_per_second;  // unset where the driver does not know
  int64_t mtu = 0;
  std::optional<int> numa_node;
};

struct RdmaDevice {
  std::string name;
  std::string driver;  // "efa", "mlx5_core"
  std::string state;   // of its first port: "ACTIVE", "DOWN"
  std::optional<double> gigabits_per_second;
  std::optional<int> numa_node;
  bool usable = false;  // its /dev/infiniband/uverbs* is there: a container may lack it
  bool is_efa() const { return driver == "efa"; }
};

// An NVIDIA GPU on the PCI bus, whether this process may use it or not.
struct PciGpu {
  std::string bus_id;  // "0000:10:1c.0"
  std::optional<int> numa_node;
  std::vector<std::string> redirecting_bridges;  // above it, with ACS request redirection on
};

struct Machine {
  std::string processor;  // model name
  std::string vendor;     // "GenuineIntel", "AuthenticAMD"
  bool is_virtual = false;
  std::vector<NumaNode> numa_nodes;
  std::vector<InterfaceFacts> interfaces;
  std::string chosen_interface;  // of the rendezvous, empty when there is none
  std::string chosen_reason;
  std::vector<RdmaDevice> rdma_devices;
  std::vector<PciGpu> pci_gpus;
  bool acs_known = false;  // the bridges could be read, which takes root
  bool has_nvidia_driver = false;
  std::optional<int64_t> locked_memory_bytes;                // unset: unlimited
  std::optional<int64_t> dev_shm_bytes, dev_shm_free_bytes;  // unset: there is no /dev/shm
  std::optional<bool> own_ipc_namespace;
  std::string
      net_plugin;  // NCCL's plugin for EFA and others, where a file of that name lies; empty when none was found
};

// `root` stands before every path of /sys, /proc, /dev and /opt: empty for this machine, a folder for the recording of another (which
// has no addresses).
Machine read_machine(const std::string& root, const Environment& environment);

// "0-23,48-71" to numbers and back.
std::vector<int> parse_list(const std::string& text);
std::string list_text(const std::vector<int>& numbers);

}  // namespace amxt::comm
