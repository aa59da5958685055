#include "comm/launch.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <iterator>

#include "base/text.h"

namespace amxt::comm {
namespace {

constexpr int kMaxLocalRanks = 64;

constexpr const char* kRankVariables[] = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
constexpr const char* kAllVariables[] = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"};
// Sizes that other launchers set. They are not read yet, but whoever starts four processes that
// each believe to be alone should be told.
constexpr const char* kOtherLaunchers[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
                                           "MV2_COMM_WORLD_SIZE",  "SLURM_NTASKS",
                                           "PET_NNODES",           "JAX_NUM_PROCESSES"};

// The six variables as a line: "RANK='0', WORLD_SIZE unset, ...".
std::string seen(const Environment& environment) {
  std::string line;
  for (const char* name : kAllVariables) {
    const auto value = environment(name);
    line += fmt::format("{}{}{}", line.empty() ? "" : ", ", name,
                        value ? "=" + quote(*value) : " unset");
  }
  return line;
}

std::string seen(const GroupOptions& options) {
  const auto number = [](int value) { return value < 0 ? "unset" : std::to_string(value); };
  return fmt::format("rank {}, world_size {}, local_rank {}, local_world_size {}",
                     number(options.rank), number(options.world_size), number(options.local_rank),
                     number(options.local_world_size));
}

Result<int> parse_number(const char* name, const std::string& text, int lowest, int highest) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) {
    return Error(Code::kInvalidArgument, fmt::format("{}={} is not a number", name, quote(text)));
  }
  if (error == std::errc::result_out_of_range || value < lowest || value > highest) {
    return Error(Code::kInvalidArgument,
                 fmt::format("{}={} is outside {} to {}", name, quote(text), lowest, highest));
  }
  return value;
}

// -1 when the variable is unset.
Result<int> number_of(const Environment& environment, const char* name, int lowest, int highest) {
  const auto text = environment(name);
  if (!text) return -1;
  return parse_number(name, *text, lowest, highest);
}

// What came from where, before anything is derived; -1 and "" are unset.
struct Found {
  int rank = -1, world_size = -1, local_rank = -1, local_world_size = -1;
  std::string master_address;
  int master_port = -1;
  bool from_options = false;  // names in messages are those of the options
  std::string seen;

  const char* name(const char* option, const char* variable) const {
    return from_options ? option : variable;
  }
};

Error contradiction(const Found& found, const std::string& what) {
  return Error(Code::kInvalidArgument, fmt::format("{} ({})", what, found.seen));
}

Status read_options(const GroupOptions& options, Found* found) {
  found->from_options = true;
  found->rank = options.rank;
  found->world_size = options.world_size;
  found->local_rank = options.local_rank;
  found->local_world_size = options.local_world_size;
  found->seen = seen(options);
  if (found->world_size < 0) {
    return contradiction(*found, "a rank is given without world_size");
  }
  if (found->rank < 0 && found->world_size == 1) found->rank = 0;
  if (found->rank < 0) return contradiction(*found, "world_size is given without rank");
  return {};
}

Status read_environment(const Environment& environment, const GroupOptions& options, Found* found) {
  found->seen = seen(environment);
  AMXT_ASSIGN(found->rank, number_of(environment, "RANK", 0, INT32_MAX));
  AMXT_ASSIGN(found->world_size, number_of(environment, "WORLD_SIZE", 1, INT32_MAX));
  AMXT_ASSIGN(found->local_rank, number_of(environment, "LOCAL_RANK", 0, INT32_MAX));
  AMXT_ASSIGN(found->local_world_size, number_of(environment, "LOCAL_WORLD_SIZE", 1, INT32_MAX));
  if (options.local_rank >= 0) found->local_rank = options.local_rank;
  if (options.local_world_size >= 0) found->local_world_size = options.local_world_size;
  if (found->rank < 0 || found->world_size < 0) {
    return contradiction(*found, fmt::format("the launcher's variables are incomplete: {} is unset",
                                             found->rank < 0 ? "RANK" : "WORLD_SIZE"));
  }
  return {};
}

// The address: the option, else the variable.
Status read_master(const Environment& environment, const GroupOptions& options, Found* found) {
  if (options.master_port > 65535) {
    return contradiction(*found, fmt::format("master_port {} is above 65535", options.master_port));
  }
  found->master_address = options.master_address;
  if (found->master_address.empty()) {
    found->master_address = environment("MASTER_ADDR").value_or("");
  }
  found->master_port = options.master_port;
  if (found->master_port < 0) {
    AMXT_ASSIGN(found->master_port, number_of(environment, "MASTER_PORT", 1, 65535));
  }
  return {};
}

Status check_ranks(const Found& found) {
  if (found.world_size == 0) {
    return contradiction(found, "a world size of 0 has no ranks");
  }
  if (found.rank >= found.world_size) {
    return contradiction(found, fmt::format("{} {} is outside a world of {} ranks (0 to {})",
                                            found.name("rank", "RANK"), found.rank,
                                            found.world_size, found.world_size - 1));
  }
  return {};
}

// One machine for now.
Status check_one_node(const Environment& environment, const Found& found) {
  if (found.local_world_size > found.world_size) {
    return contradiction(
        found,
        fmt::format("{} {} is more than {} {}", found.name("local_world_size", "LOCAL_WORLD_SIZE"),
                    found.local_world_size, found.name("world_size", "WORLD_SIZE"),
                    found.world_size));
  }
  std::string nodes;
  if (found.local_world_size >= 0 && found.local_world_size < found.world_size) {
    nodes =
        fmt::format("{} of {} ranks are on this machine", found.local_world_size, found.world_size);
  } else if (!found.from_options) {
    AMXT_ASSIGN(const int groups, number_of(environment, "GROUP_WORLD_SIZE", 1, INT32_MAX));
    if (groups > 1) nodes = fmt::format("GROUP_WORLD_SIZE={}", groups);
  }
  if (!nodes.empty()) {
    return Error(Code::kUnsupported,
                 fmt::format("several nodes are not supported yet: {} ({})", nodes, found.seen));
  }
  return {};
}

Status derive_local(Found* found, std::vector<std::string>* notes) {
  if (found->local_world_size < 0) {
    found->local_world_size = found->world_size;
    if (found->world_size > 1) {
      notes->push_back(fmt::format("{} is unset: {} taken, all ranks on this machine",
                                   found->name("local_world_size", "LOCAL_WORLD_SIZE"),
                                   found->world_size));
    }
  }
  if (found->local_rank < 0) {
    found->local_rank = found->rank;
    if (found->world_size > 1) {
      notes->push_back(fmt::format("{} is unset: {} taken, the rank on one machine",
                                   found->name("local_rank", "LOCAL_RANK"), found->rank));
    }
  }
  if (found->local_rank >= found->local_world_size) {
    return contradiction(*found, fmt::format("{} {} is outside {} local ranks",
                                             found->name("local_rank", "LOCAL_RANK"),
                                             found->local_rank, found->local_world_size));
  }
  if (found->local_world_size > kMaxLocalRanks) {
    return Error(Code::kLimit, fmt::format("{} ranks on one machine are more than the limit of {}",
                                           found->local_world_size, kMaxLocalRanks));
  }
  return {};
}

LaunchInfo alone(const Environment& environment) {
  LaunchInfo info;
  info.source = "alone";
  for (const char* name : kOtherLaunchers) {
    const auto value = environment(name);
    if (value && *value != "1") {
      info.notes.push_back(fmt::format(
          "{}={} is set, but ranks are read from RANK and WORLD_SIZE only: this process is alone",
          name, quote(*value)));
    }
  }
  return info;
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
}

Result<LaunchInfo> find_launch(const GroupOptions& options, const Environment& environment) {
  Found found;
  LaunchInfo info;
  const auto is_set = [&](const char* name) { return environment(name).has_value(); };
  if (options.rank >= 0 || options.world_size >= 0) {
    AMXT_TRY(read_options(options, &found));
    info.source = "options";
  } else if (std::any_of(std::begin(kRankVariables), std::end(kRankVariables), is_set)) {
    AMXT_TRY(read_environment(environment, options, &found));
    info.source = "environment (RANK, WORLD_SIZE, ...)";
  } else if (options.local_rank >= 0 || options.local_world_size >= 0) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("a local rank or local size is given without rank and world_size ({}; {})",
                    seen(options), seen(environment)));
  } else {
    return alone(environment);
  }

  AMXT_TRY(check_ranks(found));
  AMXT_TRY(check_one_node(environment, found));
  AMXT_TRY(derive_local(&found, &info.notes));
  info.rank = found.rank;
  info.world_size = found.world_size;
  info.local_rank = found.local_rank;
  info.local_world_size = found.local_world_size;
  if (info.world_size == 1) return info;

  AMXT_TRY(read_master(environment, options, &found));
  if (found.master_address.empty() && found.from_options) found.master_address = "127.0.0.1";
  if (found.master_address.empty() || found.master_port <= 0) {
    const bool port = found.master_port <= 0;
    return contradiction(
        found, fmt::format("{} ranks need an address to meet at: {} is unset", info.world_size,
                           port ? found.name("master_port", "MASTER_PORT")
                                : found.name("master_address", "MASTER_ADDR")));
  }
  info.master_address = found.master_address;
  info.master_port = found.master_port;

  // torchrun's agent already listens, but only at the address that it gave its workers.
  const auto agent = environment("TORCHELASTIC_USE_AGENT_STORE");
  const bool agents_address = environment("MASTER_ADDR") == info.master_address &&
                              environment("MASTER_PORT") == std::to_string(info.master_port);
  info.agent_store = agent == "True" && agents_address;
  if (!found.from_options || info.agent_store) {
    info.run_id = environment("TORCHELASTIC_RUN_ID").value_or("");
  }
  return info;
}

}  // namespace amxt::comm
