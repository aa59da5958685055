// LaunchInfo: who this process is and where the others are, from explicit options or from the launcher's environment.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "comm/launchers.h"

namespace amxt::comm {

struct LaunchInfo {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  bool local_size_is_guess = false;  // nothing told it: all ranks, as if there were one node
  std::string master_address = "127.0.0.1";
  int master_port = 0;
  bool agent_store = false;  // torchrun's agent serves the store at master_address:master_port
  std::string run_id;        // launcher's id of the job, may be empty
  std::string node_hint;     // what AMXTRAIN_NODE_ID or the launcher calls this node, may be empty
  bool node_is_named =
      false;  // by AMXTRAIN_NODE_ID, which may split what the launcher takes for one machine
  std::string
      interface;  // AMXTRAIN_SOCKET_IFNAME: what other machines reach this one by, may be empty
  std::string secret_file;         // AMXTRAIN_SECRET_FILE, may be empty
  std::string source;              // "options", "environment (RANK, WORLD_SIZE, ...)", "alone"
  std::string launcher;            // whose variables were taken, may be empty
  std::string reason;              // why this source
  std::vector<std::string> notes;  // one line each: what was derived and why

  // By what the launcher says; which ranks share a machine is found out when they meet (nodes.h).
  bool spans_nodes() const { return local_world_size < world_size; }
  // Whether ranks may be on other nodes than this one, so that they need an address to reach each other at.
  bool may_span_nodes() const { return spans_nodes() || local_size_is_guess || node_is_named; }
};

inline constexpr int kMaxLocalRanks = 64;
inline constexpr int kMaxRanks = 1024;

struct GroupOptions {
  int rank = -1, world_size = -1, local_rank = -1, local_world_size = -1;  // -1: unset
  std::string master_address;
  int master_port = -1;
  int threads = 1;  // of this rank; to know whether cores are oversubscribed
  int64_t peer_timeout_ns =
      10'000'000'000;         // a rank on another node that is silent so long is lost
  std::string configuration;  // at most 127 characters that all ranks must have in common
  // With a secret and several nodes: let data go over a wire that cannot authenticate, such as gloo.
  bool allow_unauthenticated_data = false;
};

// Explicit options first, else the innermost complete set of a launcher's variables (launchers.h), else alone. RANK and its family in part,
// or a set that contradicts itself, is an error that prints what was seen; other sets are listed as notes. A missing local rank is derived,
// and so is the address where the launcher has none, on one node or from a list of hosts; both with a note. What cannot be told is an
// error that names the variable to set.
Result<LaunchInfo> find_launch(const GroupOptions& options, const Environment& environment);

// A line when the launcher has started so many ranks here that it took CPUs for GPUs, as Kubeflow Trainer does with a pod's: one rank for
// each NUMA domain is what trains fast. `cores`: physical ones of this machine.
std::optional<std::string> crowding_warning(const LaunchInfo& launch, int cores);

// 61000 to 65535, always the same for a job: within IANA's dynamic ports and above those that Linux gives to outgoing connections.
int port_of_job(const std::string& launcher, const std::string& job);

}  // namespace amxt::comm
