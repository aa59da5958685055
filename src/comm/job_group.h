// The group of several processes, on one node or several: rendezvous by the store, then links for deaths, descriptors and the word between
// nodes, shared memory within each node for everything else.
#pragma once

#include <memory>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/group.h"

namespace amxt::comm {

Result<std::unique_ptr<Group>> make_job_group(const LaunchInfo& launch, const GroupOptions& options,
                                              Log* log, Deadline deadline);

}  // namespace amxt::comm
