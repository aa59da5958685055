#include "comm/nvml.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "base/dynamic_library.h"
#include "base/text.h"

namespace amxt::comm {
namespace {

constexpr unsigned kMostGpus = 64;   // of one machine; more are counted, not described
constexpr unsigned kMostLinks = 36;  // NVLinks of one GPU, today's limit

using Status = int;
constexpr Status kSuccess = 0, kDriverNotLoaded = 9, kFunctionNotFound = 13;

using Device = struct OpaqueDevice*;

struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
};
static_assert(sizeof(PciInfo) == 68);

struct Memory {
  unsigned long long total, free, used;
};

enum P2pIndex : int { kRead = 0, kWrite = 1 };
enum LinkEnd : int { kGpuEnd = 0, kSwitchEnd = 2 };

struct Functions {
  // Those of every NVML.
  Status (*init)();
  Status (*shutdown)();
  const char* (*error_text)(Status);
  Status (*count)(unsigned*);
  Status (*handle)(unsigned index, Device*);
  // Those that an old one may lack.
  Status (*driver_version)(char*, unsigned length);
  Status (*nvml_version)(char*, unsigned length);
  Status (*name)(Device, char*, unsigned length);
  Status (*uuid)(Device, char*, unsigned length);
  Status (*pci_info)(Device, PciInfo*);
  Status (*memory)(Device, Memory*);
  Status (*compute_capability)(Device, int* major, int* minor);
  Status (*pcie_generation)(Device, unsigned*);
  Status (*pcie_width)(Device, unsigned*);
  Status (*mig)(Device, unsigned* current, unsigned* pending);
  Status (*virtualization)(Device, int*);
  Status (*cpu_affinity)(Device, unsigned words, unsigned long*);
  Status (*memory_affinity)(Device, unsigned words, unsigned long*, int scope);
  Status (*link_state)(Device, unsigned link, int* active);
  Status (*link_remote)(Device, unsigned link, PciInfo*);
  Status (*link_remote_type)(Device, unsigned link, int*);
  Status (*common_ancestor)(Device, Device, int* level);
  Status (*p2p_status)(Device, Device, int index, int* status);
};

class Session {
 public:
  explicit Session(GpuSurvey* survey) : survey_(*survey) {}
  ~Session() {
    if (open_) f_.shutdown();
  }

  // False, with the reason, when NVML does not answer.
  bool open(const std::string& library) {
    auto opened = DynamicLibrary::open(library);
    if (!opened) {
      survey_.reason = opened.error().message();
      return false;
    }
    library_ = std::move(opened).value();
    survey_.library_found = true;
    survey_.path = library_.path();
    if (!load()) return false;
    if (const Status status = f_.init(); status != kSuccess) {
      survey_.reason = fmt::format("nvmlInit: {}{}", text(status),
                                   status == kDriverNotLoaded ? " (no NVIDIA driver)" : "");
      return false;
    }
    open_ = survey_.found = true;
    survey_.driver_version = read_text(f_.driver_version);
    survey_.nvml_version = read_text(f_.nvml_version);
    return true;
  }

  void read() {
    unsigned count = 0;
    if (const Status status = f_.count(&count); status != kSuccess) {
      survey_.reason = fmt::format("nvmlDeviceGetCount: {}", text(status));
      return;
    }
    if (count > kMostGpus) {
      survey_.reason = fmt::format("{} GPUs; the first {} are described", count, kMostGpus);
      count = kMostGpus;
    }
    for (unsigned index = 0; index < count; ++index) {
      Device device = nullptr;
      Gpu gpu;
      if (const Status status = f_.handle(index, &device); status != kSuccess) {
        gpu.fault = text(status);
        device = nullptr;
      } else {
        gpu = describe(device);
      }
      devices_.push_back(gpu.fault.empty() ? device : nullptr);
      survey_.gpus.push_back(std::move(gpu));
    }
    survey_.pairs.assign(count, std::vector<GpuPair>(count));
    for (unsigned a = 0; a < count; ++a) {
      for (unsigned b = 0; b < count; ++b) {
        if (a != b) survey_.pairs[a][b] = pair(a, b);
      }
    }
  }

 private:
  bool load() {
    RequiredFunctions required(&library_);
    required.load("nvmlInit_v2", &f_.init);
    required.load("nvmlShutdown", &f_.shutdown);
    required.load("nvmlErrorString", &f_.error_text);
    required.load("nvmlDeviceGetCount_v2", &f_.count);
    required.load("nvmlDeviceGetHandleByIndex_v2", &f_.handle);
    if (const auto whole = required.check(); !whole) {
      survey_.reason = whole.error().message();
      return false;
    }
    const auto optional = [&](const char* name, auto* function) {
      if (!library_.load(name, function)) survey_.missing.emplace_back(name);
    };
    optional("nvmlSystemGetDriverVersion", &f_.driver_version);
    optional("nvmlSystemGetNVMLVersion", &f_.nvml_version);
    optional("nvmlDeviceGetName", &f_.name);
    optional("nvmlDeviceGetUUID", &f_.uuid);
    optional("nvmlDeviceGetPciInfo_v3", &f_.pci_info);
    optional("nvmlDeviceGetMemoryInfo", &f_.memory);
    optional("nvmlDeviceGetCudaComputeCapability", &f_.compute_capability);
    optional("nvmlDeviceGetMaxPcieLinkGeneration", &f_.pcie_generation);
    optional("nvmlDeviceGetMaxPcieLinkWidth", &f_.pcie_width);
    optional("nvmlDeviceGetMigMode", &f_.mig);
    optional("nvmlDeviceGetVirtualizationMode", &f_.virtualization);
    optional("nvmlDeviceGetCpuAffinity", &f_.cpu_affinity);
    optional("nvmlDeviceGetMemoryAffinity", &f_.memory_affinity);
    optional("nvmlDeviceGetNvLinkState", &f_.link_state);
    optional("nvmlDeviceGetNvLinkRemotePciInfo_v2", &f_.link_remote);
    optional("nvmlDeviceGetNvLinkRemoteDeviceType", &f_.link_remote_type);
    optional("nvmlDeviceGetTopologyCommonAncestor", &f_.common_ancestor);
    optional("nvmlDeviceGetP2PStatus", &f_.p2p_status);
    return true;
  }

  // True when the function is there and gave an answer; its error becomes the fault of the GPU when the GPU itself is gone.
  template <typename... Parameters, typename... Arguments>
  bool ask(Gpu* gpu, Status (*function)(Parameters...), Arguments... arguments) {
    if (function == nullptr) return false;
    const Status status = function(arguments...);
    constexpr Status kGpuIsLost = 15, kResetRequired = 16;
    if (gpu != nullptr && gpu->fault.empty() &&
        (status == kGpuIsLost || status == kResetRequired)) {
      gpu->fault = text(status);
    }
    return status == kSuccess;
  }

  std::string text(Status status) const {
    if (status == kFunctionNotFound) return "function not found";
    const char* words = f_.error_text(status);
    return words != nullptr ? fmt::format("{} ({})", words, status) : fmt::format("{}", status);
  }

  static std::string until_zero(const char* bytes, size_t size) {
    return std::string(bytes, strnlen(bytes, size));
  }

  std::string read_text(Status (*function)(char*, unsigned)) {
    char buffer[96] = {};
    if (!ask(nullptr, function, buffer, static_cast<unsigned>(sizeof buffer))) return "";
    return until_zero(buffer, sizeof buffer);
  }

  static std::string bus_id_of(const PciInfo& info) {
    return fmt::format("{:04x}:{:02x}:{:02x}.0", info.domain, info.bus, info.device);
  }

  static std::vector<int> bits_of(const unsigned long* words, size_t count) {
    std::vector<int> bits;
    for (size_t bit = 0; bit < count * sizeof(long) * CHAR_BIT; ++bit) {
      const size_t width = sizeof(long) * CHAR_BIT;
      if ((words[bit / width] >> (bit % width)) & 1) bits.push_back(static_cast<int>(bit));
    }
    return bits;
  }

  Gpu describe(Device device) {
    Gpu gpu;
    char buffer[96] = {};
    constexpr unsigned kLength = sizeof buffer;
    if (ask(&gpu, f_.name, device, buffer, kLength)) gpu.name = until_zero(buffer, kLength);
    std::memset(buffer, 0, kLength);
    if (ask(&gpu, f_.uuid, device, buffer, kLength)) gpu.uuid = until_zero(buffer, kLength);
    if (PciInfo info{}; ask(&gpu, f_.pci_info, device, &info)) gpu.bus_id = bus_id_of(info);
    if (Memory memory{}; ask(&gpu, f_.memory, device, &memory)) {
      gpu.memory_bytes = static_cast<int64_t>(memory.total);
    }
    if (int major = 0, minor = 0; ask(&gpu, f_.compute_capability, device, &major, &minor)) {
      gpu.compute_major = major;
      gpu.minor = minor;
    }
    unsigned generation = 0, width = 0;
    if (ask(&gpu, f_.pcie_generation, device, &generation) &&
        ask(&gpu, f_.pcie_width, device, &width)) {
      gpu.pcie_generation = static_cast<int>(generation);
      gpu.pcie_width = static_cast<int>(width);
    }
    if (unsigned current = 0, pending = 0; ask(&gpu, f_.mig, device, &current, &pending)) {
      gpu.mig = current != 0;
    }
    if (int mode = 0; ask(&gpu, f_.virtualization, device, &mode)) {
      gpu.virtualization = static_cast<GpuVirtualization>(mode);
    }
    unsigned long words[64] = {};
    if (ask(&gpu, f_.cpu_affinity, device, 64U, words)) gpu.cpus = bits_of(words, 64);
    constexpr int kScopeNode = 0;
    unsigned long nodes[4] = {};
    if (ask(&gpu, f_.memory_affinity, device, 4U, nodes, kScopeNode)) {
      gpu.numa_nodes = bits_of(nodes, 4);
    }
    read_links(device, &gpu);
    return gpu;
  }

  // A GPU without NVLinks answers "not supported"; numbers beyond the last are invalid arguments.
  void read_links(Device device, Gpu* gpu) {
    for (unsigned link = 0; link < kMostLinks; ++link) {
      int active = 0;
      if (!ask(gpu, f_.link_state, device, link, &active) || active == 0) continue;
      ++gpu->nvlinks;
      int end = -1;
      ask(gpu, f_.link_remote_type, device, link, &end);
      PciInfo remote{};
      const bool known = ask(gpu, f_.link_remote, device, link, &remote);
      if (end == kSwitchEnd) {
        ++gpu->switch_nvlinks;
      } else if (known && (end == kGpuEnd || f_.link_remote_type == nullptr)) {
        ++gpu->peer_nvlinks[bus_id_of(remote)];
      }
    }
  }

  GpuPair pair(unsigned a, unsigned b) {
    GpuPair found;
    if (devices_[a] == nullptr || devices_[b] == nullptr) return found;
    int value = 0;
    if (ask(nullptr, f_.common_ancestor, devices_[a], devices_[b], &value)) {
      found.level = static_cast<GpuLevel>(value);
    }
    if (ask(nullptr, f_.p2p_status, devices_[a], devices_[b], static_cast<int>(kRead), &value)) {
      found.read = static_cast<GpuP2p>(value);
    }
    if (ask(nullptr, f_.p2p_status, devices_[a], devices_[b], static_cast<int>(kWrite), &value)) {
      found.write = static_cast<GpuP2p>(value);
    }
    const Gpu& from = survey_.gpus[a];
    const Gpu& to = survey_.gpus[b];
    const auto direct = from.peer_nvlinks.find(to.bus_id);
    found.nvlinks = direct != from.peer_nvlinks.end()
                        ? direct->second
                        : std::min(from.switch_nvlinks, to.switch_nvlinks);
    return found;
  }

  GpuSurvey& survey_;
  DynamicLibrary library_;
  Functions f_{};
  bool open_ = false;
  std::vector<Device> devices_;  // null for one with a fault
};

}  // namespace

const char* gpu_p2p_text(GpuP2p status) {
  switch (status) {
    case GpuP2p::kOk:
      return "ok";
    case GpuP2p::kChipsetNotSupported:
      return "chipset not supported";
    case GpuP2p::kGpuNotSupported:
      return "GPU not supported";
    case GpuP2p::kTopologyNotSupported:
      return "not supported across these host bridges";
    case GpuP2p::kDisabledByDriver:
      return "disabled in the driver";
    case GpuP2p::kNotSupported:
      return "not supported";
    default:
      return "unknown";
  }
}

std::string nvml_library_name() {
  return library_name("AMXTRAIN_NVML_LIBRARY", "libnvidia-ml.so.1");
}

GpuSurvey survey_gpus(const std::string& library) {
  GpuSurvey survey;
  Session session(&survey);
  if (session.open(library)) session.read();
  return survey;
}

GpuSurvey survey_driver(const std::string& library) {
  GpuSurvey survey;
  Session(&survey).open(library);
  return survey;
}

}  // namespace amxt::comm
