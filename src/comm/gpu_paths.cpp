#include "comm/gpu_paths.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "base/text.h"

namespace amxt::comm {
namespace {

struct NvlinkOfGpu {
  int major, minor;
  int generation;
  double gigabytes_per_second;  // of one link, one way
};

// NVIDIA's architecture papers give the sum of all links, both ways: P100 160 GB/s by 4, V100 300 by 6, TU102 100 by 2, A100 600 by 12,
// GA102 112.5 by 4, H100 900 by 18, B200 1800 by 18.
constexpr NvlinkOfGpu kNvlinks[] = {
    {6, 0, 1, 20},       // P100
    {7, 0, 2, 25},       // V100
    {7, 5, 2, 25},       // TU102
    {8, 0, 3, 25},       // A100
    {8, 6, 3, 14.0625},  // GA102: A40, RTX A6000
    {9, 0, 4, 25},       // H100, H200
    {10, 0, 5, 50},      // B200
    {10, 3, 5, 50},      // B300
};

const NvlinkOfGpu* nvlink_of(int major, int minor) {
  const auto* found = std::find_if(
      std::begin(kNvlinks), std::end(kNvlinks),
      [&](const NvlinkOfGpu& entry) { return entry.major == major && entry.minor == minor; });
  return found != std::end(kNvlinks) ? found : nullptr;
}

// NCCL's kinds of path, the nearest first (topo.h), as NCCL_P2P_LEVEL names them; a NODE of NVML is a PHB there, for all host bridges of a
// NUMA node hang on one processor in its graph.
constexpr const char* kLevels[] = {"LOC", "NVL", "NVB", "C2C", "PIX",
                                   "PXB", "P2C", "PXN", "PHB", "SYS"};
enum Level : int { kLoc = 0, kNvl = 1, kPix = 4, kPxb = 5, kPhb = 8, kSys = 9 };

// NCCL before 2.5 counted from 0 to 5; those numbers still count.
constexpr int kOldLevels[] = {kLoc, kPix, kPxb, kPhb, kSys, kSys};

int level_of(GpuLevel level) {
  switch (level) {
    case GpuLevel::kInternal:
    case GpuLevel::kSingle:
      return kPix;
    case GpuLevel::kMultiple:
      return kPxb;
    case GpuLevel::kHostBridge:
    case GpuLevel::kNode:
      return kPhb;
    default:
      return kSys;
  }
}

// How far apart two GPUs may be for P2P (ncclTopoCheckP2p of NCCL 2.30's paths.cc): no host bridge between them, or anything where an AMD
// processor has two GPUs at most, or what the variable says.
int farthest_p2p(const GpuPathRules& rules) {
  const std::string& wished = rules.p2p_level;
  const auto* named = std::find(std::begin(kLevels), std::end(kLevels), wished);
  if (named != std::end(kLevels)) return static_cast<int>(named - std::begin(kLevels));
  if (!wished.empty() && wished[0] >= '0' && wished[0] <= '9') {
    constexpr int kLast = static_cast<int>(std::size(kOldLevels)) - 1;
    return kOldLevels[std::clamp(std::atoi(wished.c_str()), 0, kLast)];
  }
  return rules.amd_processor && rules.gpus <= 2 ? kSys : kPxb;
}

// Both ends by PCIe: the slower one counts.
std::optional<double> slower_pcie(const Gpu& a, const Gpu& b) {
  const auto from = pcie_gigabytes_per_second(a.pcie_generation, a.pcie_width);
  const auto to = pcie_gigabytes_per_second(b.pcie_generation, b.pcie_width);
  if (!from || !to) return std::nullopt;
  return std::min(*from, *to);
}

// Why the two GPUs don't reach each other's memory, or "".
std::string obstacle(const Gpu& a, const Gpu& b, const GpuPair& pair, const std::string& code,
                     const GpuPathRules& rules) {
  if (a.mig == true || b.mig == true) return "MIG is on";
  if (rules.p2p_disabled) return "NCCL_P2P_DISABLE=1";
  const bool nvlink = pair.nvlinks > 0;
  if (!nvlink && !pair.level) return "NVML does not tell how far apart they are";
  const int distance = nvlink ? static_cast<int>(kNvl) : level_of(*pair.level);
  if (const int farthest = farthest_p2p(rules); distance > farthest) {
    return fmt::format("{} is farther than NCCL's limit {}{}", code, kLevels[farthest],
                       rules.p2p_level.empty() ? "" : " (NCCL_P2P_LEVEL)");
  }
  for (const auto& status : {pair.read, pair.write}) {
    if (status && *status != GpuP2p::kOk) {
      return fmt::format("NVML says of P2P: {}", gpu_p2p_text(*status));
    }
  }
  return "";
}

}  // namespace

const char* transport_name(GpuTransport transport) {
  switch (transport) {
    case GpuTransport::kP2p:
      return "p2p";
    case GpuTransport::kSharedMemory:
      return "shared_memory";
    case GpuTransport::kNetwork:
      return "network";
    default:
      return "none";
  }
}

GpuPathRules GpuPathRules::from(const Environment& environment, const std::string& vendor,
                                int gpus) {
  const auto is_one = [&](const char* name) {
    const auto value = environment(name);
    return value && std::strtol(value->c_str(), nullptr, 0) == 1;
  };
  GpuPathRules rules;
  rules.p2p_disabled = is_one("NCCL_P2P_DISABLE");
  rules.shm_disabled = is_one("NCCL_SHM_DISABLE");
  rules.p2p_level = environment("NCCL_P2P_LEVEL").value_or("");
  rules.amd_processor = vendor == "AuthenticAMD";
  rules.gpus = gpus;
  return rules;
}

std::string path_code(const GpuPair& pair) {
  if (pair.nvlinks > 0) return fmt::format("NV{}", pair.nvlinks);
  if (!pair.level) return "?";
  switch (*pair.level) {
    case GpuLevel::kInternal:
    case GpuLevel::kSingle:
      return "PIX";
    case GpuLevel::kMultiple:
      return "PXB";
    case GpuLevel::kHostBridge:
      return "PHB";
    case GpuLevel::kNode:
      return "NODE";
    case GpuLevel::kSystem:
      return "SYS";
  }
  return "?";
}

GpuPath path_between(const Gpu& a, const Gpu& b, const GpuPair& pair, const GpuPathRules& rules) {
  GpuPath path;
  path.code = path_code(pair);
  if (!a.fault.empty() || !b.fault.empty()) {
    path.reason = "a GPU does not answer";
    return path;
  }
  path.reason = obstacle(a, b, pair, path.code, rules);
  if (path.reason.empty() && pair.nvlinks > 0) {
    path.transport = GpuTransport::kP2p;
    path.over = "NVLink";
    const auto one = nvlink_gigabytes_per_second(a.compute_major, a.minor);
    if (one) path.gigabytes_per_second = *one * pair.nvlinks;
  } else if (path.reason.empty()) {
    path.transport = GpuTransport::kP2p;
    path.over = "PCIe";
    path.gigabytes_per_second = slower_pcie(a, b);
  } else if (!rules.shm_disabled) {
    // One GPU writes to the host's memory while the other reads from it.
    path.transport = GpuTransport::kSharedMemory;
    path.over = "PCIe";
    path.gigabytes_per_second = slower_pcie(a, b);
  } else {
    path.transport = GpuTransport::kNetwork;
    path.reason += "; NCCL_SHM_DISABLE=1";
  }
  return path;
}

std::optional<double> nvlink_gigabytes_per_second(int compute_major, int minor) {
  const NvlinkOfGpu* found = nvlink_of(compute_major, minor);
  return found != nullptr ? std::optional(found->gigabytes_per_second) : std::nullopt;
}

std::optional<int> nvlink_generation(int compute_major, int minor) {
  const NvlinkOfGpu* found = nvlink_of(compute_major, minor);
  return found != nullptr ? std::optional(found->generation) : std::nullopt;
}

std::optional<double> pcie_gigabytes_per_second(int generation, int width) {
  // Transfers a second and lane (PCI Express Base Specification) times the share that is not coding: 8b/10b, 128b/130b, from the sixth
  // generation 242 bytes of data in a flit of 256.
  constexpr double kLanes[] = {2.5 * 8 / 10,     5.0 * 8 / 10,     8.0 * 128 / 130,
                               16.0 * 128 / 130, 32.0 * 128 / 130, 64.0 * 242 / 256};
  if (generation < 1 || generation > static_cast<int>(std::size(kLanes)) || width < 1) return {};
  return kLanes[generation - 1] / 8 * width;
}

}  // namespace amxt::comm
