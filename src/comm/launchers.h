// The launchers whose variables are understood: a table of names, innermost first, and what of it an environment holds.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace amxt::comm {

using Environment = std::function<std::optional<std::string>(const std::string& name)>;
Environment process_environment();

// Names of variables; nullptr where a launcher has none. "A|B": A, or B where A is unset.
struct Launcher {
  const char* name;
  const char* rank;
  const char* world_size;
  const char* local_rank = nullptr;  // without it and local_size: one rank a node
  const char* local_size = nullptr;
  const char* node = nullptr;  // this node's number
  const char* nodes = nullptr;
  const char* address = "MASTER_ADDR";
  const char* port = "MASTER_PORT";
  const char* hosts = nullptr;  // of the nodes, rank 0's first, as host_list.h reads them
  // How its users set MASTER_ADDR and MASTER_PORT for all ranks of a job of several nodes; nullptr where it does so by itself.
  const char* how_to_set_address = nullptr;
  const char* job[2] = {};  // what tells one job from another, joined
  // Why the variables do not count here, or nullptr when they do; without it they always do.
  const char* (*refusal)(const Environment& environment) = nullptr;
};

struct Variable {
  std::string name;  // empty: the launcher has none
  std::optional<std::string> value;
};

// One launcher's variables as they were found.
struct LauncherSet {
  const Launcher* launcher;
  Variable rank, world_size, local_rank, local_size, node, nodes, address, port, hosts;
  std::string job;      // may be empty
  std::string refusal;  // why the set does not count; empty: it does

  bool has_ranks() const { return rank.value && world_size.value; }
  // All that say where this rank is.
  bool is_complete() const;
  bool is_rank_family() const;
  // "RANK='0', WORLD_SIZE unset, ...".
  std::string seen() const;
  std::vector<Variable> variables() const;
};

// The sets of which at least one variable of ranks is there, innermost first.
std::vector<LauncherSet> launcher_sets(const Environment& environment);

// The tasks of node `node` in Slurm's list of tasks per node, such as "4(x2),3"; -1 when it cannot be read. `total` gets the sum.
int tasks_of_node(const std::string& list, int node, long long* total);

}  // namespace amxt::comm
