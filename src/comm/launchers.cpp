#include "comm/launchers.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "base/text.h"

namespace amxt::comm {
namespace {

constexpr const char* kWorldSize = "WORLD_SIZE";

// A shell of sbatch or salloc has the job's variables too. The ids from 0xfffffff0 on are no steps of srun's: the batch script, the shell
// of salloc, and others of Slurm's own.
const char* outside_a_step(const Environment& environment) {
  const auto step = environment("SLURM_STEP_ID");
  if (!step) return "outside a step (SLURM_STEP_ID is unset)";
  uint32_t id = 0;
  const auto [end, error] = std::from_chars(step->data(), step->data() + step->size(), id);
  const bool is_number = error == std::errc() && end == step->data() + step->size();
  return is_number && id < 0xfffffff0 ? nullptr
                                      : "outside a step (SLURM_STEP_ID is not one of srun's)";
}

// PET_* are the options of torchrun: ranks only where a node has one.
const char* several_a_pod(const Environment& environment) {
  return environment("PET_NPROC_PER_NODE") == "1"
             ? nullptr
             : "the variables of a node, not of a rank (PET_NPROC_PER_NODE is not 1): torchrun "
               "makes ranks of them";
}

const char* never(const Environment&) { return "ranks of JAX are not read"; }

constexpr const char* kGenv = "mpiexec -genv MASTER_ADDR HOST -genv MASTER_PORT PORT";

constexpr Launcher kLaunchers[] = {
    {.name = "RANK family",
     .rank = "RANK",
     .world_size = kWorldSize,
     .local_rank = "LOCAL_RANK",
     .local_size = "LOCAL_WORLD_SIZE",
     .node = "GROUP_RANK",
     .nodes = "GROUP_WORLD_SIZE",
     .job = {"TORCHELASTIC_RUN_ID"}},
    {.name = "Indexed Job",
     .rank = "JOB_COMPLETION_INDEX",
     .world_size = kWorldSize,
     .how_to_set_address = "in the pod template's env, to JOB-0.SERVICE of a headless service"},
    {.name = "Open MPI",
     .rank = "OMPI_COMM_WORLD_RANK",
     .world_size = "OMPI_COMM_WORLD_SIZE",
     .local_rank = "OMPI_COMM_WORLD_LOCAL_RANK",
     .local_size = "OMPI_COMM_WORLD_LOCAL_SIZE",
     .how_to_set_address = "mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=PORT",
     .job = {"PMIX_NAMESPACE"}},
    {.name = "PMI",
     .rank = "PMI_RANK",
     .world_size = "PMI_SIZE",
     .local_rank = "MPI_LOCALRANKID",
     .local_size = "MPI_LOCALNRANKS",
     .how_to_set_address = kGenv,
     .job = {"PMI_JOBID"}},
    {.name = "MVAPICH2",
     .rank = "MV2_COMM_WORLD_RANK",
     .world_size = "MV2_COMM_WORLD_SIZE",
     .local_rank = "MV2_COMM_WORLD_LOCAL_RANK",
     .local_size = "MV2_COMM_WORLD_LOCAL_SIZE",
     .how_to_set_address = kGenv},
    {.name = "Slurm",
     .rank = "SLURM_PROCID",
     .world_size = "SLURM_STEP_NUM_TASKS|SLURM_NTASKS",
     .local_rank = "SLURM_LOCALID",
     .local_size = "SLURM_STEP_TASKS_PER_NODE",
     .node = "SLURM_NODEID",
     .nodes = "SLURM_STEP_NUM_NODES",
     .hosts = "SLURM_STEP_NODELIST",
     .how_to_set_address = "export MASTER_ADDR=HOST MASTER_PORT=PORT before srun",
     .job = {"SLURM_JOB_ID", "SLURM_STEP_ID"},
     .refusal = outside_a_step},
    {.name = "Kubeflow Trainer",
     .rank = "PET_NODE_RANK",
     .world_size = "PET_NNODES",
     .address = "PET_MASTER_ADDR",
     .port = "PET_MASTER_PORT",
     .refusal = several_a_pod},
    {.name = "JAX", .rank = "JAX_PROCESS_ID", .world_size = "JAX_NUM_PROCESSES", .refusal = never},
};

Variable read(const Environment& environment, const char* names) {
  if (names == nullptr) return {};
  const std::string_view all = names;
  const size_t bar = all.find('|');
  const std::string first(all.substr(0, bar));
  if (const auto value = environment(first)) return {first, value};
  if (bar == std::string_view::npos) return {first, std::nullopt};
  const std::string second(all.substr(bar + 1));
  const auto value = environment(second);
  return {value ? second : first, value};
}

LauncherSet read(const Environment& environment, const Launcher& launcher) {
  LauncherSet set;
  set.launcher = &launcher;
  set.rank = read(environment, launcher.rank);
  set.world_size = read(environment, launcher.world_size);
  set.local_rank = read(environment, launcher.local_rank);
  set.local_size = read(environment, launcher.local_size);
  set.node = read(environment, launcher.node);
  set.nodes = read(environment, launcher.nodes);
  set.address = read(environment, launcher.address);
  set.port = read(environment, launcher.port);
  set.hosts = read(environment, launcher.hosts);
  for (const char* name : launcher.job) {
    const auto value = read(environment, name).value;
    if (value) set.job += (set.job.empty() ? "" : ".") + *value;
  }
  const char* refusal = launcher.refusal == nullptr ? nullptr : launcher.refusal(environment);
  if (refusal != nullptr) set.refusal = refusal;
  return set;
}

// WORLD_SIZE alone is of RANK's set, whatever else names it.
bool is_there(const LauncherSet& set) {
  const bool own_size = set.launcher == kLaunchers || set.launcher->world_size != kWorldSize;
  return set.rank.value || (own_size && set.world_size.value) || set.local_rank.value ||
         set.local_size.value;
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  };
}

bool LauncherSet::is_complete() const {
  const auto there = [](const Variable& variable) {
    return variable.name.empty() || variable.value.has_value();
  };
  return has_ranks() && there(local_rank) && there(local_size);
}

bool LauncherSet::is_rank_family() const { return launcher->world_size == kWorldSize; }

std::vector<Variable> LauncherSet::variables() const {
  std::vector<Variable> named;
  for (const Variable& variable : {rank, world_size, local_rank, local_size, address, port}) {
    if (!variable.name.empty()) named.push_back(variable);
  }
  // Few launchers set these, and nobody misses them.
  for (const Variable& variable : {node, nodes, hosts}) {
    if (variable.value) named.push_back(variable);
  }
  return named;
}

std::string LauncherSet::seen() const {
  std::string line;
  for (const Variable& variable : variables()) {
    line += fmt::format("{}{}{}", line.empty() ? "" : ", ", variable.name,
                        variable.value ? "=" + quote(*variable.value) : " unset");
  }
  return line;
}

std::vector<LauncherSet> launcher_sets(const Environment& environment) {
  std::vector<LauncherSet> sets;
  for (const Launcher& launcher : kLaunchers) {
    LauncherSet set = read(environment, launcher);
    if (is_there(set)) sets.push_back(std::move(set));
  }
  return sets;
}

int tasks_of_node(const std::string& list, int node, long long* total) {
  const char* at = list.data();
  const char* const end = at + list.size();
  const auto number = [&](int* value) {
    const auto [next, error] = std::from_chars(at, end, *value);
    at = next;
    return error == std::errc() && *value > 0;
  };
  long long nodes = 0;
  int found = -1;
  *total = 0;
  while (true) {
    int tasks = 0, times = 1;
    if (!number(&tasks)) return -1;
    if (std::string_view(at, end).starts_with("(x")) {
      at += 2;
      if (!number(&times) || at == end || *at++ != ')') return -1;
    }
    if (node >= nodes && node < nodes + times) found = tasks;
    nodes += times;
    *total += static_cast<long long>(tasks) * times;
    if (*total > INT32_MAX) return -1;
    if (at == end) return found;
    if (*at++ != ',') return -1;
  }
}

}  // namespace amxt::comm
