// GPU paths: which way NCCL takes between two GPUs, how fast the links of that way are, and why not a better one.
#pragma once

#include <optional>
#include <string>

#include "comm/launchers.h"
#include "comm/nvml.h"

namespace amxt::comm {

enum class GpuTransport { kNone, kP2p, kSharedMemory, kNetwork };
const char* transport_name(GpuTransport transport);  // "none", "p2p", "shared_memory", "network"

struct GpuPath {
  std::string
      code;  // as in the matrix of nvidia-smi: "NV12", "PIX", "PXB", "PHB", "NODE", "SYS", "?"
  GpuTransport transport = GpuTransport::kNone;
  std::string over;  // "NVLink", "PCIe", "" for the network
  // Nominal, one way, in 10^9 bytes a second; unset where a link is not known.
  std::optional<double> gigabytes_per_second;
  std::string reason;  // why not P2P, empty when it is
};

// What NCCL's variables and the processor have to say about all pairs.
struct GpuPathRules {
  bool p2p_disabled = false;  // NCCL_P2P_DISABLE=1
  bool shm_disabled = false;  // NCCL_SHM_DISABLE=1
  std::string p2p_level;      // NCCL_P2P_LEVEL, empty when unset
  bool amd_processor = false;
  int gpus = 0;

  static GpuPathRules from(const Environment& environment, const std::string& vendor, int gpus);
};

// "NV12", "PIX", ..., "?" when NVML does not tell.
std::string path_code(const GpuPair& pair);
GpuPath path_between(const Gpu& a, const Gpu& b, const GpuPair& pair, const GpuPathRules& rules);

// One way, in 10^9 bytes a second. Unset for what the table does not have.
std::optional<double> nvlink_gigabytes_per_second(int compute_major, int minor);
std::optional<int> nvlink_generation(int compute_major, int minor);
std::optional<double> pcie_gigabytes_per_second(int generation, int width);

}  // namespace amxt::comm
