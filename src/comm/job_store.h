// JobStore: the store that the ranks of a job meet at. torchrun's agent serves it, or rank 0 does.
//
// Rank 0 listens at one interface: loopback where the launcher says that all ranks are on this machine; else the one that
// AMXTRAIN_SOCKET_IFNAME names, else the one that MASTER_ADDR leads to; never at all, as 0.0.0.0 would. A host's own name often leads to a
// loopback address (127.0.1.1) by mistake: that is an error where ranks are on other nodes; who means it writes "localhost" or the number.
#pragma once

#include <memory>
#include <vector>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "comm/launch.h"
#include "comm/secret.h"
#include "comm/tcp_store_client.h"
#include "comm/tcp_store_server.h"

namespace amxt::comm {

// kInvalidArgument when ranks are on other nodes and MASTER_ADDR is a name that leads to `address`, a loopback address.
Status check_reached_by_others(const LaunchInfo& launch, const Address& address);

// Where rank 0 listens and connects to, and where the others connect to. kNotFound when MASTER_ADDR is not resolved, kInvalidArgument when
// it is every address of a machine.
Result<std::vector<Address>> job_store_addresses(const LaunchInfo& launch, Deadline deadline);

// On rank 0, when no agent does. A name that is not resolved yet is asked for until the deadline,
// which one line of `log` (may be null) says.
Result<std::unique_ptr<TcpStoreServer>> serve_job_store(const LaunchInfo& launch,
                                                        const Secret& secret, Log* log,
                                                        Deadline deadline);

// `secret` (may be none) is proven to rank 0's store; torchrun's agent cannot ask for it, which one line of `log` (may be null) says, as
// one says after some seconds what is waited for.
Result<std::unique_ptr<TcpStoreClient>> connect_to_job_store(const LaunchInfo& launch,
                                                             const Secret& secret, Log* log,
                                                             Deadline deadline,
                                                             TcpStoreClient::Options options = {});

}  // namespace amxt::comm
