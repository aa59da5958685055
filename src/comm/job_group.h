// The group of several processes on one machine: rendezvous by the store, then sockets for deaths and descriptors, shared memory for
// everything else.
#pragma once

#include <memory>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/group.h"

namespace amxt::comm {

Result<std::unique_ptr<Group>> make_node_group(const LaunchInfo& launch,
                                               const GroupOptions& options, Log* log,
                                               Deadline deadline);

}  // namespace amxt::comm
