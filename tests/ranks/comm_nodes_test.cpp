// The group over several nodes among real processes: nodes of one machine, told apart by AMXTRAIN_NODE_ID, and network namespaces, whose
// links can be cut. This executable is also the rank (comm_rank.h).
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "comm/group.h"
#include "comm/rendezvous_entry.h"
#include "comm/socket.h"
#include "comm/tcp_store_client.h"
#include "comm/tcp_store_server.h"
#include "ranks/comm_rank.h"
#include "ranks/comm_rank_process.h"
#include "support/network_nodes.h"

namespace amxt::comm::test {
namespace {

using ::amxt::test::NetworkNodes;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr int kPort = 29500;

// Node of each rank.
using Layout = std::vector<int>;

class CommNodes : public testing::Test {
 protected:
  using Variables = std::map<std::string, std::string>;

  RankProcess& start(const std::string& what, int rank, const Layout& layout,
                     const Variables& more = {}, const RankPlace& place = {}) {
    const int node = layout[static_cast<size_t>(rank)];
    Variables variables = {
        {"RANK", std::to_string(rank)},
        {"WORLD_SIZE", std::to_string(layout.size())},
        {"LOCAL_RANK", std::to_string(std::count(layout.begin(), layout.begin() + rank, node))},
        {"LOCAL_WORLD_SIZE", std::to_string(std::count(layout.begin(), layout.end(), node))},
        {"MASTER_ADDR", host_},
        {"MASTER_PORT", std::to_string(kPort)},
        {"AMXTRAIN_NODE_ID", "node-" + std::to_string(node)},
        {"TORCHELASTIC_RUN_ID", "test"}};
    for (const auto& [name, value] : more) variables[name] = value;
    return processes_.emplace_back(what, variables, place);
  }

  std::vector<RankProcess*> start_all(const std::string& what, const Layout& layout,
                                      const Variables& more = {}) {
    std::vector<RankProcess*> ranks;
    for (int rank = 0; rank < static_cast<int>(layout.size()); ++rank)
      ranks.push_back(&start(what, rank, layout, more));
    return ranks;
  }

  std::vector<RankProcess*> start_joined(const std::string& what, const Layout& layout,
                                         const Variables& more = {}) {
    const auto ranks = start_all(what, layout, more);
    for (RankProcess* rank : ranks) rank->expect("joined");
    return ranks;
  }

  // Kills one and expects all others to name it at once: the end of its connections tells them.
  void expect_death_to_be_told(const std::string& what, const Layout& layout, int victim) {
    SCOPED_TRACE(fmt::format("{}, rank {} dies", what, victim));
    const auto ranks = start_joined(what, layout, {{"VICTIM", std::to_string(victim)}});
    RankProcess& dead = *ranks[static_cast<size_t>(victim)];
    const std::string name =
        fmt::format("rank {} (pid {} on host {}) died", victim, dead.pid(), host_name());
    const Deadline end = Deadline::after(2 * kSecond);
    dead.kill_and_wait();
    for (RankProcess* rank : ranks) {
      if (rank == &dead) continue;
      const auto failure = rank->expect_error(end.left_ns());
      EXPECT_EQ(failure.code, Code::kCommPeerLost);
      EXPECT_EQ(failure.rank, victim);
      EXPECT_THAT(failure.message, HasSubstr(name));
    }
  }

  void expect_all_to_fail(const std::vector<RankProcess*>& ranks, Code code,
                          const std::string& message, int64_t patience_ns = kPatience) {
    for (RankProcess* rank : ranks) {
      const auto failure = rank->expect_error(patience_ns);
      EXPECT_EQ(failure.code, code) << failure.message;
      EXPECT_EQ(failure.message, message);
    }
  }

  std::string name(int rank, const RankProcess& process) const {
    return fmt::format("rank {} (pid {} on host {})", rank, process.pid(), host_name());
  }

  const std::string host_ = own_loopback();
  std::list<RankProcess> processes_;
};

class CommNodesLayouts : public CommNodes, public testing::WithParamInterface<Layout> {};
INSTANTIATE_TEST_SUITE_P(Of, CommNodesLayouts,
                         testing::Values(Layout{0, 1}, Layout{0, 0, 1, 1}, Layout{0, 1, 0, 1},
                                         Layout{0, 0, 1, 1, 2, 2, 3, 3},
                                         Layout{0, 1, 2, 0, 1, 0, 0}),
                         [](const auto& layout) {
                           std::string name;
                           for (const int node : layout.param) name += std::to_string(node);
                           return name;
                         });

TEST_P(CommNodesLayouts, JoinExchangeAndLeave) {
  const Layout& layout = GetParam();
  const auto ranks = start_all("exchanges", layout);
  const int nodes = 1 + *std::max_element(layout.begin(), layout.end());
  for (int rank = 0; rank < static_cast<int>(layout.size()); ++rank) {
    const int node = layout[static_cast<size_t>(rank)];
    RankProcess& process = *ranks[static_cast<size_t>(rank)];
    process.expect(
        fmt::format("log rank {} connected to {} of {} by ", rank, layout.size(), layout.size()));
    EXPECT_EQ(process.expect("joined"),
              fmt::format("joined {} of {} on node {} of {}",
                          std::count(layout.begin(), layout.begin() + rank, node),
                          std::count(layout.begin(), layout.end(), node), node, nodes));
  }
  for (int i = 0; i < 5; ++i) {
    for (RankProcess* rank : ranks) EXPECT_EQ(rank->expect(""), "passed");
  }
}

TEST_P(CommNodesLayouts, GroupsAreMadeAgainInTheSameProcesses) {
  for (RankProcess* rank : start_all("again", GetParam())) rank->expect("done");
}

TEST_F(CommNodes, TheLineOfAJoinSaysWhoIsWhere) {
  const auto ranks = start_all("leave", {0, 1, 0});
  EXPECT_THAT(ranks[1]->expect("log rank 1 connected"),
              HasSubstr(fmt::format("to 3 of 3 by TCP (ranks 0, 2 on node 0: host {0}, 127.0.0.1; "
                                    "rank 1 on node 1: host {0}, 127.0.0.1)",
                                    host_name())));
}

TEST_F(CommNodes, AnyDeathIsToldToAll) {
  for (int victim = 0; victim < 4; ++victim)
    expect_death_to_be_told("barrier", {0, 0, 1, 1}, victim);
}
TEST_F(CommNodes, ADeathInAnExchangeIsToldToAll) {
  expect_death_to_be_told("exchange", {0, 1, 1}, 2);
  expect_death_to_be_told("exchange", {0, 1, 1}, 0);
}
TEST_F(CommNodes, ADeathWhileANodeSharesMemoryIsToldToAll) {
  expect_death_to_be_told("share", {0, 1, 1, 0}, 1);
  expect_death_to_be_told("share", {0, 1, 1, 0}, 2);
}

TEST_F(CommNodes, AReasonIsToldInsteadOfADeath) {
  for (const int victim : {0, 1, 3}) {
    const auto ranks = start_joined("abort", {0, 0, 1, 1}, {{"VICTIM", std::to_string(victim)}});
    RankProcess& one = *ranks[static_cast<size_t>(victim)];
    for (RankProcess* rank : ranks) {
      if (rank == &one) continue;
      const auto failure = rank->expect_error(2 * kSecond);
      EXPECT_EQ(failure.code, Code::kCommAborted);
      EXPECT_EQ(failure.message, name(victim, one) + " gave up: the disk is full");
    }
  }
}

TEST_F(CommNodes, CallsOutOfOrderOnDifferentNodesAreNamedOnAll) {
  const auto ranks = start_joined("barrier, late rank exchanges", {0, 0, 1, 1}, {{"VICTIM", "3"}});
  for (RankProcess* rank : ranks) {
    const auto failure = rank->expect_error(5 * kSecond);
    EXPECT_EQ(failure.code, Code::kCommProtocol);
    EXPECT_THAT(failure.message,
                AllOf(HasSubstr("exchange"), HasSubstr("barrier"), HasSubstr(name(3, *ranks[3]))));
  }
}

TEST_F(CommNodes, ABarrierThatTimesOutNamesWhoIsMissingOnAnyNode) {
  for (const int victim : {0, 1, 3}) {
    SCOPED_TRACE(fmt::format("rank {} is missing", victim));
    const auto ranks = start_joined("barrier", {0, 0, 1, 1},
                                    {{"VICTIM", std::to_string(victim)}, {"WAIT_MS", "1000"}});
    for (RankProcess* rank : ranks) {
      if (rank == ranks[static_cast<size_t>(victim)]) continue;
      const auto failure = rank->expect_error(4 * kSecond);
      EXPECT_EQ(failure.code, Code::kCommTimeout);
      EXPECT_EQ(failure.rank, victim);
      EXPECT_THAT(failure.message,
                  testing::StartsWith(name(victim, *ranks[static_cast<size_t>(victim)]) +
                                      " did not arrive at a barrier within the deadline of rank "));
    }
  }
}

TEST_F(CommNodes, AShortStopIsNoFault) {
  const auto ranks = start_joined("barriers", {0, 0, 1, 1}, {{"PEER_MS", "3000"}});
  for (const size_t stopped : {size_t{0}, size_t{3}}) {
    ranks[1]->expect("passed");
    ranks[stopped]->signal(SIGSTOP);
    int status = 0;
    waitpid(ranks[stopped]->pid(), &status, WUNTRACED);  // it has stopped
    // What is tested is that a stop of this length is none: there is nothing to wait for.
    usleep(1'000'000);
    ranks[stopped]->signal(SIGCONT);
    for (int i = 0; i < 2000; ++i) ranks[1]->expect("passed");
  }
}

TEST_F(CommNodes, ARankThatIsStoppedTooLongIsNamedAndHearsItAfterwards) {
  const auto ranks = start_joined("barriers", {0, 0, 1, 1}, {{"PEER_MS", "3000"}});
  for (RankProcess* rank : ranks) rank->expect("passed");
  ranks[3]->signal(SIGSTOP);
  const std::string message = name(3, *ranks[3]) + " has been silent for 3 s";
  expect_all_to_fail({ranks[0], ranks[1], ranks[2]}, Code::kCommPeerLost, message, 7 * kSecond);
  ranks[3]->signal(SIGCONT);
  expect_all_to_fail({ranks[3]}, Code::kCommPeerLost, message, 2 * kSecond);
}

TEST_F(CommNodes, ADeathWhileJoiningIsTold) {
  RankProcess& first = start("leave", 0, {0, 1, 1});
  RankProcess& second = start("leave", 1, {0, 1, 1});
  first.expect("log rank 0: met rank 1");
  const std::string dead = name(1, second);
  second.kill_and_wait();
  const auto failure = first.expect_error(2 * kSecond);
  EXPECT_EQ(failure.code, Code::kCommPeerLost);
  EXPECT_EQ(failure.message, dead + " died while joining");
}

TEST_F(CommNodes, ARankThatNeverComesIsNamed) {
  for (const int rank : {0, 1, 3}) start("leave", rank, {0, 0, 1, 1}, {{"JOIN_MS", "1500"}});
  for (RankProcess& rank : processes_) {
    const auto failure = rank.expect_error(5 * kSecond);
    EXPECT_EQ(failure.code, Code::kCommTimeout);
    EXPECT_THAT(failure.message,
                HasSubstr("rank 2 did not join within the deadline: seen 0, 1, 3"));
  }
}

TEST_F(CommNodes, ARankThatIsThereTwiceOnTwoNodesIsNamed) {
  RankProcess& zero = start("leave", 0, {0, 1, 2});
  RankProcess& one = start("leave", 1, {0, 1, 2});
  RankProcess& other = start("leave", 1, {0, 2, 1});
  for (RankProcess* rank : {&zero, &one, &other}) {
    const auto failure = rank->expect_error();
    EXPECT_EQ(failure.code, Code::kMismatch);
    EXPECT_EQ(failure.rank, 1);
    EXPECT_EQ(failure.message, fmt::format("rank 1 is there twice: pid {1} on host {0} and pid {2} "
                                           "on host {0}",
                                           host_name(), std::min(one.pid(), other.pid()),
                                           std::max(one.pid(), other.pid())));
  }
}

TEST_F(CommNodes, DifferentWorldSizesAreNamed) {
  RankProcess& zero = start("leave", 0, {0, 1});
  RankProcess& two = start("leave", 2, {0, 1, 2});
  expect_all_to_fail(
      {&zero, &two}, Code::kMismatch,
      fmt::format("{} was started with a world size of 2, {} with 3", name(0, zero), name(2, two)));
}

TEST_F(CommNodes, DifferentConfigurationsAreNamed) {
  RankProcess& zero = start("leave", 0, {0, 1}, {{"CONFIGURATION", "isa amx"}});
  RankProcess& one = start("leave", 1, {0, 1}, {{"CONFIGURATION", "isa avx2"}});
  expect_all_to_fail({&zero, &one}, Code::kMismatch,
                     fmt::format("{} was started with configuration 'isa amx', {} with 'isa avx2'",
                                 name(0, zero), name(1, one)));
}

TEST_F(CommNodes, TheSameLocalRankTwiceOnANodeIsNamed) {
  const Variables clash = {{"LOCAL_RANK", "0"}};
  const auto ranks = start_all("leave", {0, 1, 1}, clash);
  expect_all_to_fail(
      ranks, Code::kMismatch,
      fmt::format("{} and {} both have local rank 0", name(1, *ranks[1]), name(2, *ranks[2])));
}

// As two pods that share the host's network.
TEST_F(CommNodes, WhatTheLauncherTakesForTwoNodesIsOneMachineAndCanBeSplit) {
  const Variables unnamed = {{"AMXTRAIN_NODE_ID", ""}};
  const auto ranks = start_all("leave", {0, 1}, unnamed);
  for (RankProcess* rank : ranks) {
    const auto failure = rank->expect_error();
    EXPECT_EQ(failure.code, Code::kMismatch);
    EXPECT_THAT(failure.message,
                AllOf(HasSubstr("both have local rank 0"), HasSubstr("AMXTRAIN_NODE_ID")));
  }
}

TEST_F(CommNodes, WhatTheLauncherSaysOtherwiseIsNoted) {
  RankProcess& zero = start("leave", 0, {0, 1}, {{"AMXTRAIN_NODE_ID", "same"}});
  RankProcess& one = start("leave", 1, {0, 0}, {{"AMXTRAIN_NODE_ID", "same"}});
  zero.expect(
      "log rank 0: the launcher says local rank 0 of 1; by what shares this machine it is 0 of 2");
  EXPECT_EQ(one.expect("joined"), "joined 1 of 2 on node 0 of 1");
}

// --- Who is there, and what lies in the store ---

// As torchrun's agent keeps its store over restarts.
class CommNodesWithAgent : public CommNodes {
 protected:
  CommNodesWithAgent() {
    auto server = TcpStoreServer::start(host_, kPort);
    EXPECT_TRUE(server);
    agent_ = std::move(*server);
    auto store = TcpStoreClient::connect(host_, kPort, Deadline::after(kPatience));
    EXPECT_TRUE(store);
    store_ = std::move(*store);
  }
  void leave_entry(const Entry& entry) {
    const auto count = store_->add("/amxtrain/test/entries", 1, Deadline::after(kPatience));
    ASSERT_TRUE(count);
    ASSERT_TRUE(store_->set(fmt::format("/amxtrain/test/entry/{}", *count), entry_text(entry),
                            Deadline::after(kPatience)));
  }
  Entry entry_of(int rank, int world, const std::string& address) const {
    Entry entry;
    entry.rank = rank;
    entry.world_size = world;
    entry.pid = 7;
    entry.protocol = kProtocolVersion;
    entry.nonce = {{7, static_cast<uint64_t>(rank)}};
    entry.machine = "other";
    entry.host = "elsewhere";
    entry.build = "x";
    entry.address = address;
    return entry;
  }
  // What the n-th entry says.
  Entry read_entry(int number) {
    auto text =
        store_->get(fmt::format("/amxtrain/test/entry/{}", number), Deadline::after(kPatience));
    EXPECT_TRUE(text);
    return parse_entry(*text).value_or(Entry());
  }
  Descriptor listen_here(Address* bound) const {
    auto listener = listen_tcp(resolve(host_, 0)->front(), bound);
    EXPECT_TRUE(listener);
    return std::move(*listener);
  }
  const Variables agent_variables_ = {{"AGENT", "1"}};
  std::unique_ptr<TcpStoreServer> agent_;
  std::unique_ptr<TcpStoreClient> store_;
};

TEST_F(CommNodesWithAgent, EntriesOfKilledAttemptsAreNotUsed) {
  const Layout layout = {0, 1, 2};
  for (int attempt = 0; attempt < 3; ++attempt) {
    RankProcess& zero = start("leave", 0, layout, agent_variables_);
    RankProcess& one = start("leave", 1, layout, agent_variables_);
    zero.expect("log rank 0: met rank 1");
    one.kill_and_wait();
    zero.kill_and_wait();
  }
  for (RankProcess* rank : start_joined("barrier", layout, {{"AGENT", "1"}, {"VICTIM", "0"}}))
    rank->kill_and_wait();
  for (RankProcess* rank : start_all("leave", layout, agent_variables_)) rank->expect("done");
}

// The port of a dead rank may be anybody's by now.
TEST_F(CommNodesWithAgent, AnotherProgramAtAStaleAddressIsNotTakenForARank) {
  Address bound;
  const Descriptor silent = listen_here(&bound);
  leave_entry(entry_of(0, 2, bound.text));
  auto other = TcpStoreServer::start(own_loopback(), kPort);
  leave_entry(entry_of(0, 2, fmt::format("{}:{}", host_, kPort)));  // the store itself
  leave_entry(entry_of(1, 2, "127.0.0.1:1"));
  for (RankProcess* rank : start_all("leave", {0, 1}, agent_variables_)) rank->expect("done");
}

TEST_F(CommNodesWithAgent, WhoeverAcceptsAndNeverAnswersIsNamedAtTheDeadline) {
  Address bound;
  const Descriptor silent = listen_here(&bound);
  RankProcess& one = start("leave", 1, {0, 1}, {{"AGENT", "1"}, {"JOIN_MS", "1500"}});
  Entry entry = entry_of(0, 2, bound.text);
  entry.machine = read_entry(1).machine;  // loopback is right
  entry.node = "node-0";
  leave_entry(entry);
  const auto failure = one.expect_error();
  EXPECT_EQ(failure.code, Code::kCommTimeout);
  EXPECT_EQ(failure.rank, 0);
  EXPECT_THAT(failure.message, AllOf(HasSubstr("rank 0 did not join"),
                                     HasSubstr("rank 0 (pid 7) is there and does not answer")));
}

TEST_F(CommNodesWithAgent, WhoRefusesIsNamedWithTheAddressAtTheDeadline) {
  Address bound;
  listen_here(&bound).reset();
  leave_entry(entry_of(0, 2, bound.text));
  const auto failure =
      start("leave", 1, {0, 1}, {{"AGENT", "1"}, {"JOIN_MS", "1000"}}).expect_error();
  EXPECT_EQ(failure.code, Code::kCommTimeout);
  EXPECT_THAT(failure.message, HasSubstr("rank 0 did not join"));
}

TEST_F(CommNodesWithAgent, AnAddressThatOtherMachinesDoNotReachIsRefusedByName) {
  leave_entry(entry_of(1, 2, "127.0.1.1:4711"));
  const auto failure = start("leave", 0, {0, 1}, agent_variables_).expect_error();
  EXPECT_EQ(failure.code, Code::kMismatch);
  EXPECT_EQ(failure.rank, 1);
  EXPECT_THAT(failure.message,
              AllOf(HasSubstr("rank 1 (pid 7 on host elsewhere)"), HasSubstr("127.0.1.1"),
                    HasSubstr("AMXTRAIN_SOCKET_IFNAME"), HasSubstr("MASTER_ADDR")));
}

TEST_F(CommNodesWithAgent, StrangersAtAControlPortAreDroppedAndCounted) {
  RankProcess& zero = start("leave", 0, {0, 1}, agent_variables_);
  const auto address = parse_address(read_entry(1).address);
  ASSERT_TRUE(address);
  std::vector<Descriptor> strangers;
  std::string huge = encode(Message{});
  huge.replace(kMessageHeaderBytes - 8, 8, std::string(7, '\xFF') + '\x7F');
  std::string hello = encode(Message{});
  const std::string noise(100'000, '\xA5');
  for (const std::string& bytes : {std::string("GET / HTTP/1.1\r\n\r\n"), noise, huge, hello,
                                   hello.substr(0, 20), std::string()}) {
    auto socket = connect_tcp(*address, Deadline::after(kPatience));
    ASSERT_TRUE(socket) << socket.error().message();
    (void)send_all(socket->get(), bytes, Deadline::after(kSecond));
    strangers.push_back(std::move(*socket));
  }
  // Far more than are held at a time.
  for (int i = 0; i < 600; ++i) {
    auto socket = connect_tcp(*address, Deadline::after(kPatience));
    ASSERT_TRUE(socket) << socket.error().message();
    strangers.push_back(std::move(*socket));
  }
  RankProcess& one = start("leave", 1, {0, 1}, agent_variables_);
  EXPECT_EQ(zero.expect("log rank 0: 6"),
            fmt::format("log rank 0: 606 connections of strangers dropped at {}", address->text));
  zero.expect("done");
  one.expect("done");
}

// --- The secret ---

class CommNodesSecret : public CommNodesWithAgent {
 protected:
  ~CommNodesSecret() override {
    for (const std::string& path : files_) unlink(path.c_str());
  }
  std::string secret_file(const std::string& secret) {
    const std::string path =
        fmt::format("{}/secret-{}-{}", testing::TempDir(), getpid(), files_.size());
    std::ofstream(path) << secret;
    chmod(path.c_str(), 0600);
    files_.push_back(path);
    return path;
  }
  Variables with(const std::string& path) const {
    return {{"AGENT", "1"}, {"AMXTRAIN_SECRET_FILE", path}};
  }
  std::vector<std::string> files_;
};

TEST_F(CommNodesSecret, RanksThatShareOneMeet) {
  const std::string one = secret_file("a secret of some length"),
                    copy = secret_file("a secret of some length\n");
  for (const Variables& variables :
       {with(one), Variables{{"AMXTRAIN_SECRET_FILE", one}, {"MASTER_ADDR", own_loopback()}}}) {
    RankProcess& zero = start("leave", 0, {0, 1, 1}, variables);
    RankProcess& first = start("leave", 1, {0, 1, 1}, variables);
    Variables others = variables;
    others["AMXTRAIN_SECRET_FILE"] = copy;
    RankProcess& second = start("leave", 2, {0, 1, 1}, others);
    for (RankProcess* rank : {&zero, &first, &second}) rank->expect("done");
  }
}

TEST_F(CommNodesSecret, AWrongOneIsNamedOnBothSides) {
  RankProcess& zero = start("leave", 0, {0, 1}, with(secret_file("a secret of some length")));
  RankProcess& one = start("leave", 1, {0, 1}, with(secret_file("another secret of a length")));
  expect_all_to_fail({&zero, &one}, Code::kMismatch,
                     fmt::format("{} and {} hold different secrets (AMXTRAIN_SECRET_FILE)",
                                 name(0, zero), name(1, one)));
}

TEST_F(CommNodesSecret, AMissingOneIsNamedOnBothSides) {
  for (const int without : {0, 1}) {
    const Variables variables = with(secret_file("a secret of some length"));
    Layout layout = {0, 1};
    RankProcess& zero = start("leave", 0, layout, without == 0 ? agent_variables_ : variables);
    RankProcess& one = start("leave", 1, layout, without == 1 ? agent_variables_ : variables);
    const std::string has = without == 0 ? name(1, one) : name(0, zero);
    const std::string lacks = without == 0 ? name(0, zero) : name(1, one);
    expect_all_to_fail(
        {&zero, &one}, Code::kMismatch,
        fmt::format("{} has a secret (AMXTRAIN_SECRET_FILE), {} has none", has, lacks));
  }
}

TEST_F(CommNodesSecret, AFileThatOthersReadIsRefused) {
  const std::string path = secret_file("a secret of some length");
  chmod(path.c_str(), 0644);
  const auto failure = start("leave", 0, {0, 1}, with(path)).expect_error();
  EXPECT_EQ(failure.code, Code::kInvalidArgument);
  EXPECT_THAT(failure.message, AllOf(HasSubstr(path), HasSubstr("0644")));
}

// Rank 0 serves the store: who has no secret in common with it never gets to the others.
class CommNodesSecretStore : public CommNodesSecret {
 protected:
  // Where only strangers can be meant the other side must not end, but it says what it saw.
  static constexpr const char* kNoProof = "did not prove the secret (AMXTRAIN_SECRET_FILE)";
  Variables having(const std::string& path) const {
    return {{"MASTER_ADDR", store_host_}, {"AMXTRAIN_SECRET_FILE", path}, {"JOIN_MS", "20000"}};
  }
  const std::string store_host_ = own_loopback();
  const std::string secret_ = secret_file("a secret of some length");
};

TEST_F(CommNodesSecretStore, OneOnAnotherRankOnlyEndsBothAtOnce) {
  RankProcess& zero = start("leave", 0, {0, 1}, having(""));
  RankProcess& one = start("leave", 1, {0, 1}, having(secret_));
  expect_all_to_fail(
      {&zero, &one}, Code::kMismatch,
      fmt::format("{} has a secret (AMXTRAIN_SECRET_FILE), rank 0 has none", name(1, one)),
      10 * kSecond);
}

TEST_F(CommNodesSecretStore, WhoeverHasAnotherOrNoneEndsAtOnceAndRankZeroSaysSo) {
  const std::string wrong = secret_file("another secret of a length");
  for (const std::string& other : {wrong, std::string()}) {
    Variables variables = having(secret_);
    variables["JOIN_MS"] = "3000";
    RankProcess& zero = start("leave", 0, {0, 1}, variables);
    RankProcess& one = start("leave", 1, {0, 1}, having(other));
    const auto ended = one.expect_error(2 * kSecond);
    EXPECT_EQ(ended.code, Code::kMismatch);
    EXPECT_THAT(ended.message,
                HasSubstr(other.empty() ? "rank 0 asks for a secret, and this rank has none"
                                        : "rank 0 does not have the same secret as this rank"));
    EXPECT_THAT(zero.expect("log rank 0: refused", 2 * kSecond),
                AllOf(HasSubstr("127."), HasSubstr(kNoProof)));
    const auto late = zero.expect_error();
    EXPECT_EQ(late.code, Code::kCommTimeout);
    EXPECT_THAT(late.message,
                AllOf(HasSubstr("rank 1 did not join"),
                      HasSubstr("1 connection was refused because it did not prove the secret "
                                "(AMXTRAIN_SECRET_FILE), the last from 127.")));
  }
}

TEST_F(CommNodesSecretStore, AStrangerWithoutItEndsNothing) {
  RankProcess& zero = start("leave", 0, {0, 1}, having(secret_));
  TcpStoreClient::Options wrong;
  wrong.secret = Secret("another secret of a length");
  for (const auto& options : {TcpStoreClient::Options(), wrong}) {
    const auto stranger =
        TcpStoreClient::connect(store_host_, kPort, Deadline::after(kPatience), options);
    ASSERT_FALSE(stranger);
    EXPECT_EQ(stranger.error().code(), Code::kMismatch);
  }
  RankProcess& one = start("leave", 1, {0, 1}, having(secret_));
  zero.expect("done");
  one.expect("done");
}

TEST_F(CommNodesSecretStore, AFileThatCannotBeReadEndsBothAtOnceWhereThatNeedsNoProof) {
  const std::string open_to_all = secret_file("a secret of some length"), empty = secret_file("");
  chmod(open_to_all.c_str(), 0644);
  for (const std::string& bad : {open_to_all, empty, std::string("/no/such/file")}) {
    for (const int rank : {0, 1}) {
      SCOPED_TRACE(fmt::format("{} on rank {}", bad, rank));
      // Rank 0 can tell whoever comes; rank 1 can tell a rank 0 that asks for no secret.
      const Variables others = having(rank == 0 ? secret_ : "");
      RankProcess& zero = start("leave", 0, {0, 1}, rank == 0 ? having(bad) : others);
      RankProcess& one = start("leave", 1, {0, 1}, rank == 1 ? having(bad) : others);
      RankProcess& has_it = rank == 0 ? zero : one;
      RankProcess& hears_it = rank == 0 ? one : zero;
      const auto own = has_it.expect_error(10 * kSecond),
                 heard = hears_it.expect_error(10 * kSecond);
      EXPECT_THAT(own.message,
                  HasSubstr(fmt::format("secret file '{}' (AMXTRAIN_SECRET_FILE)", bad)));
      EXPECT_EQ(heard.rank, rank);
      EXPECT_EQ(heard.code, own.code);
      EXPECT_THAT(heard.message,
                  AllOf(HasSubstr(fmt::format("rank {} (pid {}", rank, has_it.pid())),
                        HasSubstr("gave up"), HasSubstr(own.message)));
    }
  }
}

// --- Machines with links between them ---

class CommNetwork : public CommNodes {
 protected:
  void make(int nodes) {
    network_.emplace(nodes);
    if (!network_->reason().empty()) GTEST_SKIP() << network_->reason();
  }
  Variables on_network(const Variables& more = {}) const {
    Variables variables = {{"MASTER_ADDR", NetworkNodes::address(0)}, {"AMXTRAIN_NODE_ID", ""}};
    for (const auto& [name, value] : more) variables[name] = value;
    return variables;
  }
  std::vector<RankProcess*> start_there(const std::string& what, const Layout& layout,
                                        const Variables& more = {}) {
    std::vector<RankProcess*> ranks;
    for (int rank = 0; rank < static_cast<int>(layout.size()); ++rank) {
      ranks.push_back(&start(what, rank, layout, on_network(more),
                             {network_->path(layout[static_cast<size_t>(rank)]), {}}));
    }
    return ranks;
  }
  std::optional<NetworkNodes> network_;
};

TEST_F(CommNetwork, NodesMeetByTheirAddresses) {
  make(2);
  if (IsSkipped()) return;
  const auto ranks = start_there("exchanges", {0, 1, 0, 1});
  EXPECT_THAT(ranks[3]->expect("log rank 3 connected"),
              AllOf(HasSubstr("10.91.0.1"), HasSubstr("10.91.0.2")));
  EXPECT_EQ(ranks[3]->expect("joined"), "joined 1 of 2 on node 1 of 2");
  for (int i = 0; i < 5; ++i) {
    for (RankProcess* rank : ranks) rank->expect("passed");
  }
}

TEST_F(CommNetwork, AnInterfaceCanBeNamed) {
  make(2);
  if (IsSkipped()) return;
  for (RankProcess* rank : start_there("leave", {0, 1}, {{"AMXTRAIN_SOCKET_IFNAME", "eth0"}}))
    rank->expect("done");
  const auto failure =
      start_there("leave", {0, 1}, {{"AMXTRAIN_SOCKET_IFNAME", "eth7"}})[0]->expect_error();
  EXPECT_EQ(failure.code, Code::kNotFound);
  EXPECT_THAT(failure.message, AllOf(HasSubstr("eth7"), HasSubstr("eth0")));
}

TEST_F(CommNetwork, ADeathIsToldOverTheWire) {
  make(3);
  if (IsSkipped()) return;
  const auto ranks = start_there("barrier", {0, 1, 1, 2}, {{"VICTIM", "2"}});
  for (RankProcess* rank : ranks) rank->expect("joined");
  const std::string lost = name(2, *ranks[2]);
  const Deadline end = Deadline::after(2 * kSecond);
  ranks[2]->kill_and_wait();
  for (const size_t rank : {size_t{0}, size_t{1}, size_t{3}}) {
    const auto failure = ranks[rank]->expect_error(end.left_ns());
    EXPECT_EQ(failure.code, Code::kCommPeerLost);
    EXPECT_THAT(failure.message, HasSubstr(lost + " died"));
  }
}

// Half open: nothing tells either side but the silence.
TEST_F(CommNetwork, ALinkThatIsCutIsSilenceOnBothSides) {
  make(2);
  if (IsSkipped()) return;
  const auto ranks = start_there("barriers", {0, 0, 1, 1}, {{"PEER_MS", "1500"}});
  for (RankProcess* rank : ranks) rank->expect("passed");
  network_->cut_off(1);
  const Deadline end = Deadline::after(5 * kSecond);
  for (size_t rank = 0; rank < 4; ++rank) {
    const auto failure = ranks[rank]->expect_error(end.left_ns());
    EXPECT_EQ(failure.code, Code::kCommPeerLost);
    EXPECT_THAT(failure.message, HasSubstr("has been silent for 1500 ms"));
    EXPECT_EQ(failure.rank < 2, rank >= 2) << "rank " << rank << ": " << failure.message;
  }
}

TEST_F(CommNetwork, AFlapOfALinkIsNoFault) {
  make(2);
  if (IsSkipped()) return;
  const auto ranks = start_there("barriers", {0, 1}, {{"PEER_MS", "5000"}});
  for (RankProcess* rank : ranks) rank->expect("passed");
  network_->cut_off(1);
  usleep(1'000'000);  // the length of the flap
  network_->reconnect(1);
  for (int i = 0; i < 2000; ++i) ranks[0]->expect("passed");
}

TEST_F(CommNetwork, AHostNameThatLeadsToLoopbackIsRefusedByName) {
  make(2);
  if (IsSkipped()) return;
  const std::string hosts = fmt::format("{}/hosts-{}", testing::TempDir(), getpid());
  std::ofstream(hosts) << "127.0.0.1 localhost\n127.0.1.1 first-node\n";
  RankProcess& zero = start("leave", 0, {0, 1}, on_network({{"MASTER_ADDR", "first-node"}}),
                            {network_->path(0), hosts});
  const auto failure = zero.expect_error();
  EXPECT_EQ(failure.code, Code::kInvalidArgument);
  EXPECT_THAT(failure.message,
              AllOf(HasSubstr("'first-node'"), HasSubstr("127.0.1.1"),
                    HasSubstr("AMXTRAIN_SOCKET_IFNAME"), HasSubstr("MASTER_ADDR")));
  unlink(hosts.c_str());
}

TEST_F(CommNetwork, RankZeroThatIsNotReachedIsNamedAtTheDeadline) {
  make(2);
  if (IsSkipped()) return;
  network_->cut_off(0);
  const auto failure =
      start_there("leave", {0, 1}, {{"JOIN_MS", "1500"}})[1]->expect_error(10 * kSecond);
  EXPECT_EQ(failure.code, Code::kTimeout);
  EXPECT_THAT(failure.message, HasSubstr("10.91.0.1:29500"));
}

// --- Many ---

class CommMany : public CommNodes {
 protected:
  void expect_to_join_within(const Layout& layout, int64_t ns) {
    const int64_t begin = monotonic_ns();
    const auto ranks = start_joined("leave", layout);
    const int64_t joined = monotonic_ns() - begin;
    for (RankProcess* rank : ranks) rank->expect("done");
    RecordProperty("milliseconds", static_cast<int>(joined / 1'000'000));
    EXPECT_LT(joined, ns);
  }
};

TEST_F(CommMany, SixtyFourRanksOfOneNodeMeet) {
  expect_to_join_within(Layout(64, 0), 20 * kSecond);
}

TEST_F(CommMany, SixtyFourRanksOnFourNodesMeet) {
  Layout layout;
  for (int rank = 0; rank < 64; ++rank) layout.push_back(rank / 16);
  expect_to_join_within(layout, 20 * kSecond);
}

TEST_F(CommMany, RandomKillsEndEveryRankAndLeaveNothing) {
  const char* const text = std::getenv("AMXT_KILLS");
  const int rounds = text != nullptr ? std::atoi(text) : 12;
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::vector<Layout> layouts = {{0, 1}, {0, 0, 1, 1}, {0, 1, 0, 2, 1}, {0, 0, 0}};
  for (int round = 0; round < rounds; ++round) {
    const Layout& layout = layouts[random() % layouts.size()];
    const auto ranks = start_all("exchanges", layout, {{"JOIN_MS", "3000"}});
    const size_t victim = random() % ranks.size();
    const bool has_joined = random() % 4 != 0;
    if (has_joined) ranks[victim]->expect("joined");
    usleep(static_cast<useconds_t>(random() % 30'000));  // anywhere
    ranks[victim]->kill_and_wait();
    for (RankProcess* rank : ranks) {
      if (rank == ranks[victim]) continue;
      const auto failure = rank->expect_error(10 * kSecond);
      EXPECT_NE(failure.code, Code::kOk);
      // Who dies before anyone has met it is one that does not come; without rank 0 there is no store.
      if (has_joined) {
        EXPECT_EQ(failure.code, Code::kCommPeerLost) << failure.message;
      }
      if (has_joined || victim != 0) {
        EXPECT_EQ(failure.rank, static_cast<int>(victim)) << failure.message;
      }
      rank->wait();
    }
    processes_.clear();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace amxt::comm::test

int main(int argc, char** argv) {
  return amxt::comm::test::run_tests_or_rank(argc, argv, amxt::comm::test::play);
}
