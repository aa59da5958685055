#include "comm/group.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "base/cpu.h"
#include "base/text.h"
#include "comm/alone_group.h"
#include "comm/job_group.h"
#include "comm/memory_file.h"

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
  if (launch.world_size > kMaxRanks) {
    return Error(Code::kLimit, fmt::format("{} ranks are more than the limit of {}",
                                           launch.world_size, kMaxRanks));
  }
  if (launch.local_world_size > kMaxLocalRanks) {
    return Error(Code::kLimit, fmt::format("{} ranks on one machine are more than the limit of {}",
                                           launch.local_world_size, kMaxLocalRanks));
  }
  return {};
}

int usable_cpus(const CpuLimits& limits) {
  const int affinity = std::max(1, static_cast<int>(limits.affinity.size()));
  if (limits.cgroup_cpus <= 0) return affinity;
  return std::clamp(static_cast<int>(limits.cgroup_cpus), 1, affinity);
}

// "shared memory", or "shared memory and TCP (ranks 0, 1 on node 0: host a, 10.0.0.1; ...)"
std::string connections(const Group& group) {
  if (group.size() == 1) return "nothing, it is alone";
  if (group.node_count() == 1) return "shared memory";
  std::string text = group.local_size() == 1 ? "TCP (" : "shared memory and TCP (";
  const Nodes& nodes = group.nodes();
  for (int node = 0; node < nodes.count(); ++node) {
    const Nodes::Rank& leader = nodes.ranks[static_cast<size_t>(nodes.leader(node))];
    text += fmt::format("{}{} {} on node {}: host {}, {}", node == 0 ? "" : "; ",
                        nodes.local_size(node) == 1 ? "rank" : "ranks",
                        fmt::join(nodes.on(node), ", "), node, leader.host, leader.address);
  }
  return text + ")";
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
    AMXT_ASSIGN(group, make_job_group(launch, options, log, deadline));
  }
  if (log != nullptr) {
    log->info(fmt::format("rank {} connected to {} of {} by {}: {} on {}{}", launch.rank,
                          launch.world_size, launch.world_size, connections(*group),
                          counted(options.threads, "thread"), counted(cpus, "core"),
                          group->oversubscribed() ? ", oversubscribed" : ""));
  }
  return group;
}

}  // namespace amxt::comm
