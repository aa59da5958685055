#include "comm/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

namespace amxt::comm {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

using Variables = std::map<std::string, std::string>;

Environment environment(Variables variables) {
  return [variables](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  };
}

Variables torchrun(int rank, int world) {
  const std::string r = std::to_string(rank), w = std::to_string(world);
  return {{"RANK", r},
          {"WORLD_SIZE", w},
          {"LOCAL_RANK", r},
          {"LOCAL_WORLD_SIZE", w},
          {"GROUP_RANK", "0"},
          {"GROUP_WORLD_SIZE", "1"},
          {"MASTER_ADDR", "localhost"},
          {"MASTER_PORT", "29500"},
          {"TORCHELASTIC_USE_AGENT_STORE", "True"},
          {"TORCHELASTIC_RUN_ID", "none"},
          {"TORCHELASTIC_RESTART_COUNT", "0"}};
}

LaunchInfo found(const GroupOptions& options, const Variables& variables) {
  auto info = find_launch(options, environment(variables));
  EXPECT_TRUE(info) << info.error().message();
  return info ? *info : LaunchInfo{};
}

struct Refusal {
  Code code = Code::kOk;
  std::string message;
};

Refusal refused(const GroupOptions& options, const Variables& variables) {
  auto info = find_launch(options, environment(variables));
  EXPECT_FALSE(info) << "accepted as rank " << info->rank << " of " << info->world_size;
  if (info) return {};
  EXPECT_EQ(info.error().message().find('\n'), std::string::npos);
  return {info.error().code(), info.error().message()};
}

Refusal refused(const Variables& variables) { return refused({}, variables); }

TEST(Launch, WithoutOptionsAndVariablesTheProcessIsAlone) {
  const LaunchInfo info = found({}, {});
  EXPECT_EQ(info.rank, 0);
  EXPECT_EQ(info.world_size, 1);
  EXPECT_EQ(info.local_rank, 0);
  EXPECT_EQ(info.local_world_size, 1);
  EXPECT_EQ(info.source, "alone");
  EXPECT_THAT(info.notes, IsEmpty());
}

TEST(Launch, AMasterAddressWithoutRanksIsNoLaunch) {
  EXPECT_EQ(found({}, {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}}).source, "alone");
}

TEST(Launch, HalfAMasterAddressWithoutRanksIsRefused) {
  EXPECT_THAT(refused({{"MASTER_ADDR", "10.0.0.1"}}).message,
              AllOf(HasSubstr("MASTER_ADDR is set and MASTER_PORT is unset"),
                    HasSubstr("RANK unset"), HasSubstr("MASTER_ADDR='10.0.0.1'")));
  EXPECT_THAT(refused({{"MASTER_PORT", "29500"}}).message,
              AllOf(HasSubstr("MASTER_PORT is set and MASTER_ADDR is unset"),
                    HasSubstr("MASTER_PORT='29500'")));
}

TEST(Launch, TorchrunsVariablesAreTaken) {
  const LaunchInfo info = found({}, torchrun(2, 4));
  EXPECT_EQ(info.rank, 2);
  EXPECT_EQ(info.world_size, 4);
  EXPECT_EQ(info.local_rank, 2);
  EXPECT_EQ(info.local_world_size, 4);
  EXPECT_EQ(info.master_address, "localhost");
  EXPECT_EQ(info.master_port, 29500);
  EXPECT_TRUE(info.agent_store);
  EXPECT_EQ(info.run_id, "none");
  EXPECT_EQ(info.source, "environment (RANK, WORLD_SIZE, ...)");
  EXPECT_THAT(info.notes, IsEmpty());
}

TEST(Launch, WithoutTheAgentsStoreRankZeroServes) {
  auto variables = torchrun(0, 2);
  variables["TORCHELASTIC_USE_AGENT_STORE"] = "False";
  EXPECT_FALSE(found({}, variables).agent_store);
  variables.erase("TORCHELASTIC_USE_AGENT_STORE");
  EXPECT_FALSE(found({}, variables).agent_store);
}

TEST(Launch, TheAgentServesAtItsOwnAddressOnly) {
  GroupOptions options;
  options.master_port = 29501;
  const LaunchInfo info = found(options, torchrun(0, 2));
  EXPECT_EQ(info.master_port, 29501);
  EXPECT_FALSE(info.agent_store);
}

TEST(Launch, AWorldOfOneNeedsNoAddress) {
  const LaunchInfo info = found({}, {{"RANK", "0"}, {"WORLD_SIZE", "1"}});
  EXPECT_EQ(info.world_size, 1);
  EXPECT_THAT(info.notes, IsEmpty());
}

TEST(Launch, APartialSetShowsWhatWasSeen) {
  const Refusal only_rank = refused({{"RANK", "1"}});
  EXPECT_EQ(only_rank.code, Code::kInvalidArgument);
  EXPECT_THAT(only_rank.message,
              AllOf(HasSubstr("WORLD_SIZE is unset"), HasSubstr("RANK='1'"),
                    HasSubstr("LOCAL_RANK unset"), HasSubstr("MASTER_ADDR unset")));
  EXPECT_THAT(refused({{"WORLD_SIZE", "2"}}).message,
              AllOf(HasSubstr("RANK is unset"), HasSubstr("WORLD_SIZE='2'")));
  EXPECT_THAT(refused({{"LOCAL_RANK", "1"}}).message,
              AllOf(HasSubstr("RANK is unset"), HasSubstr("LOCAL_RANK='1'")));
  EXPECT_THAT(refused({{"LOCAL_WORLD_SIZE", "2"}}).message, HasSubstr("incomplete"));
}

TEST(Launch, SeveralRanksNeedAnAddressAndAPort) {
  auto variables = torchrun(0, 2);
  variables.erase("MASTER_ADDR");
  EXPECT_THAT(refused(variables).message, HasSubstr("MASTER_ADDR is unset"));
  variables = torchrun(0, 2);
  variables.erase("MASTER_PORT");
  EXPECT_THAT(refused(variables).message, HasSubstr("MASTER_PORT is unset"));
  variables.erase("MASTER_ADDR");
  EXPECT_THAT(refused(variables).message, HasSubstr("MASTER_ADDR and MASTER_PORT are unset"));
}

TEST(Launch, ARankOutsideTheWorldIsRefused) {
  auto variables = torchrun(0, 4);
  variables["RANK"] = "4";
  EXPECT_THAT(refused(variables).message,
              HasSubstr("RANK 4 is outside a world of 4 ranks (0 to 3)"));
}

TEST(Launch, NegativeAndUnreadableNumbersAreRefusedByName) {
  const struct {
    const char* name;
    const char* value;
    const char* message;
  } cases[] = {
      {"RANK", "-1", "RANK='-1' is outside 0"},
      {"RANK", "two", "RANK='two' is not a number"},
      {"RANK", "", "RANK is empty, which is no number"},
      {"RANK", "1 ", "RANK='1 ' is not a number"},
      {"RANK", "1.0", "RANK='1.0' is not a number"},
      {"RANK", "99999999999", "RANK='99999999999' is outside"},
      {"WORLD_SIZE", "0", "WORLD_SIZE='0' is outside 1"},
      {"WORLD_SIZE", "-2", "WORLD_SIZE='-2' is outside 1"},
      {"LOCAL_RANK", "x\n", "LOCAL_RANK='x\\x0a' is not a number"},
      {"LOCAL_WORLD_SIZE", "0", "LOCAL_WORLD_SIZE='0' is outside 1"},
      {"MASTER_PORT", "0", "MASTER_PORT='0' is outside 1 to 65535"},
      {"MASTER_PORT", "65536", "MASTER_PORT='65536' is outside 1 to 65535"},
      {"MASTER_PORT", "http", "MASTER_PORT='http' is not a number"},
  };
  for (const auto& [name, value, message] : cases) {
    auto variables = torchrun(1, 2);
    variables[name] = value;
    EXPECT_THAT(refused(variables).message, HasSubstr(message)) << name << "=" << value;
    EXPECT_THAT(refused(variables).message, HasSubstr("MASTER_ADDR=")) << "what was seen";
  }
}

TEST(Launch, AnIpv6AddressInBracketsIsRefusedWithAHint) {
  auto variables = torchrun(1, 2);
  variables["MASTER_ADDR"] = "[::1]";
  EXPECT_THAT(refused(variables).message,
              HasSubstr("MASTER_ADDR '[::1]': an IPv6 address is written without brackets"));
}

TEST(Launch, AMissingLocalRankIsDerivedWithANote) {
  auto variables = torchrun(1, 2);
  variables.erase("LOCAL_RANK");
  const LaunchInfo info = found({}, variables);
  EXPECT_EQ(info.local_rank, 1);
  ASSERT_THAT(info.notes, SizeIs(1));
  EXPECT_THAT(info.notes[0], HasSubstr("LOCAL_RANK is unset: 1 taken"));
}

TEST(Launch, AMissingLocalSizeMeansOneMachine) {
  auto variables = torchrun(1, 3);
  variables.erase("LOCAL_RANK");
  variables.erase("LOCAL_WORLD_SIZE");
  const LaunchInfo info = found({}, variables);
  EXPECT_EQ(info.local_rank, 1);
  EXPECT_EQ(info.local_world_size, 3);
  EXPECT_TRUE(info.local_size_is_guess);
  EXPECT_FALSE(found({}, torchrun(1, 3)).local_size_is_guess);
  EXPECT_THAT(info.notes, SizeIs(2));
}

TEST(Launch, ContradictionsAreRefused) {
  auto variables = torchrun(1, 2);
  variables["LOCAL_WORLD_SIZE"] = "4";
  EXPECT_THAT(refused(variables).message,
              HasSubstr("LOCAL_WORLD_SIZE 4 is more than WORLD_SIZE 2"));
  variables = torchrun(1, 2);
  variables["LOCAL_RANK"] = "2";
  EXPECT_THAT(refused(variables).message, HasSubstr("LOCAL_RANK 2 is outside 2 local ranks"));
}

// Recorded: torchrun --nnodes 2 --nproc-per-node 2 of torch 2.15, the second agent's.
Variables torchrun_of_two_nodes(int rank) {
  Variables variables = torchrun(rank, 4);
  variables["LOCAL_RANK"] = std::to_string(rank % 2);
  variables["LOCAL_WORLD_SIZE"] = "2";
  variables["GROUP_RANK"] = std::to_string(rank / 2);
  variables["GROUP_WORLD_SIZE"] = "2";
  variables["MASTER_ADDR"] = "node-0";
  return variables;
}

TEST(Launch, SeveralNodesOfTorchrun) {
  const LaunchInfo info = found({}, torchrun_of_two_nodes(3));
  EXPECT_EQ(info.rank, 3);
  EXPECT_EQ(info.world_size, 4);
  EXPECT_EQ(info.local_rank, 1);
  EXPECT_EQ(info.local_world_size, 2);
  EXPECT_EQ(info.node_hint, "GROUP_RANK=1");
  EXPECT_EQ(info.master_address, "node-0");
  EXPECT_TRUE(info.agent_store);
  EXPECT_TRUE(info.spans_nodes());
  EXPECT_FALSE(found({}, torchrun(1, 2)).spans_nodes());
  EXPECT_THAT(info.notes, IsEmpty());
}

TEST(Launch, ALocalRankOnSeveralNodesIsCountedNodeByNode) {
  auto variables = torchrun_of_two_nodes(3);
  variables.erase("LOCAL_RANK");
  const LaunchInfo info = found({}, variables);
  EXPECT_EQ(info.local_rank, 1);
  EXPECT_THAT(info.notes,
              ElementsAre(HasSubstr("LOCAL_RANK is unset: 1 taken, the rank 3 counted")));
  variables["WORLD_SIZE"] = "5";
  EXPECT_THAT(refused(variables).message,
              HasSubstr("LOCAL_RANK is unset, and 2 ranks a node do not divide 5 ranks"));
}

TEST(Launch, NodesThatContradictTheirRanksAreRefused) {
  auto variables = torchrun_of_two_nodes(3);
  variables.erase("LOCAL_WORLD_SIZE");
  EXPECT_THAT(refused(variables).message,
              AllOf(HasSubstr("GROUP_WORLD_SIZE=2 and LOCAL_WORLD_SIZE is unset"),
                    HasSubstr("MASTER_ADDR='node-0'")));
  variables = torchrun_of_two_nodes(3);
  variables["GROUP_WORLD_SIZE"] = "1";
  EXPECT_THAT(refused(variables).message,
              HasSubstr("GROUP_WORLD_SIZE=1, and 2 of 4 ranks are on this node"));
}

TEST(Launch, MoreRanksThanTheLimitAreRefused) {
  auto variables = torchrun_of_two_nodes(3);
  variables.erase("GROUP_WORLD_SIZE");
  variables["WORLD_SIZE"] = "1024";
  EXPECT_EQ(found({}, variables).world_size, 1024);
  variables["WORLD_SIZE"] = "1026";
  const Refusal refusal = refused(variables);
  EXPECT_EQ(refusal.code, Code::kLimit);
  EXPECT_THAT(refusal.message, HasSubstr("1026 ranks are more than the limit of 1024"));
}

TEST(Launch, OptionsOfSeveralNodesNeedAnAddress) {
  GroupOptions options;
  options.rank = 2;
  options.world_size = 4;
  options.local_world_size = 2;
  options.master_port = 4000;
  EXPECT_THAT(refused(options, {}).message,
              HasSubstr("4 ranks need an address to meet at: master_address is unset"));
  options.master_address = "node-0";
  const LaunchInfo info = found(options, {});
  EXPECT_EQ(info.local_rank, 0);
  EXPECT_TRUE(info.spans_nodes());
}

TEST(Launch, MoreLocalRanksThanTheLimitAreRefused) {
  const Refusal refusal = refused(torchrun(0, 65));
  EXPECT_EQ(refusal.code, Code::kLimit);
  EXPECT_THAT(refusal.message, AllOf(HasSubstr("65"), HasSubstr("64")));
}

TEST(Launch, ExplicitOptionsWin) {
  GroupOptions options;
  options.rank = 1;
  options.world_size = 3;
  options.master_address = "127.0.0.9";
  options.master_port = 4000;
  const LaunchInfo info = found(options, torchrun(0, 2));
  EXPECT_EQ(info.rank, 1);
  EXPECT_EQ(info.world_size, 3);
  EXPECT_EQ(info.local_rank, 1);
  EXPECT_EQ(info.local_world_size, 3);
  EXPECT_EQ(info.master_address, "127.0.0.9");
  EXPECT_EQ(info.master_port, 4000);
  EXPECT_FALSE(info.agent_store);
  EXPECT_EQ(info.source, "options");
}

TEST(Launch, OptionsMayForceAWorldOfOneUnderALauncher) {
  GroupOptions options;
  options.world_size = 1;
  EXPECT_EQ(found(options, torchrun(1, 2)).world_size, 1);
}

TEST(Launch, OptionsTakeAnAddressThatTheyLackFromTheEnvironment) {
  GroupOptions options;
  options.rank = 0;
  options.world_size = 2;
  const LaunchInfo info = found(options, torchrun(1, 2));
  EXPECT_EQ(info.master_address, "localhost");
  EXPECT_EQ(info.master_port, 29500);
  EXPECT_TRUE(info.agent_store);
}

TEST(Launch, OptionsWithoutAnAddressMeetOnLoopbackAndNeedAPort) {
  GroupOptions options;
  options.rank = 0;
  options.world_size = 2;
  EXPECT_THAT(refused(options, {}).message, HasSubstr("master_port is unset"));
  options.master_port = 4000;
  EXPECT_EQ(found(options, {}).master_address, "127.0.0.1");
  options.master_port = 70000;
  EXPECT_THAT(refused(options, {}).message, HasSubstr("70000"));
}

TEST(Launch, IncompleteOptionsShowWhatWasSeen) {
  GroupOptions options;
  options.rank = 1;
  EXPECT_THAT(refused(options, {}).message,
              AllOf(HasSubstr("without world_size"), HasSubstr("rank 1, world_size unset")));
  options = {};
  options.world_size = 2;
  EXPECT_THAT(refused(options, {}).message, HasSubstr("without rank"));
  options = {};
  options.local_rank = 1;
  EXPECT_THAT(refused(options, {}).message, HasSubstr("without rank and world_size"));
  options = {};
  options.rank = 2;
  options.world_size = 2;
  EXPECT_THAT(refused(options, {}).message, HasSubstr("rank 2 is outside a world of 2 ranks"));
  options.world_size = 0;
  EXPECT_THAT(refused(options, {}).message, HasSubstr("world size of 0"));
}

TEST(Launch, LocalOptionsCompleteTheEnvironment) {
  GroupOptions options;
  options.local_rank = 0;
  const LaunchInfo info = found(options, torchrun(1, 2));
  EXPECT_EQ(info.rank, 1);
  EXPECT_EQ(info.local_rank, 0);
}

TEST(Launch, RanksThatDoNotCountAreNamed) {
  const LaunchInfo info = found({}, {{"OMPI_COMM_WORLD_SIZE", "4"}, {"JAX_NUM_PROCESSES", "2"}});
  EXPECT_EQ(info.world_size, 1);
  EXPECT_EQ(info.source, "alone");
  ASSERT_THAT(info.notes, SizeIs(3));
  EXPECT_THAT(info.notes[0], AllOf(HasSubstr("Open MPI is there, but not taken: incomplete"),
                                   HasSubstr("OMPI_COMM_WORLD_RANK unset"),
                                   HasSubstr("OMPI_COMM_WORLD_SIZE='4'")));
  EXPECT_THAT(info.notes[1], HasSubstr("JAX"));
  EXPECT_THAT(info.notes[2], HasSubstr("alone"));
}

// Recorded: mpirun -n 2 of Open MPI 4.1.4.
Variables open_mpi(int rank) {
  const std::string r = std::to_string(rank);
  return {{"OMPI_COMM_WORLD_RANK", r},
          {"OMPI_COMM_WORLD_SIZE", "2"},
          {"OMPI_COMM_WORLD_LOCAL_RANK", r},
          {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
          {"OMPI_COMM_WORLD_NODE_RANK", r},
          {"OMPI_MCA_ess_base_jobid", "1651638273"},
          {"PMIX_RANK", r},
          {"PMIX_NAMESPACE", "1651638273"}};
}

// Recorded: mpirun -n 2 of MPICH 4.0.2.
Variables hydra(int rank) {
  const std::string r = std::to_string(rank);
  return {{"PMI_RANK", r},          {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", r},
          {"MPI_LOCALNRANKS", "2"}, {"PMI_FD", "6"},   {"HYDI_CONTROL_FD", "7"}};
}

// What sbatch --ntasks 8 gives its script.
Variables slurm_job() {
  return {{"SLURM_JOB_ID", "4711"},       {"SLURM_NTASKS", "8"}, {"SLURM_NPROCS", "8"},
          {"SLURM_TASKS_PER_NODE", "8"},  {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"},
          {"SLURM_JOB_NUM_NODES", "1"},   {"SLURM_NODEID", "0"}, {"SLURM_NNODES", "1"},
          {"SLURM_JOB_NODELIST", "n[01]"}};
}

// What srun --ntasks 4 gives a task inside of it.
Variables slurm_step(int rank) {
  Variables variables = slurm_job();
  variables["SLURM_STEP_ID"] = "3";
  variables["SLURM_STEP_NUM_TASKS"] = "4";
  variables["SLURM_NTASKS"] = "4";
  variables["SLURM_STEP_TASKS_PER_NODE"] = "4";
  variables["SLURM_STEP_NUM_NODES"] = "1";
  variables["SLURM_STEP_NODELIST"] = "n01";
  variables["SLURM_PROCID"] = variables["SLURM_LOCALID"] = std::to_string(rank);
  return variables;
}

Variables operator+(Variables left, const Variables& right) {
  for (const auto& [name, value] : right) left[name] = value;
  return left;
}

TEST(Launch, EveryLauncherTellsItsRanks) {
  const Variables pytorch_job = {{"RANK", "0"},
                                 {"WORLD_SIZE", "1"},
                                 {"MASTER_ADDR", "job-master-0"},
                                 {"MASTER_PORT", "23456"},
                                 {"KUBERNETES_SERVICE_HOST", "10.0.0.1"}};
  const Variables train_job = {
      {"PET_NNODES", "1"},          {"PET_NPROC_PER_NODE", "1"},
      {"PET_NODE_RANK", "0"},       {"PET_MASTER_ADDR", "job-node-0-0.job"},
      {"PET_MASTER_PORT", "29500"}, {"JOB_COMPLETION_INDEX", "0"}};
  const Variables indexed_job = {{"JOB_COMPLETION_INDEX", "0"}, {"WORLD_SIZE", "1"}};
  const Variables mvapich = {{"MV2_COMM_WORLD_RANK", "1"},
                             {"MV2_COMM_WORLD_SIZE", "2"},
                             {"MV2_COMM_WORLD_LOCAL_RANK", "1"},
                             {"MV2_COMM_WORLD_LOCAL_SIZE", "2"},
                             {"PMI_RANK", "1"},
                             {"PMI_SIZE", "2"}};
  auto rendezvous = torchrun(1, 2);
  rendezvous["TORCHELASTIC_RUN_ID"] = "run-1";
  const struct {
    Variables variables;
    std::string launcher;
    int rank, world_size, local_rank, local_size;
    std::string run_id;
  } rows[] = {
      {torchrun(1, 2), "RANK family", 1, 2, 1, 2, "none"},
      {rendezvous, "RANK family", 1, 2, 1, 2, "run-1"},
      {torchrun(1, 2) + train_job, "RANK family", 1, 2, 1, 2, "none"},
      {pytorch_job, "RANK family", 0, 1, 0, 1, ""},
      {indexed_job, "Indexed Job", 0, 1, 0, 1, ""},
      {indexed_job + torchrun(1, 2), "RANK family", 1, 2, 1, 2, "none"},
      {train_job, "Kubeflow Trainer", 0, 1, 0, 1, ""},
      {open_mpi(1), "Open MPI", 1, 2, 1, 2, "1651638273"},
      {hydra(1), "PMI", 1, 2, 1, 2, ""},
      {mvapich, "MVAPICH2", 1, 2, 1, 2, ""},
      {slurm_step(3), "Slurm", 3, 4, 3, 4, "4711.3"},
      {slurm_step(0) + torchrun(1, 2), "RANK family", 1, 2, 1, 2, "none"},
      {slurm_step(0) + open_mpi(1), "Open MPI", 1, 2, 1, 2, "1651638273"},
      {slurm_step(0) + hydra(1), "PMI", 1, 2, 1, 2, ""},
      {hydra(0) + open_mpi(1), "Open MPI", 1, 2, 1, 2, "1651638273"},
  };
  for (const auto& row : rows) {
    const LaunchInfo info = found({}, row.variables);
    EXPECT_EQ(info.launcher, row.launcher);
    EXPECT_EQ(info.rank, row.rank) << row.launcher;
    EXPECT_EQ(info.world_size, row.world_size) << row.launcher;
    EXPECT_EQ(info.local_rank, row.local_rank) << row.launcher;
    EXPECT_EQ(info.local_world_size, row.local_size) << row.launcher;
    EXPECT_EQ(info.run_id, row.run_id) << row.launcher;
    EXPECT_NE(info.reason, "") << row.launcher;
  }
}

TEST(Launch, ACompleteSetComesBeforeOneWithoutLocalRanks) {
  // srun --mpi=pmi2 sets ranks of PMI, but only Slurm's own variables tell the node's.
  const Variables pmi2 = {{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"PMI_JOBID", "4711.3"}};
  EXPECT_EQ(found({}, slurm_step(3) + pmi2).launcher, "Slurm");
  const LaunchInfo info = found({}, pmi2);
  EXPECT_EQ(info.launcher, "PMI");
  EXPECT_EQ(info.local_rank, 3);
  EXPECT_THAT(info.notes, Contains(HasSubstr("MPI_LOCALRANKID is unset: 3 taken")));
}

TEST(Launch, OtherSetsAreListedAndNoError) {
  const LaunchInfo info = found({}, slurm_step(0) + torchrun(1, 2));
  ASSERT_THAT(info.notes, SizeIs(1));
  EXPECT_THAT(info.notes[0], AllOf(HasSubstr("Slurm is there, but not taken: RANK family comes"),
                                   HasSubstr("SLURM_STEP_NUM_TASKS='4'")));
  GroupOptions options;
  options.rank = 0;
  options.world_size = 1;
  EXPECT_THAT(found(options, open_mpi(1)).notes,
              Contains(HasSubstr("Open MPI is there, but not taken: options come first")));
}

TEST(Launch, AShellOfSlurmIsOneProcess) {
  const Variables salloc = {{"SLURM_JOB_ID", "4711"}, {"SLURM_NTASKS", "4"}};
  const Variables interactive = slurm_job() + Variables{{"SLURM_STEP_ID", "4294967290"}};
  const Variables script = slurm_job() + Variables{{"SLURM_STEP_ID", "4294967291"}};
  for (const Variables& shell : {slurm_job(), salloc, interactive, script}) {
    const LaunchInfo info = found({}, shell);
    EXPECT_EQ(info.source, "alone");
    EXPECT_EQ(info.world_size, 1);
    EXPECT_THAT(info.notes, Contains(HasSubstr("outside a step")));
  }
}

TEST(Launch, ANodesOptionsOfTorchrunAreNoRank) {
  const LaunchInfo info =
      found({}, {{"PET_NNODES", "1"}, {"PET_NPROC_PER_NODE", "4"}, {"PET_NODE_RANK", "0"}});
  EXPECT_EQ(info.source, "alone");
  EXPECT_THAT(info.notes, Contains(HasSubstr("torchrun makes ranks of them")));
}

TEST(Launch, APodOfSeveralThatTorchrunDoesNotStartIsRefused) {
  Variables pod = {{"PET_NNODES", "2"}, {"PET_NPROC_PER_NODE", "4"}, {"PET_NODE_RANK", "0"}};
  EXPECT_THAT(refused(pod).message,
              AllOf(HasSubstr("PET_NNODES='2' is a job of several pods"),
                    HasSubstr("PET_NPROC_PER_NODE is not 1"), HasSubstr("torchrun")));
  pod["PET_NPROC_PER_NODE"] = "auto";
  EXPECT_THAT(refused(pod).message, HasSubstr("PET_NNODES='2'"));
  EXPECT_EQ(found({}, pod + torchrun(0, 2)).launcher, "RANK family");
  EXPECT_EQ(found({}, {{"PET_NNODES", "2"}, {"PET_NPROC_PER_NODE", "1"}}).source, "alone");
}

TEST(Launch, AJobOnOneNodeMeetsOnLoopbackAtThePortOfItsId) {
  const LaunchInfo info = found({}, open_mpi(1));
  EXPECT_EQ(info.master_address, "127.0.0.1");
  EXPECT_EQ(info.master_port, port_of_job("Open MPI", "1651638273"));
  EXPECT_EQ(info.master_port, found({}, open_mpi(0)).master_port);
  EXPECT_THAT(info.notes, Contains(AllOf(HasSubstr("127.0.0.1"), HasSubstr("'1651638273'"),
                                         HasSubstr("MASTER_PORT overrides it"))));
  EXPECT_FALSE(info.agent_store);
  EXPECT_EQ(found({}, slurm_step(1)).master_port, port_of_job("Slurm", "4711.3"));
  EXPECT_THAT(found({}, hydra(1)).notes, Contains(HasSubstr("tells no job's id")));
}

TEST(Launch, ThePortOfAJobNeverChangesAndIsADynamicOne) {
  EXPECT_EQ(port_of_job("Slurm", "4711.3"), 65177);
  EXPECT_NE(port_of_job("Slurm", "4711.3"), port_of_job("Slurm", "4711.4"));
  for (int job = 0; job < 1000; ++job) {
    const int port = port_of_job("Slurm", std::to_string(job));
    EXPECT_GE(port, 61000);
    EXPECT_LE(port, 65535);
  }
}

TEST(Launch, AnAddressThatIsGivenOverridesTheDerivedOne) {
  const LaunchInfo port = found({}, open_mpi(1) + Variables{{"MASTER_PORT", "4000"}});
  EXPECT_EQ(port.master_address, "127.0.0.1");
  EXPECT_EQ(port.master_port, 4000);
  EXPECT_THAT(port.notes, IsEmpty());
  const LaunchInfo both =
      found({}, hydra(0) + Variables{{"MASTER_ADDR", "127.0.0.9"}, {"MASTER_PORT", "4000"}});
  EXPECT_EQ(both.master_address, "127.0.0.9");
  EXPECT_THAT(refused(open_mpi(1) + Variables{{"MASTER_ADDR", "127.0.0.9"}}).message,
              AllOf(HasSubstr("MASTER_ADDR is set and MASTER_PORT is unset"),
                    HasSubstr("MASTER_ADDR='127.0.0.9'")));
  GroupOptions options;
  options.master_port = 4001;
  EXPECT_EQ(found(options, open_mpi(1)).master_port, 4001);
}

TEST(Launch, RanksBeforeAllOthersAreNotTakenInPart) {
  EXPECT_THAT(refused(open_mpi(1) + Variables{{"WORLD_SIZE", "2"}}).message,
              HasSubstr("RANK is unset"));
  EXPECT_THAT(refused(slurm_step(1) + Variables{{"RANK", "1"}}).message,
              HasSubstr("WORLD_SIZE is unset"));
  EXPECT_THAT(refused({{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_PORT", "1"}}).message,
              HasSubstr("MASTER_PORT is set and MASTER_ADDR is unset"));
}

TEST(Launch, ASetThatContradictsItselfShowsWhatWasSeen) {
  EXPECT_THAT(refused(open_mpi(1) + Variables{{"OMPI_COMM_WORLD_RANK", "2"}}).message,
              AllOf(HasSubstr("OMPI_COMM_WORLD_RANK 2 is outside a world of 2 ranks"),
                    HasSubstr("OMPI_COMM_WORLD_LOCAL_SIZE='2'")));
  EXPECT_THAT(refused(hydra(1) + Variables{{"MPI_LOCALRANKID", "2"}}).message,
              HasSubstr("MPI_LOCALRANKID 2 is outside 2 local ranks"));
  EXPECT_THAT(refused(hydra(1) + Variables{{"MPI_LOCALNRANKS", "3"}}).message,
              HasSubstr("MPI_LOCALNRANKS 3 is more than PMI_SIZE 2"));
  EXPECT_THAT(refused(slurm_step(1) + Variables{{"SLURM_STEP_TASKS_PER_NODE", "3"}}).message,
              HasSubstr("SLURM_STEP_TASKS_PER_NODE='3' makes 3 tasks, SLURM_STEP_NUM_TASKS is 4"));
  EXPECT_THAT(refused(slurm_step(1) + Variables{{"SLURM_STEP_TASKS_PER_NODE", "2(x"}}).message,
              HasSubstr("does not tell the tasks of node 0"));
  EXPECT_THAT(refused(open_mpi(1) + Variables{{"OMPI_COMM_WORLD_SIZE", "two"}}).message,
              HasSubstr("OMPI_COMM_WORLD_SIZE='two' is not a number"));
}

// What srun --nodes 3 --ntasks 8 gives: 3 on each node but the last.
Variables slurm_step_of_nodes(int rank) {
  Variables variables = slurm_step(0);
  variables["SLURM_STEP_NUM_TASKS"] = variables["SLURM_NTASKS"] = "8";
  variables["SLURM_STEP_TASKS_PER_NODE"] = "3(x2),2";
  variables["SLURM_STEP_NUM_NODES"] = "3";
  variables["SLURM_STEP_NODELIST"] = "n[08-10]";
  variables["SLURM_PROCID"] = std::to_string(rank);
  variables["SLURM_NODEID"] = std::to_string(rank / 3);
  variables["SLURM_LOCALID"] = std::to_string(rank % 3);
  return variables;
}

TEST(Launch, AStepOfSeveralNodesMeetsAtItsFirstHost) {
  for (int rank = 0; rank < 8; ++rank) {
    const LaunchInfo info = found({}, slurm_step_of_nodes(rank));
    EXPECT_EQ(info.local_world_size, rank < 6 ? 3 : 2);
    EXPECT_EQ(info.local_rank, rank % 3);
    EXPECT_EQ(info.master_address, "n08");
    EXPECT_EQ(info.master_port, port_of_job("Slurm", "4711.3"));
    EXPECT_EQ(info.node_hint, "SLURM_NODEID=" + std::to_string(rank / 3));
    EXPECT_THAT(info.notes,
                ElementsAre(AllOf(HasSubstr("'n08' taken, the first host of SLURM_STEP_NODELIST"),
                                  HasSubstr("MASTER_ADDR")),
                            AllOf(HasSubstr("no port"), HasSubstr("'4711.3'"))));
  }
  const LaunchInfo port = found({}, slurm_step_of_nodes(7) + Variables{{"MASTER_PORT", "4000"}});
  EXPECT_EQ(port.master_address, "n08");
  EXPECT_EQ(port.master_port, 4000);
  EXPECT_THAT(port.notes, SizeIs(1));
  const LaunchInfo both = found(
      {}, slurm_step_of_nodes(7) + Variables{{"MASTER_ADDR", "ib-08"}, {"MASTER_PORT", "4000"}});
  EXPECT_EQ(both.master_address, "ib-08");
  EXPECT_THAT(both.notes, IsEmpty());
}

// Recorded: srun -N3 -n5 of Slurm 22.05, the last task's.
TEST(Launch, AStepOfSlurmAsItWasRecorded) {
  const LaunchInfo info = found({}, {{"SLURM_JOB_ID", "1"},
                                     {"SLURM_JOB_NODELIST", "n[08-10]"},
                                     {"SLURM_LOCALID", "0"},
                                     {"SLURM_NNODES", "3"},
                                     {"SLURM_NODEID", "2"},
                                     {"SLURM_NTASKS", "5"},
                                     {"SLURM_PROCID", "4"},
                                     {"SLURM_STEP_ID", "0"},
                                     {"SLURM_STEP_LAUNCHER_PORT", "42831"},
                                     {"SLURM_STEP_NODELIST", "n[08-10]"},
                                     {"SLURM_STEP_NUM_NODES", "3"},
                                     {"SLURM_STEP_NUM_TASKS", "5"},
                                     {"SLURM_STEP_TASKS_PER_NODE", "2(x2),1"},
                                     {"SLURM_TASKS_PER_NODE", "2(x2),1"}});
  EXPECT_EQ(info.launcher, "Slurm");
  EXPECT_EQ(info.rank, 4);
  EXPECT_EQ(info.world_size, 5);
  EXPECT_EQ(info.local_rank, 0);
  EXPECT_EQ(info.local_world_size, 1);
  EXPECT_EQ(info.master_address, "n08");
  EXPECT_EQ(info.run_id, "1.0");
}

TEST(Launch, AStepsHostsThatContradictItAreRefused) {
  const auto with = [](const char* hosts) {
    Variables variables = slurm_step_of_nodes(7);
    variables["SLURM_STEP_NODELIST"] = hosts;
    return refused(variables).message;
  };
  EXPECT_THAT(with("n[08-09]"), HasSubstr("SLURM_STEP_NODELIST='n[08-09]' names 2 hosts, "
                                          "SLURM_STEP_NUM_NODES is 3"));
  EXPECT_THAT(with("n[08-"), HasSubstr("SLURM_STEP_NODELIST='n[08-' is no list of hosts"));
  Variables variables = slurm_step_of_nodes(7);
  variables.erase("SLURM_STEP_NODELIST");
  EXPECT_THAT(refused(variables).message,
              AllOf(HasSubstr("Slurm tells no address"), HasSubstr("before srun")));
}

TEST(Launch, ALauncherOfSeveralNodesThatTellsNoAddressSaysHowToSetOne) {
  const Variables open_mpi_nodes = open_mpi(1) + Variables{{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"},
                                                           {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}};
  const Variables hydra_nodes =
      hydra(1) + Variables{{"MPI_LOCALNRANKS", "1"}, {"MPI_LOCALRANKID", "0"}};
  const Variables indexed_job = {{"JOB_COMPLETION_INDEX", "1"}, {"WORLD_SIZE", "2"}};
  const Variables train_job = {
      {"PET_NNODES", "2"}, {"PET_NPROC_PER_NODE", "1"}, {"PET_NODE_RANK", "1"}};
  const struct {
    Variables variables;
    const char* how;
  } rows[] = {{open_mpi_nodes, "mpirun -x MASTER_ADDR=HOST"},
              {hydra_nodes, "mpiexec -genv MASTER_ADDR HOST"},
              {indexed_job, "JOB-0.SERVICE"},
              {train_job, "set PET_MASTER_ADDR and PET_MASTER_PORT"}};
  for (const auto& [variables, how] : rows) {
    const Refusal refusal = refused(variables);
    EXPECT_EQ(refusal.code, Code::kInvalidArgument);
    EXPECT_THAT(refusal.message, AllOf(HasSubstr("tells no address to meet at"), HasSubstr(how)));
    const LaunchInfo info =
        found({}, variables + Variables{{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "4000"}});
    EXPECT_EQ(info.rank, 1);
    EXPECT_EQ(info.world_size, 2);
    EXPECT_EQ(info.local_rank, 0);
    EXPECT_EQ(info.local_world_size, 1);
    EXPECT_EQ(info.master_address, "10.0.0.1");
    EXPECT_EQ(info.master_port, 4000);
    EXPECT_THAT(info.notes, Not(Contains(HasSubstr("override"))));
  }
}

TEST(Launch, PodsOfSeveralNodes) {
  const Variables pytorch_job = {{"RANK", "1"},
                                 {"WORLD_SIZE", "3"},
                                 {"MASTER_ADDR", "job-master-0"},
                                 {"MASTER_PORT", "23456"},
                                 {"KUBERNETES_SERVICE_HOST", "10.0.0.1"}};
  LaunchInfo info = found({}, pytorch_job);
  EXPECT_EQ(info.local_rank, 0);
  EXPECT_EQ(info.local_world_size, 1);
  EXPECT_EQ(info.master_address, "job-master-0");
  EXPECT_EQ(info.master_port, 23456);
  EXPECT_EQ(found({}, pytorch_job + Variables{{"PET_NPROC_PER_NODE", "auto"}}).world_size, 3);
  EXPECT_THAT(refused(pytorch_job + Variables{{"PET_NPROC_PER_NODE", "4"}}).message,
              AllOf(HasSubstr("RANK and WORLD_SIZE are a pod's"), HasSubstr("torchrun")));
  const Variables train_job = {
      {"PET_NNODES", "2"},          {"PET_NPROC_PER_NODE", "1"},
      {"PET_NODE_RANK", "1"},       {"PET_MASTER_ADDR", "job-node-0-0.job"},
      {"PET_MASTER_PORT", "29500"}, {"JOB_COMPLETION_INDEX", "1"}};
  info = found({}, train_job);
  EXPECT_EQ(info.launcher, "Kubeflow Trainer");
  EXPECT_EQ(info.rank, 1);
  EXPECT_EQ(info.world_size, 2);
  EXPECT_EQ(info.local_world_size, 1);
  EXPECT_EQ(info.master_address, "job-node-0-0.job");
  EXPECT_EQ(info.master_port, 29500);
  EXPECT_FALSE(info.agent_store);
  info = found({}, train_job + torchrun_of_two_nodes(3));
  EXPECT_EQ(info.launcher, "RANK family");
  EXPECT_EQ(info.rank, 3);
}

TEST(Launch, ARankForEachCpuIsWarnedOf) {
  LaunchInfo info;
  info.local_world_size = 96;
  EXPECT_THAT(*crowding_warning(info, 48),
              AllOf(HasSubstr("96 ranks on a machine of 48 cores"), HasSubstr("numProcPerNode")));
  info.local_world_size = 12;
  EXPECT_EQ(crowding_warning(info, 48), std::nullopt);
  info.local_world_size = 13;
  EXPECT_NE(crowding_warning(info, 48), std::nullopt);
  info.local_world_size = 3;
  EXPECT_EQ(crowding_warning(info, 2), std::nullopt) << "a few are somebody's wish";
  info.local_world_size = 64;
  EXPECT_EQ(crowding_warning(info, 0), std::nullopt) << "nobody knows";
}

TEST(Launch, ReadsSlurmsListOfTasks) {
  long long total = 0;
  EXPECT_EQ(tasks_of_node("4", 0, &total), 4);
  EXPECT_EQ(tasks_of_node("4(x2),3", 1, &total), 4);
  EXPECT_EQ(tasks_of_node("4(x2),3", 2, &total), 3);
  EXPECT_EQ(total, 11);
  EXPECT_EQ(tasks_of_node("4(x2),3", 3, &total), -1);
  for (const char* broken : {"", ",", "4,", ",4", "4(", "4(x", "4(x2", "4(x)", "4x", "4(x0)", "0",
                             "-1", "4 ", "99999999999", "2147483647(x2147483647)", "4(x2)3"}) {
    EXPECT_EQ(tasks_of_node(broken, 0, &total), -1) << broken;
  }
}

TEST(Launch, ANodeHasTheNameThatItIsGiven) {
  EXPECT_EQ(found({}, slurm_step(1)).node_hint, "SLURM_NODEID=0");
  EXPECT_EQ(found({}, torchrun(1, 2)).node_hint, "GROUP_RANK=0");
  EXPECT_EQ(found({}, open_mpi(1)).node_hint, "");
  const Variables named = {{"AMXTRAIN_NODE_ID", "rack-3"}};
  EXPECT_EQ(found({}, slurm_step(1) + named).node_hint, "rack-3");
  EXPECT_EQ(found({}, named).node_hint, "rack-3");
}

TEST(Launch, TheInterfaceOfANodeIsTakenWhateverTheLauncher) {
  const Variables named = {{"AMXTRAIN_SOCKET_IFNAME", "eth1"}};
  EXPECT_EQ(found({}, torchrun(1, 2) + named).interface, "eth1");
  EXPECT_EQ(found({}, torchrun(1, 2)).interface, "");
  GroupOptions options;
  options.rank = 0;
  options.world_size = 2;
  options.master_port = 4000;
  EXPECT_EQ(found(options, named).interface, "eth1");
}

TEST(Launch, TheProcessEnvironmentTellsUnsetFromEmpty) {
  ASSERT_EQ(setenv("AMXT_LAUNCH_TEST", "", 1), 0);
  EXPECT_EQ(process_environment()("AMXT_LAUNCH_TEST"), "");
  ASSERT_EQ(unsetenv("AMXT_LAUNCH_TEST"), 0);
  EXPECT_EQ(process_environment()("AMXT_LAUNCH_TEST"), std::nullopt);
}

}  // namespace
}  // namespace amxt::comm
