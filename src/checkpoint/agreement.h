// Agreement: all ranks go on, or all end with the same error.
#pragma once

#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/group.h"

namespace amxt::checkpoint {

// Collective. Each rank brings its outcome with a payload of at most 60 KiB. When all are good, each gets the payloads by rank; else all
// get the error of the same rank: the lowest one with an error, before those that were merely cancelled or late. With more than one
// rank its message begins "rank N: ". Waits a little past the deadline, so that ranks that have just met it themselves still agree.
Result<std::vector<std::string>> agree(comm::Group& group, Result<std::string> mine,
                                       Deadline deadline);
Status agree(comm::Group& group, Status mine, Deadline deadline);

}  // namespace amxt::checkpoint
