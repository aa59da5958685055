#include "comm/topology.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/file.h"
#include "base/text.h"
#include "comm/gpu_paths.h"
#include "comm/nccl.h"

namespace amxt::comm {
namespace {

constexpr int64_t kMiB = 1 << 20;
// Below it, a limit was not set with RDMA or pinned memory in mind.
constexpr int64_t kLockedMemoryWanted = 1024 * kMiB;
// What docker gives a container unless it is told otherwise.
constexpr int64_t kDockerDevShm = 64 * kMiB;

// Variables that change which way data takes.
constexpr const char* kVariables[] = {"AMXTRAIN_SOCKET_IFNAME",
                                      "CUDA_VISIBLE_DEVICES",
                                      "NVIDIA_VISIBLE_DEVICES",
                                      "NCCL_COMM_ID",
                                      "NCCL_IB_DISABLE",
                                      "NCCL_IB_HCA",
                                      "NCCL_NET",
                                      "NCCL_NET_PLUGIN",
                                      "NCCL_P2P_DISABLE",
                                      "NCCL_P2P_LEVEL",
                                      "NCCL_SHM_DISABLE",
                                      "NCCL_SOCKET_IFNAME",
                                      "NCCL_TOPO_FILE"};

template <typename T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

class Warnings {
 public:
  void add(const char* code, std::string message) {
    list_.push_back(Json{{"code", code}, {"message", std::move(message)}});
  }
  Json take() { return std::move(list_); }

 private:
  Json list_ = Json::array();
};

Json describe_numa_nodes(const Machine& machine) {
  Json nodes = Json::array();
  for (const NumaNode& node : machine.numa_nodes) {
    nodes.push_back(Json{{"node", node.number},
                         {"cores", node.cores},
                         {"processors", list_text(node.processors)},
                         {"memory_bytes", node.memory_bytes},
                         {"free_bytes", node.free_bytes}});
  }
  return nodes;
}

Json describe_machine(const Machine& machine) {
  int cores = 0;
  size_t processors = 0;
  for (const NumaNode& node : machine.numa_nodes) {
    cores += node.cores;
    processors += node.processors.size();
  }
  return Json{{"processor", text_or_null(machine.processor)},
              {"cores", cores},
              {"processors", processors},
              {"virtual", machine.is_virtual}};
}

Json describe_interfaces(const Machine& machine) {
  Json interfaces = Json::array();
  for (const InterfaceFacts& facts : machine.interfaces) {
    const bool chosen = facts.name == machine.chosen_interface;
    interfaces.push_back(Json{{"name", facts.name},
                              {"addresses", facts.addresses},
                              {"state", text_or_null(facts.state)},
                              {"megabits_per_second", or_null(facts.megabits_per_second)},
                              {"mtu", facts.mtu},
                              {"driver", text_or_null(facts.driver)},
                              {"numa_node", or_null(facts.numa_node)},
                              {"chosen", chosen},
                              {"reason", chosen ? Json(machine.chosen_reason) : Json()}});
  }
  return interfaces;
}

Json describe_rdma(const Machine& machine) {
  Json devices = Json::array();
  for (const RdmaDevice& device : machine.rdma_devices) {
    devices.push_back(Json{{"name", device.name},
                           {"driver", text_or_null(device.driver)},
                           {"efa", device.is_efa()},
                           {"state", text_or_null(device.state)},
                           {"gigabits_per_second", or_null(device.gigabits_per_second)},
                           {"numa_node", or_null(device.numa_node)},
                           {"usable", device.usable}});
  }
  return devices;
}

Json describe_limits(const Machine& machine) {
  return Json{{"locked_memory_bytes", or_null(machine.locked_memory_bytes)},
              {"dev_shm_bytes", or_null(machine.dev_shm_bytes)},
              {"dev_shm_free_bytes", or_null(machine.dev_shm_free_bytes)},
              {"own_ipc_namespace", or_null(machine.own_ipc_namespace)}};
}

// Why NVML does not answer, or what it did not answer; empty when all is well.
std::string reason_of_nvml(const Machine& machine, const GpuSurvey& survey) {
  if (survey.library_found) return survey.reason;
  const std::string what = machine.has_nvidia_driver
                               ? "the NVIDIA driver is loaded, its library is not here"
                               : "no NVIDIA driver";
  return fmt::format("{}: {}", what, survey.reason);
}

Json nccl_info() {
  const auto nccl = open_nccl(nccl_library_name());
  return Json{{"found", nccl.ok()},
              {"version", nccl ? Json((*nccl)->version()) : Json()},
              {"path", nccl ? Json((*nccl)->path) : Json()},
              {"reason", nccl ? Json() : Json(nccl.error().message())}};
}

Json nvml_info(const Machine& machine, const GpuSurvey& survey) {
  return Json{{"found", survey.found},
              {"version", text_or_null(survey.nvml_version)},
              {"path", text_or_null(survey.path)},
              {"reason", text_or_null(reason_of_nvml(machine, survey))},
              {"driver_version", text_or_null(survey.driver_version)},
              {"missing_functions", survey.missing}};
}

std::vector<int> numa_nodes_of(const Machine& machine, const Gpu& gpu) {
  if (!gpu.numa_nodes.empty()) return gpu.numa_nodes;
  for (const PciGpu& pci : machine.pci_gpus) {
    if (pci.bus_id == gpu.bus_id && pci.numa_node) return {*pci.numa_node};
  }
  return {};
}

Json describe_gpus(const Machine& machine, const GpuSurvey& survey) {
  Json gpus = Json::array();
  for (const Gpu& gpu : survey.gpus) {
    const bool has_pcie = gpu.pcie_generation > 0;
    Json virtualization;
    if (gpu.virtualization) {
      virtualization = *gpu.virtualization == GpuVirtualization::kNone          ? "none"
                       : *gpu.virtualization == GpuVirtualization::kPassthrough ? "passthrough"
                                                                                : "vgpu";
    }
    gpus.push_back(Json{
        {"index", gpus.size()},
        {"name", text_or_null(gpu.name)},
        {"fault", text_or_null(gpu.fault)},
        {"uuid", text_or_null(gpu.uuid)},
        {"bus_id", text_or_null(gpu.bus_id)},
        {"memory_bytes", or_null(gpu.memory_bytes)},
        {"compute_capability",
         gpu.compute_major > 0 ? Json(fmt::format("{}.{}", gpu.compute_major, gpu.minor)) : Json()},
        {"pcie_generation", has_pcie ? Json(gpu.pcie_generation) : Json()},
        {"pcie_width", has_pcie ? Json(gpu.pcie_width) : Json()},
        {"nvlinks", gpu.nvlinks},
        {"nvlink_generation",
         gpu.nvlinks > 0 ? or_null(nvlink_generation(gpu.compute_major, gpu.minor)) : Json()},
        {"mig", or_null(gpu.mig)},
        {"virtualization", virtualization},
        {"cpu_affinity", text_or_null(list_text(gpu.cpus))},
        {"numa_affinity", text_or_null(list_text(numa_nodes_of(machine, gpu)))}});
  }
  return gpus;
}

struct Paths {
  Json matrix = Json::array(), pairs = Json::array();
  bool any_shared_memory = false;
};

Paths describe_paths(const GpuSurvey& survey, const GpuPathRules& rules, Warnings* warnings) {
  Paths paths;
  const size_t count = survey.gpus.size();
  std::string unreachable;  // NVLinks are there, and yet
  for (size_t a = 0; a < count; ++a) {
    Json row = Json::array();
    for (size_t b = 0; b < count; ++b) {
      if (a == b) {
        row.push_back("X");
        continue;
      }
      const GpuPair& pair = survey.pairs[a][b];
      const GpuPath path = path_between(survey.gpus[a], survey.gpus[b], pair, rules);
      row.push_back(path.code);
      if (b < a) continue;
      paths.any_shared_memory |= path.transport == GpuTransport::kSharedMemory;
      const bool by_choice = rules.p2p_disabled || !rules.p2p_level.empty() ||
                             survey.gpus[a].mig == true || survey.gpus[b].mig == true;
      if (pair.nvlinks > 0 && path.transport != GpuTransport::kP2p && !by_choice &&
          unreachable.empty()) {
        unreachable = fmt::format("GPU {} and GPU {} have {} NVLinks and no P2P: {}", a, b,
                                  pair.nvlinks, path.reason);
      }
      paths.pairs.push_back(Json{{"a", a},
                                 {"b", b},
                                 {"path", path.code},
                                 {"transport", transport_name(path.transport)},
                                 {"over", text_or_null(path.over)},
                                 {"gigabytes_per_second", or_null(path.gigabytes_per_second)},
                                 {"reason", text_or_null(path.reason)}});
    }
    paths.matrix.push_back(std::move(row));
  }
  if (!unreachable.empty()) {
    warnings->add("nvlink_without_p2p",
                  unreachable + "; with NVSwitches, is nvidia-fabricmanager running?");
  }
  return paths;
}

bool is_one(const Environment& environment, const char* name) {
  const auto value = environment(name);
  return value && std::strtol(value->c_str(), nullptr, 0) == 1;
}

Json describe_between_hosts(const Machine& machine, const Environment& environment,
                            Warnings* warnings) {
  const bool ib_disabled = is_one(environment, "NCCL_IB_DISABLE");
  double gigabits = 0;
  int devices = 0, efa = 0;
  std::string unusable;
  for (const RdmaDevice& device : machine.rdma_devices) {
    if (!device.usable) {
      if (unusable.empty()) unusable = device.name;
      continue;
    }
    if (device.state != "ACTIVE") continue;
    efa += device.is_efa();
    if (device.is_efa() ? machine.net_plugin.empty() : ib_disabled) continue;
    ++devices;
    gigabits += device.gigabits_per_second.value_or(0);
  }
  if (!unusable.empty()) {
    warnings->add("rdma_device_missing",
                  fmt::format("{} is there, its /dev/infiniband/uverbs* is not: the container was "
                              "not given it",
                              unusable));
  }
  if (efa > 0 && machine.net_plugin.empty()) {
    warnings->add("efa_without_plugin",
                  fmt::format("{} and no plugin of NCCL for them (libnccl-net.so of "
                              "aws-ofi-nccl): NCCL would take TCP",
                              counted(efa, "EFA device")));
  }
  if (ib_disabled && static_cast<int>(machine.rdma_devices.size()) > efa) {
    warnings->add("rdma_disabled", "NCCL_IB_DISABLE=1: NCCL takes TCP between hosts");
  }
  const bool rdma = devices > 0;
  std::optional<double> rate;
  if (rdma && gigabits > 0) rate = gigabits / 8;
  if (!rdma) {
    for (const InterfaceFacts& facts : machine.interfaces) {
      if (facts.name != machine.chosen_interface || !facts.megabits_per_second) continue;
      rate = static_cast<double>(*facts.megabits_per_second) / 8e3;
    }
  }
  return Json{{"transport", "network"},
              {"rdma", rdma},
              {"devices", rdma ? Json(devices) : Json(0)},
              {"interface", text_or_null(machine.chosen_interface)},
              {"plugin", text_or_null(machine.net_plugin)},
              {"gigabytes_per_second", or_null(rate)}};
}

void warn_of_gpus(const Machine& machine, const GpuSurvey& survey, Warnings* warnings) {
  const auto number = [&](const Gpu& gpu) { return &gpu - survey.gpus.data(); };
  int most_links = 0;
  for (const Gpu& gpu : survey.gpus) most_links = std::max(most_links, gpu.nvlinks);
  for (const Gpu& gpu : survey.gpus) {
    if (!gpu.fault.empty()) {
      warnings->add("gpu_fault", fmt::format("GPU {} does not answer: {}", number(gpu), gpu.fault));
      continue;
    }
    if (gpu.mig == true) {
      warnings->add("mig", fmt::format("GPU {}: MIG is on, so it has no P2P and a process gets "
                                       "one instance of it",
                                       number(gpu)));
    }
    if (gpu.virtualization && *gpu.virtualization >= GpuVirtualization::kVirtualGpu) {
      warnings->add("vgpu", fmt::format("GPU {} is a virtual GPU", number(gpu)));
    }
    if (gpu.nvlinks < most_links) {
      warnings->add("nvlink_uneven", fmt::format("GPU {} has {} active NVLinks, others have {}",
                                                 number(gpu), gpu.nvlinks, most_links));
    }
  }
  if (!survey.found && machine.has_nvidia_driver) {
    warnings->add("driver_without_nvml",
                  "the NVIDIA driver is loaded, libnvidia-ml.so.1 is not here: containers get it "
                  "with NVIDIA_DRIVER_CAPABILITIES=compute,utility");
  }
}

// GPUs of the host that another container has: NCCL's P2P and shared memory need one /dev/shm, and NVML tells nothing of them.
void warn_of_split(const Machine& machine, const GpuSurvey& survey, const Environment& environment,
                   Warnings* warnings) {
  const size_t on_bus = machine.pci_gpus.size(), visible = survey.gpus.size();
  if (!survey.found || visible >= on_bus) return;
  const auto wished = environment("NVIDIA_VISIBLE_DEVICES");
  warnings->add("gpus_hidden",
                fmt::format("{} of {} GPUs on the PCI bus are visible here{}: ranks on the others, "
                            "in other containers, are reached by P2P or shared memory only when "
                            "/dev/shm and IPC are shared",
                            visible, on_bus,
                            wished ? fmt::format(" (NVIDIA_VISIBLE_DEVICES={})", *wished) : ""));
  if (machine.own_ipc_namespace == true) {
    warnings->add("ipc_not_shared",
                  "this container has an IPC namespace of its own: data to the other GPUs of this "
                  "host takes the network (docker --ipc=host, hostIPC in a pod)");
  }
}

void warn_of_limits(const Machine& machine, const GpuSurvey& survey, const Paths& paths,
                    Warnings* warnings) {
  const bool wants_locked = survey.gpus.size() > 1 || !machine.rdma_devices.empty();
  if (wants_locked && machine.locked_memory_bytes &&
      *machine.locked_memory_bytes < kLockedMemoryWanted) {
    warnings->add("locked_memory",
                  fmt::format("locked memory is limited to {}: NCCL and RDMA want no limit (ulimit "
                              "-l unlimited, docker --ulimit memlock=-1)",
                              bytes_text(static_cast<uint64_t>(*machine.locked_memory_bytes))));
  }
  if (machine.dev_shm_bytes && *machine.dev_shm_bytes <= kDockerDevShm) {
    warnings->add(
        "dev_shm_small",
        fmt::format("/dev/shm has {}: NCCL{} needs more (docker --shm-size=8g, an emptyDir with "
                    "medium Memory in a pod); amxtrain itself does not use it",
                    bytes_text(static_cast<uint64_t>(*machine.dev_shm_bytes)),
                    paths.any_shared_memory ? ", which takes shared memory here," : ""));
  }
}

void warn_of_settings(const Machine& machine, const GpuSurvey& survey, const GpuPathRules& rules,
                      Warnings* warnings) {
  if (rules.p2p_disabled && survey.gpus.size() > 1) {
    warnings->add("p2p_disabled", "NCCL_P2P_DISABLE=1: no GPU reaches another's memory");
  }
  if (rules.shm_disabled && survey.gpus.size() > 1) {
    warnings->add("shm_disabled",
                  "NCCL_SHM_DISABLE=1: pairs without P2P take the network, inside this host too");
  }
  std::string bridges;
  for (const PciGpu& gpu : machine.pci_gpus) {
    for (const std::string& bridge : gpu.redirecting_bridges) {
      if (bridges.find(bridge) == std::string::npos) {
        bridges += (bridges.empty() ? "" : ", ") + bridge;
      }
    }
  }
  if (!bridges.empty()) {
    warnings->add("acs",
                  fmt::format("ACS redirects requests at {}: P2P over PCIe goes up to the host's "
                              "bridge and back, or hangs; turn it off there or in the BIOS",
                              bridges));
  }
}

}  // namespace

Json optional_libraries() {
  Machine machine;
  machine.has_nvidia_driver = path_exists("/proc/driver/nvidia/version");
  return Json{{"NCCL", nccl_info()},
              {"NVML", nvml_info(machine, survey_driver(nvml_library_name()))}};
}

Json topology(const Environment& environment) {
  const std::string root = environment("AMXTRAIN_TOPOLOGY_ROOT").value_or("");
  return describe_topology(read_machine(root, environment), survey_gpus(nvml_library_name()),
                           environment);
}

Json describe_topology(const Machine& machine, const GpuSurvey& survey,
                       const Environment& environment) {
  Warnings warnings;
  const GpuPathRules rules =
      GpuPathRules::from(environment, machine.vendor, static_cast<int>(survey.gpus.size()));
  warn_of_gpus(machine, survey, &warnings);
  warn_of_split(machine, survey, environment, &warnings);
  Paths paths = describe_paths(survey, rules, &warnings);
  Json between_hosts = describe_between_hosts(machine, environment, &warnings);
  warn_of_limits(machine, survey, paths, &warnings);
  warn_of_settings(machine, survey, rules, &warnings);

  Json json;
  json["machine"] = describe_machine(machine);
  json["numa_nodes"] = describe_numa_nodes(machine);
  json["interfaces"] = describe_interfaces(machine);
  json["rdma_devices"] = describe_rdma(machine);
  json["limits"] = describe_limits(machine);
  json["nccl"] = nccl_info();
  json["nvml"] = nvml_info(machine, survey);
  json["gpus"] = describe_gpus(machine, survey);
  json["pci_gpus"] = machine.pci_gpus.size();
  json["matrix"] = std::move(paths.matrix);
  json["pairs"] = std::move(paths.pairs);
  json["between_hosts"] = std::move(between_hosts);
  json["environment"] = Json::object();
  for (const char* name : kVariables) {
    if (const auto value = environment(name)) json["environment"][name] = *value;
  }
  json["warnings"] = warnings.take();
  return json;
}

}  // namespace amxt::comm
