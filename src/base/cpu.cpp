#include "base/cpu.h"

#include <cpuid.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "base/text.h"

namespace amxt {
namespace {

constexpr const char* kNames[] = {"avx2", "avx512", "avx512_bf16", "amx"};

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
  return r;
}

bool bit(uint32_t word, int index) { return (word >> index) & 1; }

// State that the operating system saves on a context switch (XCR0).
uint64_t saved_state() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

struct Detected {
  Isa isa = Isa::kAvx2;
  bool baseline = false;
  std::string reason;
};

Detected detect() {
  Detected d;
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1);
  const uint64_t state = saved_state();
  const bool avx_state = (state & 0x6) == 0x6;
  const bool avx512_state = (state & 0xE6) == 0xE6;
  const bool tile_state = (state & 0x60000) == 0x60000;
  d.baseline = avx_state && bit(one.ecx, 12) && bit(one.ecx, 29) && bit(seven.ebx, 5) &&
               bit(seven.ebx, 3) && bit(seven.ebx, 8);
  // F, DQ, CD, BW, VL
  const bool avx512 = bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 28) &&
                      bit(seven.ebx, 30) && bit(seven.ebx, 31);
  if (!avx512) {
    d.reason = "the CPU has no AVX-512 (F, BW, VL, DQ, CD)";
  } else if (!avx512_state) {
    d.reason = "the operating system does not save AVX-512 state";
  } else if (!bit(seven1.eax, 5)) {
    d.isa = Isa::kAvx512;
    d.reason = "the CPU has no AVX512_BF16";
  } else if (!bit(seven.edx, 24) || !bit(seven.edx, 22)) {
    d.isa = Isa::kAvx512Bf16;
    d.reason = "the CPU has no AMX (AMX-TILE, AMX-BF16)";
  } else if (!tile_state) {
    d.isa = Isa::kAvx512Bf16;
    d.reason = "the operating system does not save AMX state";
  } else {
    d.isa = Isa::kAmx;
  }
  return d;
}

// Linux gives tile state to a process only when asked, once, before the first tile instruction.
std::optional<std::string> request_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return std::nullopt;
  const int error = errno;
  if (error == ENOSPC) {
    return "the kernel refused AMX: the alternate signal stack of some thread is too small "
           "(ENOSPC)";
  }
  return fmt::format("the kernel refused AMX: {}", std::strerror(error));
}

Result<CpuIsa> read_isa() {
  CpuIsa isa;
  const Detected detected = detect();
  isa.detected = isa.chosen = detected.isa;
  isa.baseline = detected.baseline;
  isa.reason = detected.reason;
  if (const char* cap = std::getenv("AMXTRAIN_MAX_ISA"); cap != nullptr && *cap != '\0') {
    const auto* end = std::end(kNames);
    const auto* at = std::find_if(std::begin(kNames), end,
                                  [&](const char* name) { return std::strcmp(name, cap) == 0; });
    if (at == end) {
      return Error(
          Code::kInvalidArgument,
          fmt::format("AMXTRAIN_MAX_ISA is {}; it is one of avx2, avx512, avx512_bf16, amx",
                      quote(cap)));
    }
    isa.cap = cap;
    const Isa limit = static_cast<Isa>(at - std::begin(kNames));
    if (limit < isa.chosen) {
      isa.chosen = limit;
      isa.reason = fmt::format("capped by AMXTRAIN_MAX_ISA={}", cap);
    }
  }
  if (isa.chosen == Isa::kAmx) {
    if (auto refused = request_amx()) {
      isa.chosen = Isa::kAvx512Bf16;
      isa.reason = *refused;
    }
  }
  return isa;
}

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> number_in(const std::string& path) {
  const auto line = first_line(path);
  if (!line || line->empty() || *line == "max") return std::nullopt;
  char* end = nullptr;
  const long long value = std::strtoll(line->c_str(), &end, 10);
  if (end == line->c_str() || value < 0) return std::nullopt;
  return value;
}

// Folders of this process's control group, innermost first, for a v1 controller or for v2 ("").
std::vector<std::string> cgroup_folders(const std::string& controller) {
  std::ifstream file("/proc/self/cgroup");
  std::string line, path;
  while (std::getline(file, line)) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string list = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool match =
        controller.empty() ? list == ",," : list.find("," + controller + ",") != std::string::npos;
    if (match) path = line.substr(second + 1);
  }
  const std::string root = controller.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
  std::vector<std::string> folders;
  while (path.size() > 1) {
    folders.push_back(root + path);
    path.resize(path.rfind('/'));
  }
  folders.push_back(root);
  return folders;
}

double cgroup_cpus() {
  double least = 0;
  const auto take = [&](double quota, double period) {
    if (quota <= 0 || period <= 0) return;
    const double cpus = quota / period;
    least = least == 0 ? cpus : std::min(least, cpus);
  };
  for (const std::string& folder : cgroup_folders("")) {
    if (const auto line = first_line(folder + "/cpu.max")) {
      std::istringstream words(*line);
      std::string quota;
      double period = 0;
      words >> quota >> period;
      if (quota != "max") take(std::atof(quota.c_str()), period);
    }
  }
  for (const std::string& folder : cgroup_folders("cpu")) {
    const auto quota = number_in(folder + "/cpu.cfs_quota_us");
    const auto period = number_in(folder + "/cpu.cfs_period_us");
    if (quota && period) take(static_cast<double>(*quota), static_cast<double>(*period));
  }
  return least;
}

void cgroup_memory(CpuLimits* limits) {
  // cgroup v1 says "unlimited" with a huge number.
  constexpr int64_t kUnlimited = int64_t{1} << 60;
  const auto take = [&](const std::string& folder, const char* limit_file, const char* usage_file) {
    const auto limit = number_in(folder + "/" + limit_file);
    if (!limit || *limit >= kUnlimited) return;
    if (limits->cgroup_memory_bytes != 0 && *limit >= limits->cgroup_memory_bytes) return;
    limits->cgroup_memory_bytes = *limit;
    limits->cgroup_memory_used_bytes = number_in(folder + "/" + usage_file).value_or(0);
  };
  for (const std::string& folder : cgroup_folders("")) take(folder, "memory.max", "memory.current");
  for (const std::string& folder : cgroup_folders("memory")) {
    take(folder, "memory.limit_in_bytes", "memory.usage_in_bytes");
  }
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Result<const CpuIsa*> cpu_isa() {
  static const Result<CpuIsa> isa = read_isa();
  if (!isa) return Error(isa.error().code(), isa.error().message());
  if (!isa->baseline) {
    return Error(Code::kUnsupported, "the CPU is not x86-64-v3 (AVX2, FMA, F16C, BMI2)");
  }
  return &*isa;
}

CpuLimits cpu_limits() {
  CpuLimits limits;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) limits.affinity.push_back(i);
    }
  }
  if (limits.affinity.empty()) limits.affinity.push_back(0);
  limits.cgroup_cpus = cgroup_cpus();
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, unit);
    if (key == "MemTotal:") limits.memory_bytes = kib * 1024;
    if (key == "MemAvailable:") limits.memory_available_bytes = kib * 1024;
  }
  cgroup_memory(&limits);
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.starts_with("model name")) {
      limits.model_name = line.substr(std::min(line.size(), line.find(':') + 2));
      break;
    }
  }
  return limits;
}

int physical_cores() {
  std::set<std::pair<int64_t, int64_t>> cores;
  for (long cpu = 0; cpu < sysconf(_SC_NPROCESSORS_CONF); ++cpu) {
    const std::string topology = fmt::format("/sys/devices/system/cpu/cpu{}/topology/", cpu);
    const auto package = number_in(topology + "physical_package_id");
    const auto core = number_in(topology + "core_id");
    if (package && core) cores.emplace(*package, *core);
  }
  return static_cast<int>(cores.size());
}

bool cpus_are_own() {
  const char* own = std::getenv("AMXTRAIN_CPUS_OWN");
  return own != nullptr && std::strcmp(own, "1") == 0;
}

int default_threads(int local_world_size, std::string* why) {
  const CpuLimits limits = cpu_limits();
  const int ranks = std::max(1, local_world_size);
  const double in_mask = static_cast<double>(limits.affinity.size());
  double cpus = cpus_are_own() ? in_mask : in_mask / ranks;
  std::string reason = fmt::format("{} in the affinity mask{}",
                                   counted(static_cast<int64_t>(limits.affinity.size()), "CPU"),
                                   cpus_are_own() ? ", this rank's own" : "");
  if (limits.cgroup_cpus > 0 && limits.cgroup_cpus / ranks < cpus) {
    cpus = limits.cgroup_cpus / ranks;
    reason = fmt::format("cgroup quota of {:.2f} CPUs", limits.cgroup_cpus);
  }
  int threads = std::max(1, static_cast<int>(std::floor(cpus)));
  reason += fmt::format(", {}", counted(local_world_size, "local rank"));
  if (const char* omp = std::getenv("OMP_NUM_THREADS"); omp != nullptr && *omp != '\0') {
    const int wished = std::atoi(omp);
    const bool torchrun = std::getenv("TORCHELASTIC_RUN_ID") != nullptr;
    if (torchrun && wished == 1) {
      reason += "; OMP_NUM_THREADS=1 is torchrun's own and not taken as a wish";
    } else if (wished > 0) {
      threads = wished;
      reason = fmt::format("OMP_NUM_THREADS={}", wished);
    }
  }
  if (why != nullptr) *why = reason;
  return threads;
}

}  // namespace amxt
