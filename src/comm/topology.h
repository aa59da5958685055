// Topology: this machine as ranks see it that talk to each other, as one JSON object: NUMA nodes, interfaces, RDMA devices, limits, GPUs
// and the way between each two of them, and warnings about what spoils it.
#pragma once

#include <string>

#include "base/json.h"
#include "comm/launchers.h"
#include "comm/machine.h"
#include "comm/nvml.h"

namespace amxt::comm {

// AMXTRAIN_TOPOLOGY_ROOT (a folder with another machine's /sys and /proc) and AMXTRAIN_NVML_LIBRARY take the place of this machine's.
Json topology(const Environment& environment);

// NCCL and NVML, opened at run time: {"found", "version", "path", "reason"} of each, those that do not apply null.
Json optional_libraries();

Json describe_topology(const Machine& machine, const GpuSurvey& survey,
                       const Environment& environment);

}  // namespace amxt::comm
