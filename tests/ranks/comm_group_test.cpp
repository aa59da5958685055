// The group among real processes that are killed, stopped and started wrongly. This executable is also the rank: started as
// `<test> rank <what>` it plays one and reports by lines on its standard output.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <list>
#include <map>
#include <string>
#include <vector>

#include "comm/group.h"
#include "comm/rendezvous_entry.h"
#include "comm/socket.h"
#include "comm/tcp_store_client.h"
#include "comm/tcp_store_server.h"
#include "ranks/comm_rank.h"
#include "ranks/comm_rank_process.h"

namespace amxt::comm::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kPort = 29500;

class CommGroup : public testing::Test {
 protected:
  using Variables = std::map<std::string, std::string>;

  RankProcess& start(const std::string& what, int rank, int world, const Variables& more = {}) {
    Variables variables = {{"RANK", std::to_string(rank)},
                           {"WORLD_SIZE", std::to_string(world)},
                           {"LOCAL_RANK", std::to_string(rank)},
                           {"LOCAL_WORLD_SIZE", std::to_string(world)},
                           {"MASTER_ADDR", host_},
                           {"MASTER_PORT", std::to_string(kPort)},
                           {"TORCHELASTIC_RUN_ID", "test"}};
    for (const auto& [name, value] : more) variables[name] = value;
    return processes_.emplace_back(what, variables);
  }

  // All ranks of a world, joined.
  std::vector<RankProcess*> start_world(const std::string& what, int world,
                                        const Variables& more = {}) {
    std::vector<RankProcess*> ranks;
    for (int rank = 0; rank < world; ++rank) ranks.push_back(&start(what, rank, world, more));
    for (RankProcess* rank : ranks) rank->expect("joined");
    return ranks;
  }

  // Kills `victim` of four and expects the others to say so within two seconds.
  void expect_death_to_be_told(const std::string& what, int victim) {
    const auto ranks = start_world(what, 4, {{"VICTIM", std::to_string(victim)}});
    RankProcess& dead = *ranks[static_cast<size_t>(victim)];
    const std::string message = name(victim, dead) + " died";
    const Deadline end = Deadline::after(2 * kSecond);
    dead.kill_and_wait();
    for (RankProcess* rank : ranks) {
      if (rank == &dead) continue;
      const auto failure = rank->expect_error(end.left_ns());
      EXPECT_EQ(failure.code, Code::kCommPeerLost);
      EXPECT_EQ(failure.rank, victim);
      EXPECT_EQ(failure.message, message);
    }
  }

  static std::string name(int rank, const RankProcess& process) {
    return fmt::format("rank {} (pid {} on host {})", rank, process.pid(), host_name());
  }

  const std::string host_ = own_loopback();
  std::list<RankProcess> processes_;
};

TEST_F(CommGroup, JoinsAndLeaves) {
  const auto ranks = start_world("leave", 4);
  for (RankProcess* rank : ranks) rank->expect("done");
}

TEST_F(CommGroup, ADeathInABarrierIsTold) { expect_death_to_be_told("barrier", 2); }
TEST_F(CommGroup, TheDeathOfRankZeroIsTold) { expect_death_to_be_told("barrier", 0); }
TEST_F(CommGroup, ADeathInAnExchangeIsTold) { expect_death_to_be_told("exchange", 3); }
TEST_F(CommGroup, ADeathWhileAllWaitForMemoryIsTold) { expect_death_to_be_told("share", 0); }
TEST_F(CommGroup, ADeathWhileAllAgreeOnMemoryIsTold) { expect_death_to_be_told("share", 1); }

// Its sockets stay open in the child: the end of the process itself is seen.
TEST_F(CommGroup, ADeathIsToldEvenIfAChildOfTheDeadLives) {
  const auto ranks = start_world("fork", 2, {{"VICTIM", "1"}});
  const std::string line = ranks[1]->expect("child ");
  ranks[1]->kill_and_wait();
  const auto failure = ranks[0]->expect_error(2 * kSecond);
  EXPECT_EQ(failure.code, Code::kCommPeerLost);
  EXPECT_EQ(failure.rank, 1);
  kill(std::stoi(line.substr(6)), SIGKILL);
}

TEST_F(CommGroup, AReasonIsToldInsteadOfADeath) {
  const auto ranks = start_world("abort", 4, {{"VICTIM", "1"}});
  const std::string message = name(1, *ranks[1]) + " gave up: the disk is full";
  for (const int rank : {0, 2, 3}) {
    const auto failure = ranks[static_cast<size_t>(rank)]->expect_error(2 * kSecond);
    EXPECT_EQ(failure.code, Code::kCommAborted);
    EXPECT_EQ(failure.message, message);
  }
}

TEST_F(CommGroup, AStoppedRankIsNamedAtTheDeadlineAndHearsItAfterwards) {
  const auto ranks = start_world("barriers", 3, {{"WAIT_MS", "1000"}});
  for (RankProcess* rank : ranks) rank->expect("passed");
  ranks[1]->signal(SIGSTOP);
  const std::string message = name(1, *ranks[1]) + " did not arrive at a barrier";
  for (const size_t rank : {size_t{0}, size_t{2}}) {
    const auto failure = ranks[rank]->expect_error(4 * kSecond);
    EXPECT_EQ(failure.code, Code::kCommTimeout);
    EXPECT_EQ(failure.rank, 1);
    EXPECT_THAT(failure.message, HasSubstr(message));
  }
  ranks[1]->signal(SIGCONT);
  EXPECT_EQ(ranks[1]->expect_error(2 * kSecond).code, Code::kCommTimeout);
}

TEST_F(CommGroup, AShortStopIsNoFault) {
  const auto ranks = start_world("barriers", 2, {{"WAIT_MS", "20000"}});
  for (RankProcess* rank : ranks) rank->expect("passed");
  ranks[1]->signal(SIGSTOP);
  int status = 0;
  waitpid(ranks[1]->pid(), &status, WUNTRACED);  // it has stopped
  ranks[1]->signal(SIGCONT);
  for (int i = 0; i < 1000; ++i) ranks[0]->expect("passed");
}

TEST_F(CommGroup, AGroupIsMadeAgainInTheSameProcesses) {
  const auto ranks = start_world("again", 3);
  for (RankProcess* rank : ranks) rank->expect("done");
}

TEST_F(CommGroup, ADeathWhileJoiningIsTold) {
  RankProcess& first = start("leave", 0, 3);
  RankProcess& second = start("leave", 1, 3);
  first.expect("log rank 0: met rank 1");
  const std::string message = name(1, second) + " died while joining";
  second.kill_and_wait();
  const auto failure = first.expect_error(2 * kSecond);
  EXPECT_EQ(failure.code, Code::kCommPeerLost);
  EXPECT_EQ(failure.rank, 1);
  EXPECT_EQ(failure.message, message);
}

TEST_F(CommGroup, TheDeathOfRankZeroWhileJoiningIsTold) {
  RankProcess& first = start("leave", 0, 4);
  RankProcess& second = start("leave", 1, 4);
  RankProcess& third = start("leave", 2, 4);
  second.expect("log rank 1: met rank 0");
  third.expect("log rank 2: met rank 0");
  first.kill_and_wait();
  for (RankProcess* rank : {&second, &third}) {
    const auto failure = rank->expect_error(2 * kSecond);
    EXPECT_EQ(failure.code, Code::kCommPeerLost);
    EXPECT_THAT(failure.message, AllOf(HasSubstr("rank 0"), HasSubstr("died while joining")));
  }
}

TEST_F(CommGroup, ARankThatNeverComesIsNamed) {
  std::vector<RankProcess*> ranks;
  for (const int rank : {0, 1, 3}) ranks.push_back(&start("leave", rank, 4, {{"JOIN_MS", "1500"}}));
  for (RankProcess* rank : ranks) {
    const auto failure = rank->expect_error(5 * kSecond);
    EXPECT_EQ(failure.code, Code::kCommTimeout);
    EXPECT_EQ(failure.rank, 2);
    EXPECT_THAT(failure.message,
                HasSubstr("rank 2 did not join within the deadline: seen 0, 1, 3"));
  }
}

TEST_F(CommGroup, ARankStartedTwiceIsNamedWithBothProcesses) {
  RankProcess& one = start("leave", 1, 3);
  RankProcess& other = start("leave", 1, 3);
  RankProcess& zero = start("leave", 0, 3);
  for (RankProcess* rank : {&zero, &one, &other}) {
    const auto failure = rank->expect_error();
    EXPECT_EQ(failure.code, Code::kMismatch);
    EXPECT_EQ(failure.rank, 1);
    EXPECT_EQ(failure.message,
              fmt::format("rank 1 is there twice: pid {1} on host {0} and pid {2} on host {0}",
                          host_name(), std::min(one.pid(), other.pid()),
                          std::max(one.pid(), other.pid())));
  }
}

// The second can't serve a store, for the first does: it is told apart from another program there.
TEST_F(CommGroup, RankZeroStartedTwiceIsNamedWithBothProcesses) {
  RankProcess& one = start("leave", 0, 2);
  ASSERT_TRUE(TcpStoreClient::connect(host_, kPort, Deadline::after(kPatience)));  // it serves
  RankProcess& other = start("leave", 0, 2);
  for (RankProcess* rank : {&one, &other}) {
    const auto failure = rank->expect_error();
    EXPECT_EQ(failure.code, Code::kMismatch);
    EXPECT_EQ(failure.rank, 0);
    EXPECT_EQ(failure.message,
              fmt::format("rank 0 is there twice: pid {1} on host {0} and pid {2} on host {0}",
                          host_name(), std::min(one.pid(), other.pid()),
                          std::max(one.pid(), other.pid())));
  }
}

TEST_F(CommGroup, DifferentWorldSizesAreNamed) {
  RankProcess& zero = start("leave", 0, 4);
  RankProcess& four = start("leave", 4, 5);
  for (RankProcess* rank : {&zero, &four}) {
    const auto failure = rank->expect_error();
    EXPECT_EQ(failure.code, Code::kMismatch);
    EXPECT_EQ(failure.message, fmt::format("{} was started with a world size of 4, {} with 5",
                                           name(0, zero), name(4, four)));
  }
}

TEST_F(CommGroup, TheSameLocalRankTwiceIsNamed) {
  RankProcess& zero = start("leave", 0, 2);
  RankProcess& one = start("leave", 1, 2, {{"LOCAL_RANK", "0"}});
  for (RankProcess* rank : {&zero, &one}) {
    const auto failure = rank->expect_error();
    EXPECT_EQ(failure.code, Code::kMismatch);
    EXPECT_EQ(failure.message,
              fmt::format("{} and {} both have local rank 0", name(0, zero), name(1, one)));
  }
}

TEST_F(CommGroup, ATakenPortIsNamedByRankZero) {
  const auto other = TcpStoreServer::start(host_, kPort);
  ASSERT_TRUE(other);
  const auto failure = start("leave", 0, 2).expect_error();
  EXPECT_EQ(failure.code, Code::kExists);
  EXPECT_THAT(failure.message, AllOf(HasSubstr(host_ + ":29500"), HasSubstr("the port is taken")));
}

TEST_F(CommGroup, WithoutAStoreTheDeadlineSaysSo) {
  const auto failure = start("leave", 1, 2, {{"JOIN_MS", "300"}}).expect_error();
  EXPECT_EQ(failure.code, Code::kTimeout);
  EXPECT_THAT(failure.message,
              AllOf(HasSubstr(host_ + ":29500"), HasSubstr("nothing listens there")));
}

TEST_F(CommGroup, StrangersAtThePortDoNotDisturbTheJoin) {
  RankProcess& zero = start("leave", 0, 2);
  std::vector<Descriptor> strangers;
  for (const char* bytes :
       {"GET / HTTP/1.1\r\n\r\n", "\x7f\x7f\x7f\x7f", "", "\x01\xff\xff\xff\xff\xff\xff\xff\xff"}) {
    const auto addresses = resolve(host_, kPort);
    ASSERT_TRUE(addresses);
    const Deadline end = Deadline::after(kPatience);
    auto socket = connect_tcp((*addresses)[0], end);
    while (!socket && !end.passed()) socket = connect_tcp((*addresses)[0], end);
    ASSERT_TRUE(socket) << socket.error().message();
    (void)send_all(socket->get(), bytes, end);
    strangers.push_back(std::move(*socket));
  }
  RankProcess& one = start("leave", 1, 2);
  zero.expect("done");
  one.expect("done");
}

// As torchrun's agent keeps its store over restarts.
class CommGroupWithAgent : public CommGroup {
 protected:
  CommGroupWithAgent() {
    auto server = TcpStoreServer::start(host_, kPort);
    EXPECT_TRUE(server);
    agent_ = std::move(*server);
    auto store = TcpStoreClient::connect(host_, kPort, Deadline::after(kPatience));
    EXPECT_TRUE(store);
    store_ = std::move(*store);
  }
  void leave_entry(const std::string& entry) {
    const auto count = store_->add("/amxtrain/test/entries", 1, Deadline::after(kPatience));
    ASSERT_TRUE(count);
    ASSERT_TRUE(store_->set(fmt::format("/amxtrain/test/entry/{}", *count), entry,
                            Deadline::after(kPatience)));
  }
  const Variables agent_variables_ = {{"AGENT", "1"}};
  std::unique_ptr<TcpStoreServer> agent_;
  std::unique_ptr<TcpStoreClient> store_;
};

TEST_F(CommGroupWithAgent, EntriesOfKilledAttemptsAreNotUsed) {
  for (int attempt = 0; attempt < 3; ++attempt) {
    RankProcess& zero = start("leave", 0, 3, agent_variables_);
    RankProcess& one = start("leave", 1, 3, agent_variables_);
    zero.expect("log rank 0: met rank 1");
    one.kill_and_wait();
    zero.kill_and_wait();
  }
  const auto killed = start_world("barrier", 3, {{"AGENT", "1"}, {"VICTIM", "0"}});
  for (RankProcess* rank : killed) rank->kill_and_wait();
  const auto ranks = start_world("leave", 3, agent_variables_);
  for (RankProcess* rank : ranks) rank->expect("done");
}

TEST_F(CommGroupWithAgent, UnreadableEntriesAreNotUsed) {
  leave_entry("");
  leave_entry("amxtrain");
  leave_entry("amxtrain protocol=1 rank=zero world=2 pid=1 nonce=00");
  leave_entry("amxtrain protocol=1 rank=0 world=2 pid=1 nonce=" + std::string(32, 'x'));
  leave_entry(std::string(100'000, 'a'));
  ASSERT_TRUE(store_->add("/amxtrain/test/entries", 3,
                          Deadline::after(kPatience)));  // numbers without entries
  const auto ranks = start_world("leave", 2, agent_variables_);
  for (RankProcess* rank : ranks) rank->expect("done");
}

TEST_F(CommGroupWithAgent, AnEntryOfAnotherMachineIsIgnoredWhenItIsOld) {
  leave_entry("amxtrain protocol=1 rank=1 world=2 pid=7 nonce=" + std::string(32, '7') +
              " machine=other host=elsewhere build=x");
  const auto ranks = start_world("leave", 2, agent_variables_);
  for (RankProcess* rank : ranks) rank->expect("done");
}

TEST_F(CommGroupWithAgent, ARankOnAnotherMachineIsRefusedByName) {
  leave_entry("amxtrain protocol=1 rank=1 world=2 pid=7 nonce=" + std::string(32, '7') +
              " machine=other host=elsewhere build=x");
  const auto failure = start("leave", 0, 2, agent_variables_).expect_error();
  EXPECT_EQ(failure.code, Code::kMismatch);
  EXPECT_EQ(failure.rank, 1);
  EXPECT_THAT(failure.message, AllOf(HasSubstr("rank 1 (pid 7 on host elsewhere)"),
                                     HasSubstr("another machine"), HasSubstr("LOCAL_WORLD_SIZE")));
}

TEST_F(CommGroupWithAgent, TheAgentsStoreStaysUsable) {
  const auto ranks = start_world("again", 2, agent_variables_);
  for (RankProcess* rank : ranks) rank->expect("done");
  EXPECT_EQ(agent_->dropped(), 0);
  EXPECT_TRUE(store_->key_count(Deadline::after(kPatience)));
}

}  // namespace
}  // namespace amxt::comm::test

int main(int argc, char** argv) {
  return amxt::comm::test::run_tests_or_rank(argc, argv, amxt::comm::test::play);
}
