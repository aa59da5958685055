// LaunchInfo: who this process is and where the others are, from explicit options or from the launcher's environment.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace amxt::comm {

struct LaunchInfo {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  std::string master_address = "127.0.0.1";
  int master_port = 0;
  bool agent_store = false;  // torchrun's agent serves the store at master_address:master_port
  std::string run_id;        // launcher's id of the job, may be empty
  std::string source;        // "options", "environment (RANK, WORLD_SIZE, ...)", "alone"
  std::vector<std::string> notes;  // one line each: what was derived and why
};

struct GroupOptions {
  int rank = -1, world_size = -1, local_rank = -1, local_world_size = -1;  // -1: unset
  std::string master_address;
  int master_port = -1;
  int threads = 1;  // of this rank; to know whether cores are oversubscribed
  int64_t peer_timeout_ns = 30'000'000'000;
};

using Environment = std::function<std::optional<std::string>(const std::string& name)>;
Environment process_environment();

// Explicit options first, else RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT; a part of the set, or a set that
// contradicts itself, is an error that prints what was seen. A missing LOCAL_RANK is derived, with a note.
Result<LaunchInfo> find_launch(const GroupOptions& options, const Environment& environment);

}  // namespace amxt::comm
