#include "comm/launch.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <utility>

#include "base/text.h"
#include "comm/host_list.h"

namespace amxt::comm {
namespace {

std::string seen(const GroupOptions& options) {
  const auto number = [](int value) { return value < 0 ? "unset" : std::to_string(value); };
  return fmt::format("rank {}, world_size {}, local_rank {}, local_world_size {}",
                     number(options.rank), number(options.world_size), number(options.local_rank),
                     number(options.local_world_size));
}

// What came from where, before anything is derived; -1 and "" are unset.
struct Found {
  int rank = -1, world_size = -1, local_rank = -1, local_world_size = -1;
  int nodes = -1;
  std::string master_address;
  int master_port = -1;
  std::optional<LauncherSet> set;  // none: from the options, and names in messages are theirs
  std::string seen;

  std::string name(const char* option, Variable LauncherSet::* variable) const {
    if (!set || ((*set).*variable).name.empty()) return option;
    return ((*set).*variable).name;
  }
};

Error contradiction(const Found& found, const std::string& what) {
  return Error(Code::kInvalidArgument, fmt::format("{} ({})", what, found.seen));
}

// -1 when the variable is unset.
Result<int> number_of(const Found& found, const Variable& variable, int lowest, int highest) {
  if (!variable.value) return -1;
  const std::string& text = *variable.value;
  if (text.empty()) return contradiction(found, variable.name + " is empty, which is no number");
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) {
    return contradiction(found, fmt::format("{}={} is not a number", variable.name, quote(text)));
  }
  if (error == std::errc::result_out_of_range || value < lowest || value > highest) {
    return contradiction(found, fmt::format("{}={} is outside {} to {}", variable.name, quote(text),
                                            lowest, highest));
  }
  return value;
}

Status read_options(const GroupOptions& options, Found* found) {
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

Status read_set(const LauncherSet& set, Found* found) {
  found->set = set;
  found->seen = set.seen();
  AMXT_ASSIGN(found->rank, number_of(*found, set.rank, 0, INT32_MAX));
  AMXT_ASSIGN(found->world_size, number_of(*found, set.world_size, 1, INT32_MAX));
  AMXT_ASSIGN(found->local_rank, number_of(*found, set.local_rank, 0, INT32_MAX));
  AMXT_ASSIGN(found->nodes, number_of(*found, set.nodes, 1, INT32_MAX));
  if (found->rank < 0 || found->world_size < 0) {
    return contradiction(*found,
                         fmt::format("the launcher's variables are incomplete: {} is unset",
                                     found->rank < 0 ? set.rank.name : set.world_size.name));
  }
  return {};
}

// A number, or Slurm's list of tasks per node.
Status read_local_size(const LauncherSet& set, Found* found) {
  const Variable& size = set.local_size;
  if (size.name != "SLURM_STEP_TASKS_PER_NODE" || !size.value) {
    AMXT_ASSIGN(found->local_world_size, number_of(*found, size, 1, INT32_MAX));
    return {};
  }
  AMXT_ASSIGN(const int node, number_of(*found, set.node, 0, INT32_MAX));
  long long tasks = 0;
  found->local_world_size = tasks_of_node(*size.value, std::max(node, 0), &tasks);
  if (found->local_world_size < 0) {
    return contradiction(*found, fmt::format("{}={} does not tell the tasks of node {}", size.name,
                                             quote(*size.value), std::max(node, 0)));
  }
  if (tasks != found->world_size) {
    return contradiction(
        *found, fmt::format("{}={} makes {} tasks, {} is {}", size.name, quote(*size.value), tasks,
                            set.world_size.name, found->world_size));
  }
  return {};
}

// A PyTorchJob sets the variables of torchrun, but no local ones; with several processes a pod they are the pod's,
// for torchrun to make ranks of.
Status check_pod(const Environment& environment, const LauncherSet& set, const Found& found) {
  const auto processes = environment("PET_NPROC_PER_NODE");
  if (!processes || !set.is_rank_family() || found.local_rank >= 0) return {};
  int count = 0;
  std::from_chars(processes->data(), processes->data() + processes->size(), count);
  if (count <= 1) return {};
  return contradiction(found, fmt::format("{} and {} are a pod's, and PET_NPROC_PER_NODE={} makes "
                                          "ranks of it under torchrun (--no-python)",
                                          set.rank.name, set.world_size.name, quote(*processes)));
}

// Pods without local ranks have one rank each; so have those of a PyTorchJob.
bool is_one_rank_a_node(const Environment& environment, const LauncherSet& set) {
  if (set.local_rank.name.empty()) return true;
  return set.is_rank_family() && !set.local_rank.value && !set.local_size.value &&
         environment("KUBERNETES_SERVICE_HOST").has_value();
}

Status read_environment(const Environment& environment, const LauncherSet& set,
                        const GroupOptions& options, Found* found) {
  AMXT_TRY(read_set(set, found));
  AMXT_TRY(read_local_size(set, found));
  AMXT_TRY(check_pod(environment, set, *found));
  if (is_one_rank_a_node(environment, set)) {
    found->local_rank = 0;
    found->local_world_size = 1;
  }
  if (options.local_rank >= 0) found->local_rank = options.local_rank;
  if (options.local_world_size >= 0) found->local_world_size = options.local_world_size;
  return {};
}

// The address: the option, else MASTER_ADDR and MASTER_PORT, else what the launcher calls them.
Status read_master(const Environment& environment, const GroupOptions& options, Found* found) {
  if (options.master_port > 65535) {
    return contradiction(*found, fmt::format("master_port {} is above 65535", options.master_port));
  }
  const auto variable = [&](const char* name, Variable LauncherSet::* launchers) {
    const auto value = environment(name);
    if (value || !found->set) return Variable{name, value};
    return (*found->set).*launchers;
  };
  const Variable address = variable("MASTER_ADDR", &LauncherSet::address);
  const Variable port = variable("MASTER_PORT", &LauncherSet::port);
  found->master_address =
      options.master_address.empty() ? address.value.value_or("") : options.master_address;
  if (found->master_address.starts_with('[')) {
    const bool is_option = !options.master_address.empty();
    return contradiction(
        *found, fmt::format("{} {}: an IPv6 address is written without brackets here, as ::1",
                            is_option ? "address" : address.name, quote(found->master_address)));
  }
  found->master_port = options.master_port;
  if (found->master_port < 0) {
    AMXT_ASSIGN(found->master_port, number_of(*found, port, 1, 65535));
  }
  // MASTER_PORT may override the port of a launcher that has none; otherwise both or neither.
  const bool in_part = found->master_address.empty() != (found->master_port < 0);
  if (found->set && in_part && (found->set->is_rank_family() || found->master_port < 0)) {
    const bool no_port = found->master_port < 0;
    return contradiction(
        *found, fmt::format("{} is set and {} is unset", no_port ? address.name : port.name,
                            no_port ? port.name : address.name));
  }
  return {};
}

// Where the launcher has no address: loopback on one node, the first of its list of hosts on several.
Result<std::string> derive_host(const Found& found) {
  const LauncherSet& set = *found.set;
  if (found.local_world_size == found.world_size) return std::string("127.0.0.1");
  if (!set.hosts.value) {
    const std::string how =
        set.launcher->how_to_set_address != nullptr
            ? fmt::format(", for all ranks ({})", set.launcher->how_to_set_address)
            : "";
    return contradiction(
        found,
        fmt::format("{} tells no address to meet at and the ranks are on several nodes: set {} "
                    "and {} to where rank 0 is{}",
                    set.launcher->name, set.address.name, set.port.name, how));
  }
  auto hosts = expand_host_list(*set.hosts.value);
  if (!hosts) return contradiction(found, set.hosts.name + "=" + hosts.error().message());
  if (found.nodes >= 0 && hosts->size() != static_cast<size_t>(found.nodes)) {
    return contradiction(
        found, fmt::format("{}={} names {}, {} is {}", set.hosts.name, quote(*set.hosts.value),
                           counted(static_cast<int64_t>(hosts->size()), "host"), set.nodes.name,
                           found.nodes));
  }
  return hosts->front();
}

Status derive_master(Found* found, std::vector<std::string>* notes) {
  const LauncherSet& set = *found->set;
  const bool no_host = found->master_address.empty(), no_port = found->master_port <= 0;
  if (no_host) {
    AMXT_ASSIGN(found->master_address, derive_host(*found));
  }
  if (no_port) found->master_port = port_of_job(set.launcher->name, set.job);
  const bool listed = no_host && found->local_world_size != found->world_size;
  if (listed) {
    notes->push_back(
        fmt::format("{} gives no address: {} taken, the first host of {}; {} and {} override it",
                    set.launcher->name, quote(found->master_address), set.hosts.name,
                    set.address.name, set.port.name));
  }
  if (no_port) {
    const std::string where = listed ? "" : found->master_address + " ";
    notes->push_back(fmt::format(
        "{} gives no {}: {}port {} taken, from {}; {} overrides it", set.launcher->name,
        listed ? "port" : "address", where, found->master_port,
        set.job.empty()
            ? "its name, as it tells no job's id: two that start at once need a port each"
            : "the job's id " + quote(set.job),
        set.port.name));
  }
  return {};
}

Status check_ranks(const Found& found) {
  if (found.world_size == 0) {
    return contradiction(found, "a world size of 0 has no ranks");
  }
  if (found.rank >= found.world_size) {
    return contradiction(found, fmt::format("{} {} is outside a world of {} ranks (0 to {})",
                                            found.name("rank", &LauncherSet::rank), found.rank,
                                            found.world_size, found.world_size - 1));
  }
  return {};
}

Status check_nodes(const Found& found) {
  const std::string local = found.name("local_world_size", &LauncherSet::local_size);
  if (found.local_world_size > found.world_size) {
    return contradiction(
        found, fmt::format("{} {} is more than {} {}", local, found.local_world_size,
                           found.name("world_size", &LauncherSet::world_size), found.world_size));
  }
  if (found.nodes > 1 && found.local_world_size < 0) {
    return contradiction(
        found, fmt::format("{}={} and {} is unset: how many ranks are on this node is not told",
                           found.set->nodes.name, found.nodes, local));
  }
  const bool has_all = found.local_world_size < 0 || found.local_world_size == found.world_size;
  if (found.nodes == 1 && !has_all) {
    return contradiction(
        found, fmt::format("{}=1, and {} of {} ranks are on this node", found.set->nodes.name,
                           found.local_world_size, found.world_size));
  }
  return {};
}

Status check_limits(const Found& found) {
  if (found.local_world_size > kMaxLocalRanks) {
    return Error(Code::kLimit, fmt::format("{} ranks on one machine are more than the limit of {}",
                                           found.local_world_size, kMaxLocalRanks));
  }
  if (found.world_size > kMaxRanks) {
    return Error(Code::kLimit, fmt::format("{} ranks are more than the limit of {}",
                                           found.world_size, kMaxRanks));
  }
  return {};
}

// Of ranks that are counted through node by node, all nodes alike.
Status derive_local_rank(Found* found, std::vector<std::string>* notes) {
  const std::string name = found->name("local_rank", &LauncherSet::local_rank);
  const int size = found->local_world_size;
  if (found->world_size % size != 0) {
    return contradiction(
        *found, fmt::format("{} is unset, and {} ranks a node do not divide {} ranks", name, size,
                            found->world_size));
  }
  found->local_rank = found->rank % size;
  if (found->world_size == 1) return {};
  notes->push_back(
      fmt::format("{} is unset: {} taken, the rank {}", name, found->local_rank,
                  size == found->world_size
                      ? "on one machine"
                      : fmt::format("{} counted through nodes of {}", found->rank, size)));
  return {};
}

Status derive_local(Found* found, std::vector<std::string>* notes) {
  if (found->local_world_size < 0) {
    found->local_world_size = found->world_size;
    if (found->world_size > 1) {
      notes->push_back(fmt::format("{} is unset: {} taken, all ranks on this machine",
                                   found->name("local_world_size", &LauncherSet::local_size),
                                   found->world_size));
    }
  }
  if (found->local_rank < 0) AMXT_TRY(derive_local_rank(found, notes));
  if (found->local_rank >= found->local_world_size) {
    return contradiction(*found, fmt::format("{} {} is outside {} local ranks",
                                             found->name("local_rank", &LauncherSet::local_rank),
                                             found->local_rank, found->local_world_size));
  }
  return check_limits(*found);
}

// RANK with WORLD_SIZE comes first, even in part; else the innermost complete set, else one that lacks its local rank; else none.
const LauncherSet* innermost(const std::vector<LauncherSet>& sets) {
  using Fits = bool (*)(const LauncherSet&);
  const Fits preferences[] = {
      [](const LauncherSet& set) { return set.is_rank_family() && set.has_ranks(); },
      [](const LauncherSet& set) { return set.rank.name == "RANK"; },
      [](const LauncherSet& set) { return set.refusal.empty() && set.is_complete(); },
      [](const LauncherSet& set) { return set.refusal.empty() && set.has_ranks(); }};
  for (const Fits fits : preferences) {
    const auto set = std::find_if(sets.begin(), sets.end(), fits);
    if (set != sets.end()) return &*set;
  }
  return nullptr;
}

std::string why_taken(const LauncherSet& set) {
  if (set.is_rank_family()) return "RANK and WORLD_SIZE come before all others";
  return set.is_complete() ? "the innermost complete set"
                           : "the innermost set with ranks, none is complete";
}

// A line for every set that is there and not taken.
void list_others(const std::vector<LauncherSet>& sets, const LauncherSet* taken,
                 const std::string& first, std::vector<std::string>* notes) {
  for (const LauncherSet& set : sets) {
    if (&set == taken) continue;
    const std::string why = !set.refusal.empty() ? set.refusal
                            : !set.has_ranks()   ? "incomplete"
                                                 : first;
    notes->push_back(
        fmt::format("{} is there, but not taken: {} ({})", set.launcher->name, why, set.seen()));
  }
}

// Each pod of several would take itself for the whole job.
Status check_one_pod(const std::vector<LauncherSet>& sets) {
  for (const LauncherSet& set : sets) {
    if (set.rank.name != "PET_NODE_RANK" || set.refusal.empty()) continue;
    if (set.world_size.value.value_or("1") == "1") continue;
    return Error(Code::kInvalidArgument,
                 fmt::format("{}={} is a job of several pods, but {} ({})", set.world_size.name,
                             quote(*set.world_size.value), set.refusal, set.seen()));
  }
  return {};
}

// Half an address means that ranks were meant.
Status check_address_is_whole(const Environment& environment) {
  const auto address = environment("MASTER_ADDR"), port = environment("MASTER_PORT");
  if (address.has_value() == port.has_value()) return {};
  const auto text = [](const std::optional<std::string>& value) {
    return value ? "=" + quote(*value) : " unset";
  };
  return Error(Code::kInvalidArgument,
               fmt::format("{} is set and {} is unset (RANK unset, WORLD_SIZE unset, "
                           "MASTER_ADDR{}, MASTER_PORT{})",
                           address ? "MASTER_ADDR" : "MASTER_PORT",
                           address ? "MASTER_PORT" : "MASTER_ADDR", text(address), text(port)));
}

Result<LaunchInfo> alone(const Environment& environment, const std::vector<LauncherSet>& sets) {
  AMXT_TRY(check_one_pod(sets));
  AMXT_TRY(check_address_is_whole(environment));
  LaunchInfo info;
  info.source = "alone";
  info.reason = "no options, and no launcher's variables that count";
  list_others(sets, nullptr, "", &info.notes);
  if (!sets.empty()) info.notes.emplace_back("no launcher's ranks count: this process is alone");
  if (const auto address = environment("MASTER_ADDR")) {
    info.notes.push_back(fmt::format(
        "MASTER_ADDR={} without RANK and WORLD_SIZE: this process is alone", quote(*address)));
  }
  return info;
}

std::string node_hint(const Environment& environment, const std::optional<LauncherSet>& set) {
  if (const auto id = environment("AMXTRAIN_NODE_ID")) return *id;
  if (!set || !set->node.value) return "";
  return fmt::format("{}={}", set->node.name, *set->node.value);
}

}  // namespace

int port_of_job(const std::string& launcher, const std::string& job) {
  const std::string text = launcher + " " + job;
  return 61000 + static_cast<int>(XXH64(text.data(), text.size(), 0) % (65536 - 61000));
}

std::optional<std::string> crowding_warning(const LaunchInfo& launch, int cores) {
  constexpr int kFew = 4;  // fewer are somebody's wish, whatever the machine
  if (launch.local_world_size < kFew || cores <= 0) return std::nullopt;
  if (int64_t{launch.local_world_size} * 4 <= cores) return std::nullopt;
  return fmt::format(
      "{} ranks on a machine of {}: one for each NUMA domain trains faster (Kubeflow Trainer "
      "starts "
      "one for each CPU unless numProcPerNode is set)",
      launch.local_world_size, counted(cores, "core"));
}

Result<LaunchInfo> find_launch(const GroupOptions& options, const Environment& environment) {
  Found found;
  LaunchInfo info;
  info.interface = environment("AMXTRAIN_SOCKET_IFNAME").value_or("");
  info.node_is_named = environment("AMXTRAIN_NODE_ID").has_value();
  info.secret_file = environment("AMXTRAIN_SECRET_FILE").value_or("");
  const std::vector<LauncherSet> sets = launcher_sets(environment);
  const LauncherSet* taken = nullptr;
  if (options.rank >= 0 || options.world_size >= 0) {
    AMXT_TRY(read_options(options, &found));
    info.source = "options";
    info.reason = "explicit options come before all variables";
    list_others(sets, nullptr, "options come first", &info.notes);
  } else if ((taken = innermost(sets)) != nullptr) {
    AMXT_TRY(read_environment(environment, *taken, options, &found));
    info.source =
        fmt::format("environment ({}, {}, ...)", taken->rank.name, taken->world_size.name);
    info.launcher = taken->launcher->name;
    info.reason = why_taken(*taken);
    list_others(sets, taken, info.launcher + " comes first", &info.notes);
  } else if (options.local_rank >= 0 || options.local_world_size >= 0) {
    return Error(Code::kInvalidArgument,
                 fmt::format("a local rank or local size is given without rank and world_size ({})",
                             seen(options)));
  } else {
    AMXT_ASSIGN(info, alone(environment, sets));
    info.node_hint = node_hint(environment, std::nullopt);
    return info;
  }

  AMXT_TRY(check_ranks(found));
  AMXT_TRY(check_nodes(found));
  info.local_size_is_guess = found.local_world_size < 0;
  AMXT_TRY(derive_local(&found, &info.notes));
  info.rank = found.rank;
  info.world_size = found.world_size;
  info.local_rank = found.local_rank;
  info.local_world_size = found.local_world_size;
  info.node_hint = node_hint(environment, found.set);
  if (found.set) info.run_id = found.set->job;
  if (!found.set && info.world_size == 1) return info;

  AMXT_TRY(read_master(environment, options, &found));
  if (info.world_size == 1) return info;
  if (found.set && found.set->rank.name != "RANK") {
    AMXT_TRY(derive_master(&found, &info.notes));
  }
  if (!found.set && found.master_address.empty() && !info.spans_nodes()) {
    found.master_address = "127.0.0.1";
  }
  if (found.master_address.empty() || found.master_port <= 0) {
    std::vector<std::string> unset;
    if (found.master_address.empty())
      unset.push_back(found.name("master_address", &LauncherSet::address));
    if (found.master_port <= 0) unset.push_back(found.name("master_port", &LauncherSet::port));
    return contradiction(
        found, fmt::format("{} ranks need an address to meet at: {} {} unset", info.world_size,
                           fmt::join(unset, " and "), unset.size() == 1 ? "is" : "are"));
  }
  info.master_address = found.master_address;
  info.master_port = found.master_port;

  // torchrun's agent already listens, but only at the address that it gave its workers.
  const auto agent = environment("TORCHELASTIC_USE_AGENT_STORE");
  const bool agents_address = environment("MASTER_ADDR") == info.master_address &&
                              environment("MASTER_PORT") == std::to_string(info.master_port);
  info.agent_store = agent == "True" && agents_address;
  if (!found.set && info.agent_store) {
    info.run_id = environment("TORCHELASTIC_RUN_ID").value_or("");
  }
  return info;
}

}  // namespace amxt::comm
