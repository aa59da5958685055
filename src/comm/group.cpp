#include "comm/group.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/cpu.h"
#include "comm/alone_group.h"
#include "comm/control_segment.h"
#include "comm/memory_file.h"
#include "comm/node_group.h"

namespace amxt::comm {
namespace {

Status check_launch(const LaunchInfo& launch) {
  const bool ranks_fit = launch.rank >= 0 && launch.rank < launch.world_size &&
                         launch.local_rank >= 0 && launch.local_rank < launch.local_world_size;
  if (!ranks_fit) {
    return Error(Code::kInvalidArgument,
                 fmt::format("rank {} of {}, local rank {} of {}", launch.rank, launch.world_size,
                             launch.local_rank, launch.local_world_size));
  }
  if (launch.world_size != launch.local_world_size) {
    return Error(
        Code::kUnsupported,
        fmt::format("several nodes are not supported yet: {} of {} ranks are on this machine",
                    launch.local_world_size, launch.world_size));
  }
  if (launch.world_size > ControlSegment::kMaxRanks) {
    return Error(Code::kLimit, fmt::format("{} ranks on one machine are more than the limit of {}",
                                           launch.world_size, ControlSegment::kMaxRanks));
  }
  return {};
}

int usable_cpus(const CpuLimits& limits) {
  const int affinity = std::max(1, static_cast<int>(limits.affinity.size()));
  if (limits.cgroup_cpus <= 0) return affinity;
  return std::clamp(static_cast<int>(limits.cgroup_cpus), 1, affinity);
}

}  // namespace

SharedMemory::~SharedMemory() { unmap_memory(data_, bytes_); }

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  if (this != &other) {
    unmap_memory(data_, bytes_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

SharedMemory Group::adopt(std::byte* data, int64_t bytes) {
  SharedMemory memory;
  memory.data_ = data;
  memory.bytes_ = bytes;
  return memory;
}

Result<std::unique_ptr<Group>> Group::create(const LaunchInfo& launch, const GroupOptions& options,
                                             Log* log, Deadline deadline) {
  AMXT_TRY(check_launch(launch));
  if (log != nullptr) {
    for (const std::string& note : launch.notes) log->info(note);
  }
  const int cpus = usable_cpus(cpu_limits());
  std::unique_ptr<Group> group;
  if (launch.world_size == 1) {
    group = make_alone_group(launch, options.threads > cpus);
  } else {
    AMXT_ASSIGN(group, make_node_group(launch, options, log, deadline));
  }
  if (log != nullptr) {
    log->info(fmt::format(
        "rank {} connected to {} of {} by {}: {} {} on {} {}{}", launch.rank, launch.world_size,
        launch.world_size, launch.world_size == 1 ? "nothing, it is alone" : "shared memory",
        options.threads, options.threads == 1 ? "thread" : "threads", cpus,
        cpus == 1 ? "core" : "cores", group->oversubscribed() ? ", oversubscribed" : ""));
  }
  return group;
}

}  // namespace amxt::comm
