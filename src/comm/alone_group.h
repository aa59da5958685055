// The group of a process that is alone: no socket, no file, no thread.
#pragma once

#include <memory>

#include "comm/group.h"

namespace amxt::comm {

std::unique_ptr<Group> make_alone_group(const LaunchInfo& launch, bool oversubscribed);

}  // namespace amxt::comm
