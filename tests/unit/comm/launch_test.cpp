#include "comm/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

namespace amxt::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
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
      {"RANK", "", "RANK='' is not a number"},
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
  }
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

TEST(Launch, SeveralNodesAreRefusedByName) {
  auto variables = torchrun(1, 4);
  variables["LOCAL_WORLD_SIZE"] = "2";
  const Refusal refusal = refused(variables);
  EXPECT_EQ(refusal.code, Code::kUnsupported);
  EXPECT_THAT(refusal.message, AllOf(HasSubstr("several nodes"), HasSubstr("2 of 4 ranks")));
  variables = torchrun(1, 4);
  variables.erase("LOCAL_WORLD_SIZE");
  variables["GROUP_WORLD_SIZE"] = "2";
  EXPECT_THAT(refused(variables).message, HasSubstr("several nodes"));
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

TEST(Launch, OtherLaunchersAreNamedWhenTheirRanksAreNotRead) {
  const LaunchInfo info = found({}, {{"OMPI_COMM_WORLD_SIZE", "4"}, {"SLURM_NTASKS", "1"}});
  EXPECT_EQ(info.world_size, 1);
  ASSERT_THAT(info.notes, SizeIs(1));
  EXPECT_THAT(info.notes[0], AllOf(HasSubstr("OMPI_COMM_WORLD_SIZE='4'"), HasSubstr("alone")));
}

TEST(Launch, TheProcessEnvironmentTellsUnsetFromEmpty) {
  ASSERT_EQ(setenv("AMXT_LAUNCH_TEST", "", 1), 0);
  EXPECT_EQ(process_environment()("AMXT_LAUNCH_TEST"), "");
  ASSERT_EQ(unsetenv("AMXT_LAUNCH_TEST"), 0);
  EXPECT_EQ(process_environment()("AMXT_LAUNCH_TEST"), std::nullopt);
}

}  // namespace
}  // namespace amxt::comm
