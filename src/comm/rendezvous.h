// Rendezvous: from a store's address to a socket to every other rank of this machine.
//
// Each process listens on an abstract unix socket named by a random 128-bit nonce and appends an entry (rank, nonce, process, machine)
// to the list "/amxtrain/<run id>/entry/<n>" of the store. The list may hold entries of earlier attempts: torchrun's agent keeps its store
// over restarts. An entry counts only when its socket answers and proves the nonce; a dead process refuses at once. The higher rank
// connects to the lower, the whole mesh; who gives up tells those it has met and leaves a note in the list for the others; who has all
// says so to all, and rank 0 starts the group when everyone has. From then on no listener and no connection to the store is left.
#pragma once

#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/control_message.h"
#include "comm/launch.h"

namespace amxt::comm {

struct Member {
  Identity identity;
  Descriptor socket;   // not open in one's own entry
  Descriptor process;  // see process_descriptor()
};

struct Gathering {
  std::vector<Member> members;  // by rank, oneself included
  Descriptor control;           // the control segment's memfd
};

// "rank 2 (pid 1234)"
std::string rank_text(const Identity& identity);

// `control_bytes`: size of the control segment that rank 0 makes.
Result<Gathering> gather(const LaunchInfo& launch, int threads, int64_t control_bytes, Log* log,
                         Deadline deadline);

}  // namespace amxt::comm
