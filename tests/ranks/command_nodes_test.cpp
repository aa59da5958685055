// The command over several nodes: training, checkpoints, resume, evaluation and deaths, by node ids on one machine and by real networks.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "command.h"
#include "support/network_nodes.h"

namespace amxt::test {
namespace {

using ::testing::HasSubstr;

class CommandNodes : public CommandTest {
 protected:
  // The rank's variables where each rank's node is given by an id.
  Variables variables(const std::vector<int>& nodes, int rank, const std::string& address) const {
    Variables all = rank_variables(rank, static_cast<int>(nodes.size()), address);
    int local = 0, local_size = 0;
    for (int other = 0; other < static_cast<int>(nodes.size()); ++other) {
      const bool same = nodes[static_cast<size_t>(other)] == nodes[static_cast<size_t>(rank)];
      local += same && other < rank;
      local_size += same;
    }
    all["LOCAL_RANK"] = std::to_string(local);
    all["LOCAL_WORLD_SIZE"] = std::to_string(local_size);
    all["AMXTRAIN_NODE_ID"] = fmt::format("node{}", nodes[static_cast<size_t>(rank)]);
    return all;
  }
  std::vector<std::unique_ptr<Process>> start(const std::vector<int>& nodes,
                                              const Arguments& arguments) {
    const std::string address = own_loopback();
    std::vector<std::unique_ptr<Process>> processes;
    for (int rank = 0; rank < static_cast<int>(nodes.size()); ++rank) {
      processes.push_back(std::make_unique<Process>(
          Arguments{kCommand} + arguments,
          ProcessOptions{variables(nodes, rank, address), directory_.path(), {}}));
    }
    return processes;
  }
  void expect_success(const std::vector<int>& nodes, const Arguments& arguments) {
    for (const auto& process : start(nodes, arguments)) {
      const Finished finished = process->wait(kPatienceSeconds);
      EXPECT_EQ(finished.code, 0) << finished;
    }
  }
  std::vector<double> losses(const std::string& output) const {
    std::vector<double> values;
    for (const Json& line : metrics_of(path(output + ".jsonl"))) values.push_back(line.at("loss"));
    return values;
  }
  void expect_same_losses(const std::string& output, const std::string& expected) const {
    const std::vector<double> values = losses(output), wanted = losses(expected);
    ASSERT_EQ(values.size(), wanted.size()) << output;
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_NEAR(values[i], wanted[i], 1e-5 * wanted[i]) << output << ", step " << i + 1;
  }

  // In float32, at a rate at which a job does not make mountains of the last bits.
  Arguments exact(const std::string& output, const Arguments& more) {
    Arguments all = train_to(output, more + fp32_);
    *std::find(all.begin(), all.end(), "0.01") = "0.001";
    return all;
  }

  const Arguments fp32_ = {"--compute-dtype", "float32", "--threads", "1"};
};

TEST_F(CommandNodes, FiftyStepsHaveTheLossesOfOneNode) {
  const Arguments fifty = {"--steps", "50", "--save-steps", "0"};
  ASSERT_EQ(amxtrain(exact("one", fifty + Arguments{"--accumulate", "4"})).code, 0);
  expect_success({0, 1}, exact("two", fifty + Arguments{"--accumulate", "2"}));
  expect_same_losses("two", "one");
  expect_success({0, 0, 1, 1}, exact("four", fifty + Arguments{"--accumulate", "1"}));
  expect_same_losses("four", "one");
  const Json step = metrics_of(path("two.jsonl"))[1];
  int64_t bytes = 0;
  for (const char* name : {"all_gather_weights", "all_to_all_embedding", "reduce_scatter_gradients",
                           "all_gather_records"}) {
    const Json& one = step.at("traffic").at("gloo").at(name);
    EXPECT_GT(one.at("bytes").get<int64_t>(), 0) << name;
    EXPECT_GE(one.at("wait_seconds").get<double>(), 0) << name;
    bytes += one.at("bytes").get<int64_t>();
  }
  EXPECT_EQ(step.at("wire_bytes").get<int64_t>(), bytes);
}

TEST_F(CommandNodes, FourNodesOfTwoTrainSaveResumeAndExport) {
  const Arguments job = {"--steps", "8", "--save-steps", "4", "--accumulate", "1"};
  const std::vector<int> nodes = {0, 0, 1, 1, 2, 2, 3, 3};
  expect_success(nodes, exact("whole", job));
  const Finished verified = amxtrain({"verify", path("whole/latest")});
  EXPECT_EQ(verified.code, 0) << verified;
  // The checkpoint in the middle, resumed on other nodes: one, and two of unequal size.
  for (const std::vector<int>& others :
       {std::vector<int>(8), std::vector<int>{0, 0, 0, 1, 1, 1, 1, 1}}) {
    const std::string output = "resumed" + std::to_string(others.back());
    fs::create_directories(path(output));
    fs::copy(path("whole/step-000004"), path(output + "/step-000004"), fs::copy_options::recursive);
    expect_success(others, exact(output, job + Arguments{"--resume", "latest"}));
    const std::vector<double> rest = losses(output), whole = losses("whole");
    ASSERT_EQ(rest.size(), 4u);
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(rest[i], whole[i + 4], 1e-5 * whole[i + 4]);
  }
  const Finished evaluated = amxtrain(
      Arguments{"eval", "--model", path("whole/final"), "--data", data_, "--seq-len", "16"} +
      fp32_);
  EXPECT_EQ(evaluated.code, 0) << evaluated;
}

TEST_F(CommandNodes, AKilledRankEndsAllAndIsNamed) {
  for (const int victim : {0, 3}) {
    SCOPED_TRACE(victim);
    const std::vector<int> nodes = {0, 0, 1, 1};
    auto processes = start(nodes, train_to(fmt::format("o{}", victim),
                                           {"--steps", "1000000", "--save-steps", "2", "--schedule",
                                            "constant", "--accumulate", "1"}));
    ASSERT_TRUE(processes[0]->wait_for("saved", 2));
    const double begin = seconds_now();
    processes[static_cast<size_t>(victim)]->signal(SIGKILL);
    for (int rank = 0; rank < 4; ++rank) {
      if (rank == victim) continue;
      const Finished finished = processes[static_cast<size_t>(rank)]->wait(30);
      EXPECT_LT(
          seconds_now() - begin,
          nodes[static_cast<size_t>(rank)] == nodes[static_cast<size_t>(victim)] ? 2.0 : 10.0);
      EXPECT_NE(finished.code, 0);
      EXPECT_THAT(finished.err,
                  HasSubstr(fmt::format("rank {} (pid {}", victim,
                                        processes[static_cast<size_t>(victim)]->pid())))
          << finished;
      EXPECT_EQ(error_lines(finished.err).size(), 1u) << "said once: " << finished;
    }
    const Finished verified = amxtrain({"verify", path(fmt::format("o{}/latest", victim))});
    EXPECT_EQ(verified.code, 0) << verified;
  }
}

// AMXTRAIN_TEST_KILLS sets how many; a rank dies at any moment from its start to its saving.
TEST_F(CommandNodes, RandomKillsEndAllAndLeaveNothingBehind) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const char* given = std::getenv("AMXTRAIN_TEST_KILLS");
  const int rounds = given == nullptr ? 8 : std::atoi(given);
  const std::set<std::string> shm = names_in("/dev/shm");
  const std::vector<int> nodes = {0, 0, 1, 1};
  const Arguments job = train_to("o", {"--steps", "1000000", "--save-steps", "3", "--schedule",
                                       "constant", "--accumulate", "1", "--resume", "latest"});
  for (int round = 0; round < rounds; ++round) {
    SCOPED_TRACE(fmt::format("round {}", round));
    auto processes = start(nodes, job);
    const size_t victim = random() % nodes.size();
    // A rank that dies before it has met the others is waited for until their deadline.
    ASSERT_TRUE(processes[victim]->wait_for("connected to 4 of 4"));
    // Not synchronisation: the moment is what is random.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 400'000));
    processes[victim]->signal(SIGKILL);
    for (size_t rank = 0; rank < nodes.size(); ++rank) {
      const Finished finished = processes[rank]->wait(40);
      if (rank == victim) continue;
      EXPECT_EQ(finished.code, 1) << finished;
      EXPECT_FALSE(error_lines(finished.err).empty()) << finished;
    }
    if (fs::exists(path("o/latest"))) {
      const Finished verified = amxtrain({"verify", path("o/latest")});
      EXPECT_EQ(verified.code, 0) << verified;
    }
  }
  EXPECT_EQ(names_in("/dev/shm"), shm);
}

TEST_F(CommandNodes, ASignalToOneRankEndsAll) {
  auto processes = start({0, 1}, train_to("o", {"--steps", "1000000", "--save-steps", "2",
                                                "--schedule", "constant", "--accumulate", "1"}));
  ASSERT_TRUE(processes[0]->wait_for("saved", 2));
  processes[1]->signal(SIGTERM);
  EXPECT_EQ(processes[1]->wait(30).code, 128 + SIGTERM);
  const Finished other = processes[0]->wait(30);
  EXPECT_NE(other.code, 0) << other;
  EXPECT_THAT(other.err, HasSubstr("error: rank 1")) << other;
  const Finished verified = amxtrain({"verify", path("o/latest")});
  EXPECT_EQ(verified.code, 0) << verified;
}

// Machines with a network of their own between them: nothing is shared but the file system.
class CommandNetworkNodes : public CommandNodes {
 protected:
  void SetUp() override {
    if (!network_.reason().empty()) GTEST_SKIP() << network_.reason();
  }
  std::vector<std::unique_ptr<Process>> start_there(int nodes, int ranks,
                                                    const Arguments& arguments) {
    std::vector<std::unique_ptr<Process>> processes;
    for (int rank = 0; rank < nodes * ranks; ++rank) {
      const int node = rank / ranks;
      Variables all = rank_variables(rank, nodes * ranks, NetworkNodes::address(0));
      all["LOCAL_RANK"] = std::to_string(rank % ranks);
      all["LOCAL_WORLD_SIZE"] = std::to_string(ranks);
      processes.push_back(std::make_unique<Process>(
          Arguments{"nsenter", "--net=" + network_.path(node), kCommand} + arguments,
          ProcessOptions{all, directory_.path(), {}}));
    }
    return processes;
  }

  NetworkNodes network_{2};
};

TEST_F(CommandNetworkNodes, FiftyStepsHaveTheLossesOfOneNode) {
  const Arguments fifty = {"--steps", "50", "--save-steps", "0"};
  ASSERT_EQ(amxtrain(exact("one", fifty + Arguments{"--accumulate", "4"})).code, 0);
  for (const int ranks : {1, 2}) {
    const std::string output = fmt::format("two{}", ranks);
    const Arguments job =
        exact(output, fifty + Arguments{"--accumulate", std::to_string(2 / ranks)});
    for (const auto& process : start_there(2, ranks, job)) {
      const Finished finished = process->wait(kPatienceSeconds);
      EXPECT_EQ(finished.code, 0) << finished;
    }
    expect_same_losses(output, "one");
  }
}

TEST_F(CommandNetworkNodes, ACutCableEndsBothSidesByTheHeartbeat) {
  auto processes = start_there(2, 1,
                               train_to("o", {"--steps", "1000000", "--save-steps", "2",
                                              "--schedule", "constant", "--accumulate", "1"}));
  ASSERT_TRUE(processes[0]->wait_for("saved", 2));
  const double begin = seconds_now();
  network_.cut_off(1);
  for (int rank = 0; rank < 2; ++rank) {
    const Finished finished = processes[static_cast<size_t>(rank)]->wait(60);
    EXPECT_LT(seconds_now() - begin, 20) << "the heartbeat's deadline is 10 s";
    EXPECT_NE(finished.code, 0);
    EXPECT_THAT(finished.err, HasSubstr(fmt::format("rank {}", 1 - rank))) << finished;
  }
  const Finished verified = amxtrain({"verify", path("o/latest")});
  EXPECT_EQ(verified.code, 0) << verified;
}

// --- Strangers at the ports -------------------------------------------------------------------

// AMXTRAIN_TEST_ATTACK_SECONDS makes it longer.
double attack_seconds() {
  const char* const seconds = std::getenv("AMXTRAIN_TEST_ATTACK_SECONDS");
  return seconds != nullptr ? std::atof(seconds) : 2;
}

int64_t resident_kib(pid_t process) {
  const std::string status = contents(fmt::format("/proc/{}/status", process));
  const size_t at = status.find("VmRSS:");
  return at == std::string::npos ? 0 : std::atoll(status.c_str() + at + 6);
}

// The TCP addresses that a process listens at.
std::vector<sockaddr_in> listened_at(pid_t process) {
  std::set<std::string> inodes;
  std::error_code gone;
  for (const auto& file : fs::directory_iterator(fmt::format("/proc/{}/fd", process), gone)) {
    const std::string target = fs::read_symlink(file, gone).string();
    if (target.starts_with("socket:[")) inodes.insert(target.substr(8, target.size() - 9));
  }
  std::vector<sockaddr_in> found;
  std::istringstream table(contents(fmt::format("/proc/{}/net/tcp", process)));
  for (std::string line; std::getline(table, line);) {
    unsigned ip = 0, port = 0, state = 0, inode = 0;
    const int fields = std::sscanf(line.c_str(), " %*d: %x:%x %*x:%*x %x %*s %*s %*s %*s %*s %u",
                                   &ip, &port, &state, &inode);
    constexpr unsigned kListens = 0x0A;
    if (fields != 4 || state != kListens || inodes.count(std::to_string(inode)) == 0) continue;
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = ip;
    name.sin_port = htons(static_cast<uint16_t>(port));
    found.push_back(name);
  }
  return found;
}

// Noise, huge lengths and connections that say nothing, at every port of some processes.
class Strangers {
 public:
  explicit Strangers(uint64_t seed) : random_(seed) {}
  void attack(const std::vector<pid_t>& processes) {
    for (const pid_t process : processes) {
      for (const sockaddr_in& name : listened_at(process)) {
        for (int kind = 0; kind < 4; ++kind) visit(name, kind);
      }
    }
  }
  ~Strangers() {
    for (const int socket : held_) close(socket);
  }
  int64_t visits() const { return visits_; }

 private:
  void visit(const sockaddr_in& name, int kind) {
    const int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    connect(client, reinterpret_cast<const sockaddr*>(&name), sizeof(name));
    pollfd entry{client, POLLOUT, 0};
    if (poll(&entry, 1, 100) == 1 && (entry.revents & POLLERR) == 0) ++visits_;
    const std::string greeting("\x00\xce\xf7\x85\x3c", 5);  // of a store's client
    const std::string huge(16, '\xff');
    std::string bytes;
    if (kind == 0) bytes = noise();
    if (kind == 1) bytes = greeting + static_cast<char>(random_() % 20) + huge + noise();
    if (kind == 2) bytes = huge + noise();
    (void)send(client, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    held_.push_back(client);
    if (held_.size() < 300) return;
    close(held_.front());
    held_.pop_front();
  }
  std::string noise() {
    std::string bytes(random_() % 20'000, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random_());
    return bytes;
  }

  std::mt19937_64 random_;
  std::deque<int> held_;
  int64_t visits_ = 0;
};

TEST_F(CommandNodes, StrangersBeforeTheOthersComeDisturbNobodyAndTrainingHasNoPorts) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  const std::string address = own_loopback();
  const std::vector<int> nodes = {0, 1};
  const Arguments arguments = train_to("o", {"--steps", "1000000", "--save-steps", "2",
                                             "--schedule", "constant", "--accumulate", "1"});
  const auto start_rank = [&](int rank) {
    return std::make_unique<Process>(
        Arguments{kCommand} + arguments,
        ProcessOptions{variables(nodes, rank, address), directory_.path(), {}});
  };
  Strangers strangers(seed);
  const auto zero = start_rank(0);
  int64_t before = 0;
  for (const double end = seconds_now() + attack_seconds(); seconds_now() < end;) {
    strangers.attack({zero->pid()});
    if (strangers.visits() > 0 && before == 0) before = resident_kib(zero->pid());
    poll(nullptr, 0, 2);
  }
  EXPECT_GT(strangers.visits(), 100) << "its store and its control port were found";
  EXPECT_LT(resident_kib(zero->pid()) - before, 100 << 10) << "what it holds is bounded";
  const auto one = start_rank(1);
  ASSERT_TRUE(zero->wait_for("saved", 1));
  for (const auto* process : {zero.get(), one.get()}) {
    EXPECT_TRUE(listened_at(process->pid()).empty()) << "a port is open while it trains";
  }
  zero->signal(SIGTERM);
  EXPECT_NE(zero->wait(kPatienceSeconds).code, 0);
  EXPECT_NE(one->wait(kPatienceSeconds).code, 0);
}

TEST_F(CommandNodes, StrangersWhileAllPortsAreOpenEndTheStartByNameOrNotAtAll) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  int started = 0, refused = 0;
  const double end = seconds_now() + attack_seconds();
  do {
    auto processes =
        start({0, 1}, train_to(fmt::format("o{}", started + refused),
                               {"--steps", "2", "--save-steps", "0", "--connect-timeout", "30"}));
    Strangers strangers(seed + static_cast<uint64_t>(started + refused));
    const double begin = seconds_now();
    const std::vector<pid_t> pids = {processes[0]->pid(), processes[1]->pid()};
    while (!listened_at(pids[0]).empty() || seconds_now() < begin + 1.5) strangers.attack(pids);
    int failed = 0;
    for (const auto& process : processes) {
      const Finished finished = process->wait(kPatienceSeconds);
      if (finished.code == 0) continue;
      ++failed;
      EXPECT_EQ(error_lines(finished.err).size(), 1u) << finished;
    }
    EXPECT_TRUE(failed == 0 || failed == 2) << failed;
    ++(failed == 0 ? started : refused);
  } while (seconds_now() < end);
  std::printf("%d started under attack, %d were ended by a named error\n", started, refused);
}

TEST_F(CommandNodes, AnOutputThatANodeDoesNotSeeIsNamed) {
  const std::string address = own_loopback();
  std::vector<std::unique_ptr<Process>> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    const Arguments arguments = train({"--steps", "2", "--output", path(fmt::format("o{}", rank))});
    ranks.push_back(std::make_unique<Process>(
        Arguments{kCommand} + arguments,
        ProcessOptions{variables({0, 1}, rank, address), directory_.path(), {}}));
  }
  for (const auto& process : ranks) {
    const Finished finished = process->wait(kPatienceSeconds);
    EXPECT_EQ(finished.code, 1) << finished;
    EXPECT_THAT(finished.err, HasSubstr("rank 0")) << finished;
  }
}

}  // namespace
}  // namespace amxt::test
