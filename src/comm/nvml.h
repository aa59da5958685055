// NVML: what the NVIDIA driver knows of the GPUs of this machine, and of the links between them. The driver's library is opened at run
// time and closed again; a machine without it has no GPUs and that is no error.
//
// Names, numbers and layouts: NVML API reference (docs.nvidia.com/deploy/nvml-api) and the bindings of nvidia-ml-py 13 (PyPI).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace amxt::comm {

// What two GPUs have in common on the PCI bus; the values are NVML's.
enum class GpuLevel : int32_t {
  kInternal = 0,     // two GPUs of one board
  kSingle = 10,      // PIX: one switch
  kMultiple = 20,    // PXB: several switches, no host bridge
  kHostBridge = 30,  // PHB: one host bridge
  kNode = 40,        // NODE: several host bridges of one NUMA node
  kSystem = 50,      // SYS: several NUMA nodes
};

// Whether one GPU reaches the memory of another; the values are NVML's.
enum class GpuP2p : int32_t {
  kOk = 0,
  kChipsetNotSupported = 1,
  kGpuNotSupported = 2,
  kTopologyNotSupported = 3,
  kDisabledByDriver = 4,
  kNotSupported = 5,
  kUnknown = 6,
};
const char* gpu_p2p_text(GpuP2p status);

enum class GpuVirtualization : int32_t { kNone = 0, kPassthrough = 1, kVirtualGpu = 2 };

struct Gpu {
  std::string
      fault;  // what NVML said instead of an answer: "GPU is lost"; what follows may then be unset
  std::string name;
  std::string uuid;
  std::string bus_id;  // as in /sys/bus/pci/devices: "0000:10:1c.0"
  std::optional<int64_t> memory_bytes;
  int compute_major = 0, minor = 0;
  // The best that the GPU and its slot can do together: an idle GPU runs its link slower.
  int pcie_generation = 0, pcie_width = 0;
  std::optional<bool> mig;  // split into instances
  std::optional<GpuVirtualization> virtualization;
  std::vector<int> cpus;        // that are near
  std::vector<int> numa_nodes;  // that are near
  int nvlinks = 0;              // active
  int switch_nvlinks = 0;       // of these, those to an NVSwitch
  std::map<std::string, int>
      peer_nvlinks;  // of these, those that lead to a device with that bus id
};

struct GpuPair {
  std::optional<GpuLevel> level;
  std::optional<GpuP2p> read, write;
  int nvlinks = 0;  // direct ones, or as many as both have to the switches
};

struct GpuSurvey {
  bool found = false;          // NVML answers
  bool library_found = false;  // libnvidia-ml.so.1 is there
  std::string reason;          // why NVML does not answer
  std::string path, driver_version, nvml_version;
  std::vector<std::string> missing;  // functions that this NVML is too old for
  std::vector<Gpu> gpus;
  std::vector<std::vector<GpuPair>> pairs;  // [a][b]; the diagonal is empty
};

// AMXTRAIN_NVML_LIBRARY names another library than libnvidia-ml.so.1.
std::string nvml_library_name();
GpuSurvey survey_gpus(const std::string& library);
// Versions alone: no GPU is asked.
GpuSurvey survey_driver(const std::string& library);

}  // namespace amxt::comm
