// Rendezvous: from a store's address to a connection to every other rank, and to the nodes that they make.
//
// Each process listens on an abstract unix socket named by a random 128-bit nonce, and where ranks may be on other machines also on a TCP
// port of one interface. It appends an entry (rank, nonce, process, machine, address) to the list "/amxtrain/<run id>/entry/<n>" of the
// store. The list may hold entries of earlier attempts: torchrun's agent keeps its store over restarts. An entry counts only when somebody
// answers there and proves its nonce (handshake.h); a dead process refuses at once. The higher rank connects to the lower, the whole mesh:
// by the unix socket where both are on one machine and no node id splits them, else by TCP. Who gives up tells those it has met and leaves
// a note in the list for the others; who has all says so to all, with those of its own node; rank 0 makes the nodes of that and starts the
// job, the lowest rank of each node its control segment. From then on no listener and no connection to the store is left.
#pragma once

#include <string>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/assembly.h"
#include "comm/launch.h"

namespace amxt::comm {

// What a rank that an entry tells of cannot be reached for, if that is so: it is on another machine (not `machine`) and its entry has no
// address that leads there.
struct Entry;
std::string why_unreachable(const Entry& entry, const std::string& machine);

Result<Gathering> gather(const LaunchInfo& launch, const GroupOptions& options, Log* log,
                         Deadline deadline);

}  // namespace amxt::comm
