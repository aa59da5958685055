#include "comm/job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <vector>

#include "comm/interfaces.h"
#include "unit/comm/rank_threads.h"

namespace amxt::comm::test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Deadline soon() { return Deadline::after(20 * kSecond); }

// Rank `rank` of four, two a node.
LaunchInfo of_two_nodes(int rank, const std::string& address) {
  LaunchInfo launch = local_launch(rank, 4, address);
  launch.local_rank = rank % 2;
  launch.local_world_size = 2;
  return launch;
}

std::vector<std::string> addresses(const LaunchInfo& launch) {
  const auto found = job_store_addresses(launch, soon());
  EXPECT_TRUE(found) << found.error().message();
  std::vector<std::string> texts;
  if (!found) return texts;
  for (const Address& address : *found) texts.push_back(address.text);
  return texts;
}

// A name, not "localhost", that leads to a loopback address here, as a host's own often does.
std::optional<std::string> name_of_loopback() {
  char own[256] = {};
  gethostname(own, sizeof own - 1);
  for (const std::string& name : {std::string("ip6-localhost"), std::string(own)}) {
    const auto found = resolve(name, 29500);
    if (found && is_loopback(found->front())) return name;
  }
  return std::nullopt;
}

std::optional<Interface> interface_of_a_network() {
  const auto all = interfaces();
  for (const Interface& interface : *all) {
    if (interface.is_up && !interface.is_loopback && !interface.addresses.empty()) return interface;
  }
  return std::nullopt;
}

TEST(JobStore, OnOneNodeItIsOnLoopbackWhateverTheMasterIsCalled) {
  for (const int rank : {0, 1}) {
    EXPECT_THAT(addresses(local_launch(rank, 2, "127.3.2.1")), ElementsAre("127.3.2.1:29500"));
    EXPECT_THAT(addresses(local_launch(rank, 2, "10.0.0.1")), ElementsAre("127.0.0.1:29500"));
    EXPECT_THAT(addresses(local_launch(rank, 2, "no.such.host.invalid")),
                ElementsAre("127.0.0.1:29500"));
  }
}

TEST(JobStore, WhereNothingTellsTheNodesTheMastersAddressCounts) {
  LaunchInfo launch = local_launch(1, 2, "10.0.0.1");
  launch.local_size_is_guess = true;
  EXPECT_THAT(addresses(launch), ElementsAre("10.0.0.1:29500"));
}

TEST(JobStore, EveryAddressOfAMachineIsNoneToMeetAt) {
  for (const std::string address : {"0.0.0.0", "::", "0"}) {
    for (const int rank : {0, 3}) {
      const auto refused = job_store_addresses(of_two_nodes(rank, address), soon());
      ASSERT_FALSE(refused) << address;
      EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
      EXPECT_THAT(refused.error().message(), StartsWith("MASTER_ADDR '" + address + "' is every"));
    }
    LaunchInfo unknown = local_launch(0, 2, address);
    unknown.local_size_is_guess = true;
    EXPECT_FALSE(serve_job_store(unknown, Secret(), nullptr, soon())) << address;
    EXPECT_THAT(addresses(local_launch(0, 2, address)), ElementsAre("127.0.0.1:29500"))
        << "on one node it is loopback all the same";
  }
}

TEST(JobStore, OnSeveralNodesItIsWhereTheMastersAddressLeads) {
  EXPECT_THAT(addresses(of_two_nodes(2, "10.0.0.1")), ElementsAre("10.0.0.1:29500"));
  EXPECT_THAT(addresses(of_two_nodes(0, "127.3.2.1")), ElementsAre("127.3.2.1:29500"))
      << "a number is meant";
  EXPECT_THAT(addresses(of_two_nodes(2, "localhost")), testing::Contains("127.0.0.1:29500"));
  const auto interface = interface_of_a_network();
  if (!interface) GTEST_SKIP() << "skipped: no interface but loopback";
  const std::string own = interface->addresses.front().ip();
  EXPECT_THAT(addresses(of_two_nodes(0, own)),
              ElementsAre(interface->addresses.front().at_port(29500).text));
}

TEST(JobStore, RankZeroListensAtTheInterfaceThatIsGiven) {
  LaunchInfo launch = of_two_nodes(0, "192.0.2.1");
  launch.interface = "lo";
  EXPECT_THAT(addresses(launch), ElementsAre("127.0.0.1:29500"));
  launch.master_address = "127.3.2.1";
  EXPECT_THAT(addresses(launch), ElementsAre("127.3.2.1:29500")) << "it is on the interface";
  launch.rank = 2;
  launch.master_address = "192.0.2.1";
  EXPECT_THAT(addresses(launch), ElementsAre("192.0.2.1:29500")) << "the others go to the master";
  launch.rank = 0;
  launch.interface = "eth99";
  EXPECT_THAT(job_store_addresses(launch, soon()).error().message(),
              HasSubstr("AMXTRAIN_SOCKET_IFNAME='eth99'"));
}

TEST(JobStore, ANameThatLeadsToLoopbackIsAnErrorOnSeveralNodes) {
  const auto name = name_of_loopback();
  if (!name) GTEST_SKIP() << "skipped: no name of this machine leads to a loopback address";
  for (const int rank : {0, 1, 2}) {
    LaunchInfo launch = of_two_nodes(rank, *name);
    const auto refused = job_store_addresses(launch, soon());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
    EXPECT_THAT(refused.error().message(),
                AllOf(StartsWith("MASTER_ADDR '" + *name + "' is "), HasSubstr("loopback"),
                      HasSubstr("AMXTRAIN_SOCKET_IFNAME")));
    EXPECT_FALSE(serve_job_store(launch, Secret(), nullptr, soon())) << "at once";
    launch.interface = "lo";
    EXPECT_THAT(addresses(launch), ElementsAre(HasSubstr(":29500")));
    launch.interface = "";
    launch.agent_store = true;
    EXPECT_TRUE(job_store_addresses(launch, soon())) << "who reaches the agent is here too";
  }
}

TEST(JobStore, AMasterThatDoesNotResolveIsAskedForUntilTheDeadline) {
  const LaunchInfo launch = of_two_nodes(0, "no.such.host.invalid");
  std::vector<std::string> lines;
  Log log;
  log.set([&](LogLevel, const char* line) { lines.emplace_back(line); }, LogLevel::kInfo);
  const auto refused = serve_job_store(launch, Secret(), &log, Deadline::after(kSecond));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kNotFound);
  EXPECT_THAT(refused.error().message(),
              AllOf(HasSubstr("'no.such.host.invalid'"), HasSubstr("MASTER_ADDR")));
  const auto says_once = ElementsAre(
      AllOf(HasSubstr("'no.such.host.invalid'"), HasSubstr("asked for again until the deadline")));
  EXPECT_THAT(lines, says_once) << "rank 0 says what it waits for";
  lines.clear();
  EXPECT_FALSE(connect_to_job_store(launch, Secret(), &log, Deadline::after(kSecond)));
  EXPECT_THAT(lines, says_once);
}

TEST(JobStore, ServesAndConnectsWithASecretAndWithout) {
  for (const Secret& secret : {Secret(), Secret("a secret of enough bytes")}) {
    const LaunchInfo launch = local_launch(0, 2, own_loopback());
    const auto server = serve_job_store(launch, secret, nullptr, soon());
    ASSERT_TRUE(server) << server.error().message();
    const auto client = connect_to_job_store(launch, secret, nullptr, soon());
    ASSERT_TRUE(client) << client.error().message();
    EXPECT_EQ(*(*client)->add("/n", 1, soon()), 1);
    EXPECT_EQ((*server)->dropped(), 0);
  }
}

TEST(JobStore, WhoHasAnotherSecretOrNoneIsToldSoAndDropped) {
  const LaunchInfo launch = local_launch(0, 2, own_loopback());
  const Secret secret("a secret of enough bytes");
  const auto server = serve_job_store(launch, secret, nullptr, soon());
  ASSERT_TRUE(server) << server.error().message();
  const auto other =
      connect_to_job_store(launch, Secret("another secret of some bytes"), nullptr, soon());
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code(), Code::kMismatch);
  EXPECT_THAT(other.error().message(),
              AllOf(HasSubstr(launch.master_address), HasSubstr("does not have the same secret"),
                    HasSubstr("AMXTRAIN_SECRET_FILE")));
  const auto none = connect_to_job_store(launch, Secret(), nullptr, soon());
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code(), Code::kMismatch) << "at once: no deadline has passed";
  EXPECT_THAT(none.error().message(),
              HasSubstr("rank 0 asks for a secret, and this rank has none (AMXTRAIN_SECRET_FILE)"));
  for (const Deadline end = soon(); (*server)->refused().count < 2 && !end.passed();) usleep(1000);
  EXPECT_EQ((*server)->refused().count, 2);
  EXPECT_EQ((*server)->refused().last_ip.substr(0, 4), "127.");
  EXPECT_EQ((*server)->dropped(), 2);
  EXPECT_TRUE(connect_to_job_store(launch, secret, nullptr, soon()));
}

TEST(JobStore, AStoreWithoutTheSecretIsNotTaken) {
  const LaunchInfo launch = local_launch(0, 2, own_loopback());
  const auto server = serve_job_store(launch, Secret(), nullptr, soon());
  ASSERT_TRUE(server);
  const auto refused =
      connect_to_job_store(launch, Secret("a secret of enough bytes"), nullptr, soon());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kUnsupported);
  EXPECT_THAT(refused.error().message(),
              HasSubstr("rank 0 has no secret, and this rank has one (AMXTRAIN_SECRET_FILE)"));
  for (const Deadline end = soon(); (*server)->asked_for_secret() < 1 && !end.passed();)
    usleep(1000);
  EXPECT_EQ((*server)->asked_for_secret(), 1);
}

TEST(JobStore, AnAgentsStoreIsTakenWithASecretAndOneLineSaysSo) {
  LaunchInfo launch = local_launch(0, 2, own_loopback());
  const auto agent = serve_job_store(launch, Secret(), nullptr, soon());
  ASSERT_TRUE(agent);
  launch.agent_store = true;
  std::vector<std::string> lines;
  Log log;
  log.set([&](LogLevel, const char* line) { lines.emplace_back(line); }, LogLevel::kInfo);
  EXPECT_TRUE(connect_to_job_store(launch, Secret("a secret of enough bytes"), &log, soon()));
  EXPECT_THAT(lines, ElementsAre(HasSubstr("cannot ask for a secret")));
  EXPECT_TRUE(connect_to_job_store(launch, Secret(), &log, soon()));
  EXPECT_EQ(lines.size(), 1u);
}

}  // namespace
}  // namespace amxt::comm::test
