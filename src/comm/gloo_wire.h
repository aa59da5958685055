// The Wire over Gloo: a full mesh of TCP connections between all ranks, made anew for each wire.
//
// Addresses travel through Group::exchange(), and each connection is proved by nonces that went there too, so that a stranger who comes
// first ends the start by name. Gloo authenticates nothing after that. Sizes are part of what must meet:
// a receive of another size than the send never completes.
#pragma once

#include <memory>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/group.h"
#include "comm/wire.h"

namespace amxt::comm {

// Collective. kUnsupported where the module or Gloo is missing; a rank that can't connect gives kCommPeerLost or kCommTimeout on all.
// The group must outlive the wire. `log` may be null.
Result<std::unique_ptr<Wire>> make_gloo_wire(Group& group, Log* log, const Limits& limits);

}  // namespace amxt::comm
