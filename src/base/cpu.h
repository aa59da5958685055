// What the CPU can do, what the process may use of it, and why not more.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace amxt {

// Instruction sets in rising order; each includes those before it.
enum class Isa : int32_t { kAvx2 = 0, kAvx512 = 1, kAvx512Bf16 = 2, kAmx = 3 };

// "avx2", "avx512", "avx512_bf16", "amx"
const char* isa_name(Isa isa);

struct CpuIsa {
  Isa detected = Isa::kAvx2;  // what CPU and operating system offer
  Isa chosen = Isa::
      kAvx2;  // what kernels use: detected, capped by AMXTRAIN_MAX_ISA, less a refused AMX permission
  std::string cap;  // value of AMXTRAIN_MAX_ISA, empty when unset
  std::string
      reason;  // one line: why `chosen` is not higher, or "" when it is the highest there is
  bool baseline = true;  // x86-64-v3
};

// Read once per process, at the first call (AMXTRAIN_MAX_ISA and the AMX permission are the process's). An unknown value of
// AMXTRAIN_MAX_ISA is an error naming the four values.
Result<const CpuIsa*> cpu_isa();

// Physical limits that threads are chosen from.
struct CpuLimits {
  std::vector<int> affinity;  // CPUs in the affinity mask, ascending
  double cgroup_cpus = 0;     // quota of cgroup v1 or v2 in CPUs, 0 when unlimited
  int64_t memory_bytes = 0;   // MemTotal
  int64_t memory_available_bytes = 0;
  int64_t cgroup_memory_bytes = 0;  // limit, 0 when unlimited
  int64_t cgroup_memory_used_bytes = 0;
  std::string model_name;  // from /proc/cpuinfo
};
CpuLimits cpu_limits();

// Of the whole machine, whatever this process may use of it; 0 when it is not told.
int physical_cores();

// True when the launcher has cut the affinity mask for this rank alone (`amxtrain launch` says so with AMXTRAIN_CPUS_OWN=1).
bool cpus_are_own();

// Threads for one of `local_world_size` ranks: (affinity, quota) shared out, at least 1. OMP_NUM_THREADS is honoured unless it
// is torchrun's own 1 (TORCHELASTIC_RUN_ID set). `why` gets one line.
int default_threads(int local_world_size, std::string* why);

}  // namespace amxt
