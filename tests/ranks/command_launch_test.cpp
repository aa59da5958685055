// Several processes on one machine: how they are started, what they say, and how signals and deaths end them.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <functional>
#include <list>
#include <random>
#include <sstream>

#include "ranks/command.h"

namespace amxt::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class CommandLaunch : public CommandTest {
 protected:
  void SetUp() override {
    model_ = model();
    data_ = data();
  }
  Arguments endless(const std::string& output, const Arguments& more = {}) {
    return train_to(
        output,
        Arguments{"--steps", "1000000", "--save-steps", "2", "--schedule", "constant"} + more);
  }
  // Processes of one group, started without `launch`.
  std::vector<Finished> ranks(int count, const std::function<Arguments(int)>& arguments,
                              const std::function<void(int, Variables&)>& change = nullptr) {
    const std::string address = own_loopback();
    std::list<Process> processes;
    for (int rank = 0; rank < count; ++rank) {
      Variables variables = rank_variables(rank, count, address);
      if (change) change(rank, variables);
      processes.emplace_back(Arguments{kCommand} + arguments(rank),
                             ProcessOptions{variables, directory_.path(), {}});
    }
    std::vector<Finished> finished;
    for (Process& process : processes) finished.push_back(process.wait());
    return finished;
  }
  void expect_whole(const std::string& output) {
    const Finished verify = amxtrain({"verify", path(output + "/latest")});
    EXPECT_EQ(verify.code, 0) << verify;
  }
  // The processes that `launch` started, by rank, from what they say of themselves.
  static std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> children;
    std::istringstream list(contents(fmt::format("/proc/{0}/task/{0}/children", parent)));
    for (pid_t child = 0; list >> child;) children.push_back(child);
    return children;
  }
  static bool connects(const std::string& address, double patience) {
    const double end = seconds_now() + patience;
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(29511);
    inet_pton(AF_INET, address.c_str(), &name.sin_addr);
    bool connected = false;
    while (!connected && seconds_now() < end) {
      const int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      connected = connect(client, reinterpret_cast<sockaddr*>(&name), sizeof(name)) == 0;
      close(client);
    }
    return connected;
  }
  static bool is_running(pid_t process) {
    const std::string stat = contents(fmt::format("/proc/{}/stat", process));
    return !stat.empty() && !has(stat, ") Z ");
  }
};

TEST_F(CommandLaunch, StartsRanksThatSayWhoTheyAre) {
  const Finished trained = launch(3, train_to("o", {"--steps", "2", "--accumulate", "2"}));
  ASSERT_EQ(trained.code, 0) << trained;
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_THAT(
        trained.err,
        ContainsRegex(fmt::format(
            "rank {} connected to 3 of 3 by shared memory: [0-9]+ threads? on [0-9]+ cores?",
            rank)));
  }
  EXPECT_EQ(metrics_of(path("o.jsonl")).at(1).at("world_size"), 3);
  EXPECT_EQ(metrics_of(path("o.jsonl")).at(1).at("tokens"), 3 * 2 * 16);
  EXPECT_TRUE(fs::exists(path("o/step-000002/rank-00002-of-00003.safetensors")));
  expect_whole("o");
}

TEST_F(CommandLaunch, MoreRanksThanProcessorsAreUnpinnedAndSayIt) {
  const Finished trained =
      run_process(launched(4, train({"--steps", "2", "--no-save", "--metrics", path("m.jsonl")})),
                  {{}, directory_.path(), {0, 1}});
  ASSERT_EQ(trained.code, 0) << trained;
  EXPECT_THAT(trained.err, HasSubstr("4 ranks on 2 processors: not pinned"));
  EXPECT_EQ(metrics_of(path("m.jsonl")).at(0).at("world_size"), 4);
}

TEST_F(CommandLaunch, PinsRanksToProcessorsOfTheirOwn) {
  const Finished two = run_process({kCommand, "launch", "--nproc-per-node", "2", "--", "sh", "-c",
                                    "echo $LOCAL_RANK $(nproc) $(taskset -p $$)"},
                                   {{}, directory_.path(), {0, 1}});
  ASSERT_EQ(two.code, 0) << two;
  EXPECT_THAT(two.out, AllOf(HasSubstr("0 1 "), HasSubstr("1 1 ")));
  EXPECT_THAT(two.out, AllOf(HasSubstr("mask: 1"), HasSubstr("mask: 2")));
}

TEST_F(CommandLaunch, RefusesSeveralNodesByName) {
  expect_error(amxtrain({"launch", "--nnodes", "2", "--nproc-per-node", "1", "--", "true"}), 2,
               {"--nnodes 2"});
}

TEST_F(CommandLaunch, TellsWhatCannotBeStarted) {
  expect_error(amxtrain({"launch", "--nproc-per-node", "2", "--", path("nothing")}), 1,
               {"nothing", "No such file"});
}

TEST_F(CommandLaunch, EndsAllWhenOneFailsAndPassesItsReasonOn) {
  const double begin = seconds_now();
  const Finished failed = amxtrain({"launch", "--nproc-per-node", "3", "--", "sh", "-c",
                                    "[ $RANK = 1 ] && exit 7; exec sleep 100"});
  EXPECT_EQ(failed.code, 7) << failed;
  EXPECT_THAT(failed.err, HasSubstr("rank 1 ended with code 7"));
  EXPECT_LT(seconds_now() - begin, 10);
  const Finished reason =
      launch(2, {"train", "--model", path("missing"), "--data", data_, "--output", path("o")});
  EXPECT_EQ(reason.code, 1) << reason;
  EXPECT_THAT(reason.err, ContainsRegex("error: rank [01] ended with code 1: .*missing"));
}

TEST_F(CommandLaunch, PassesTheCommandsOwnCodeOn) {
  EXPECT_EQ(amxtrain({"launch", "--nproc-per-node", "2", "--", "true"}).code, 0);
  EXPECT_EQ(amxtrain({"launch", "--nproc-per-node", "2", "--", "false"}).code, 1);
  EXPECT_EQ(launch(2, {"train", "--frobnicate"}).code, 2);
}

// --- The environment --------------------------------------------------------------------------

TEST_F(CommandLaunch, RanksFromTheEnvironmentTrainTogether) {
  const auto finished = ranks(2, [&](int) { return train_to("o", {"--steps", "2"}); });
  for (const Finished& rank : finished) EXPECT_EQ(rank.code, 0) << rank;
  EXPECT_EQ(finished[1].out, "") << "rank 0 speaks for all";
  expect_steps(path("o.jsonl"), 1, 2);
}

TEST_F(CommandLaunch, ARankWithoutAWorldSizeIsAnError) {
  expect_error(amxtrain(train_to("o"), {{"RANK", "0"}}), 1, {"RANK", "WORLD_SIZE"});
  expect_error(amxtrain(train_to("o"), {{"WORLD_SIZE", "2"}}), 1, {"RANK", "WORLD_SIZE"});
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(CommandLaunch, ARankOutOfRangeIsAnError) {
  for (const char* rank : {"2", "-1", "x", "1.5", ""}) {
    Variables variables = rank_variables(0, 2, own_loopback());
    variables["RANK"] = rank;
    expect_error(amxtrain(train_to("o"), variables), 1, {"RANK"});
  }
  Variables variables = rank_variables(0, 2, own_loopback());
  variables["LOCAL_RANK"] = "2";
  expect_error(amxtrain(train_to("o"), variables), 1, {"LOCAL_RANK"});
  variables = rank_variables(0, 2, own_loopback());
  variables["MASTER_PORT"] = "70000";
  expect_error(amxtrain(train_to("o"), variables), 1, {"MASTER_PORT", "70000"});
}

TEST_F(CommandLaunch, AMissingLocalRankIsDerivedAndSaid) {
  const auto finished = ranks(
      2, [&](int) { return train_to("o", {"--steps", "1"}); },
      [](int, Variables& variables) {
        variables.erase("LOCAL_RANK");
        variables.erase("LOCAL_WORLD_SIZE");
      });
  for (const Finished& rank : finished) {
    EXPECT_EQ(rank.code, 0) << rank;
    EXPECT_THAT(rank.err, HasSubstr("LOCAL_RANK"));
  }
}

TEST_F(CommandLaunch, ARankStartedTwiceIsNamed) {
  const auto finished = ranks(
      3, [&](int) { return train_to("o", {"--steps", "1"}); },
      [](int rank, Variables& variables) {
        if (rank == 2) variables["RANK"] = variables["LOCAL_RANK"] = "1";
      });
  for (const Finished& rank : finished) expect_error(rank, 1, {"rank 1 is there twice"});
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(CommandLaunch, ASecondRankZeroIsNamed) {
  const auto finished = ranks(
      2, [&](int) { return train_to("o", {"--steps", "1"}); },
      [](int, Variables& variables) { variables["RANK"] = variables["LOCAL_RANK"] = "0"; });
  for (const Finished& rank : finished) expect_error(rank, 1, {"rank 0 is there twice"});
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(CommandLaunch, ATakenPortIsNamed) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const std::string address = own_loopback();
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(29511);
  inet_pton(AF_INET, address.c_str(), &name.sin_addr);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  expect_error(amxtrain(train_to("o"), rank_variables(0, 2, address)), 1,
               {address + ":29511", "taken"});
  close(listener);
}

TEST_F(CommandLaunch, AModelThatOneRankCannotSeeIsNamed) {
  const auto finished = ranks(2, [&](int rank) {
    Arguments arguments = train_to("o", {"--steps", "1"});
    if (rank == 1) arguments[2] = path("elsewhere");
    return arguments;
  });
  expect_error(finished[0], 1, {"rank 1", "elsewhere"});
  expect_error(finished[1], 1, {"elsewhere"});
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(CommandLaunch, AnotherModelOnOneRankIsNamed) {
  Json config = small_config();
  config["num_hidden_layers"] = 1;
  const std::string other = model("other", config);
  const auto finished = ranks(2, [&](int rank) {
    Arguments arguments = train_to("o", {"--steps", "1"});
    if (rank == 1) arguments[2] = other;
    return arguments;
  });
  for (const Finished& rank : finished) expect_error(rank, 1, {"ranks 0 and 1", "config.json"});
}

TEST_F(CommandLaunch, OptionsThatDifferAreNamed) {
  const auto differ = [&](const Arguments& zero, const Arguments& one, const std::string& what) {
    SCOPED_TRACE(what);
    const auto finished = ranks(2, [&](int rank) { return train_to("o", rank == 0 ? zero : one); });
    for (const Finished& rank : finished) expect_error(rank, 1, {"rank 0", "rank 1", what});
    EXPECT_FALSE(fs::exists(path("o/latest")));
  };
  differ({}, {"--weight-decay", "0.5"}, "--weight-decay");
  differ({"--micro-batch", "2"}, {}, "--micro-batch");
  differ({"--keep-forward", "all"}, {}, "disagree on --keep-forward: rank 0 has \"all\"");
  differ({"--wire-dtype", "float32"}, {}, "disagree on --wire-dtype");
  differ({}, {"--prefetch-parameters", "7"}, "disagree on --prefetch-parameters");
  differ({}, {"--seed", "7"}, "disagree on --seed: rank 0 has 42, rank 1 has 7");
  differ({"--clip", "0.5"}, {}, "disagree on --clip");
  differ({}, {"--accumulate", "2"}, "disagree on --accumulate");
  differ({"--compute-dtype", "float32"}, {}, "float32");
  differ({"--steps", "2"}, {"--steps", "3"}, "3");
  differ({"--steps", "2", "--save-steps", "1"}, {"--steps", "2"}, "checkpoints");
  differ({"--steps", "2"}, {"--steps", "2", "--no-save"}, "saving");
}

TEST_F(CommandLaunch, DataToEvaluateOnThatOneRankLacksIsNamed) {
  const auto finished = ranks(2, [&](int rank) {
    Arguments arguments = train_to("o", {"--steps", "1"});
    if (rank == 1) arguments.insert(arguments.end(), {"--eval-data", data_});
    return arguments;
  });
  for (const Finished& rank : finished) {
    expect_error(rank, 1, {"disagree on the data to evaluate on: rank 0 has none, rank 1 has '"});
  }
}

TEST_F(CommandLaunch, DataThatDiffersIsNamed) {
  const std::string other = data("other.safetensors", 20);
  for (const Arguments& command :
       {train_to("o", {"--steps", "1"}),
        Arguments{"eval", "--model", model_, "--data", data_, "--seq-len", "16"}}) {
    const auto finished = ranks(2, [&](int rank) {
      Arguments arguments = command;
      if (rank == 1) arguments[4] = other;
      return arguments;
    });
    for (const Finished& rank : finished) expect_error(rank, 1, {"rank 0", "rank 1", "the data"});
  }
}

// --- Signals ----------------------------------------------------------------------------------

TEST_F(CommandLaunch, ASignalLeavesTheLastCheckpointAndItsCode) {
  for (const int number : {SIGINT, SIGTERM}) {
    const std::string output = fmt::format("o{}", number);
    Process process(Arguments{kCommand} + endless(output), {{}, directory_.path(), {}});
    ASSERT_TRUE(process.wait_for("saved", 2));
    process.signal(number);
    const Finished finished = process.wait(30);
    EXPECT_EQ(finished.code, 128 + number) << finished;
    expect_whole(output);
    const int64_t step = std::stoll(fs::read_symlink(path(output + "/latest")).string().substr(5));
    // The job goes on where the checkpoint left it.
    const Finished resumed =
        amxtrain(train_to(output, {"--steps", std::to_string(step + 1), "--schedule", "constant",
                                   "--resume", "latest", "--reschedule"}));
    EXPECT_EQ(resumed.code, 0) << resumed;
    expect_steps(path(output + ".jsonl"), 1, static_cast<int>(step + 1));
  }
}

TEST_F(CommandLaunch, ASignalThroughLaunchEndsAllRanks) {
  for (const int number : {SIGINT, SIGTERM}) {
    const std::string output = fmt::format("o{}", number);
    Process process(launched(3, endless(output)), {{}, directory_.path(), {}});
    ASSERT_TRUE(process.wait_for("saved", 2));
    const std::vector<pid_t> children = children_of(process.pid());
    EXPECT_EQ(children.size(), 3u);
    process.signal(number);
    const Finished finished = process.wait(30);
    EXPECT_EQ(finished.code, 128 + number) << finished;
    for (const pid_t child : children) EXPECT_FALSE(is_running(child));
    expect_whole(output);
  }
}

TEST_F(CommandLaunch, ASignalToOneRankEndsAllWithItsCode) {
  Process process(launched(2, endless("o")), {{}, directory_.path(), {}});
  ASSERT_TRUE(process.wait_for("saved"));
  kill(children_of(process.pid()).at(1), SIGTERM);
  const Finished finished = process.wait(30);
  EXPECT_EQ(finished.code, 128 + SIGTERM) << finished;
  expect_whole("o");
}

// A rank that is stopped keeps the others in their step, so that a first signal has something to wait for.
TEST_F(CommandLaunch, ASecondSignalEndsAtOnce) {
  const std::string address = own_loopback();
  Process zero(Arguments{kCommand} + endless("o"),
               {rank_variables(0, 2, address), directory_.path(), {}});
  Process one(Arguments{kCommand} + endless("o"),
              {rank_variables(1, 2, address), directory_.path(), {}});
  ASSERT_TRUE(zero.wait_for("saved"));
  one.signal(SIGSTOP);
  zero.signal(SIGINT);
  ASSERT_TRUE(zero.wait_for("once more ends at once"));
  const double begin = seconds_now();
  zero.signal(SIGINT);
  const Finished finished = zero.wait(30);
  EXPECT_EQ(finished.code, 130) << finished;
  EXPECT_LT(seconds_now() - begin, 2);
  one.signal(SIGCONT);
  EXPECT_NE(one.wait(30).code, 0);
  expect_whole("o");
}

TEST_F(CommandLaunch, ASecondSignalToLaunchEndsAtOnce) {
  Process process(launched(2, endless("o")), {{}, directory_.path(), {}});
  ASSERT_TRUE(process.wait_for("saved"));
  const std::vector<pid_t> children = children_of(process.pid());
  ASSERT_EQ(children.size(), 2u);
  process.signal(SIGINT);
  process.signal(SIGINT);
  const Finished finished = process.wait(30);
  EXPECT_EQ(finished.code, 130) << finished;
  for (const pid_t child : children) EXPECT_FALSE(is_running(child));
}

TEST_F(CommandLaunch, ASignalWhileRanksAreAwaitedEndsAtOnce) {
  const std::string address = own_loopback();
  Process alone(Arguments{kCommand} + train_to("o"),
                {rank_variables(0, 2, address), directory_.path(), {}});
  // Rank 0 serves the others' meeting: when its port answers, it waits.
  ASSERT_TRUE(connects(address, kPatienceSeconds));
  alone.signal(SIGTERM);
  const Finished finished = alone.wait(10);
  EXPECT_EQ(finished.code, 143);
  EXPECT_THAT(finished.err, HasSubstr("ended by Terminated while waiting for the other ranks"));
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(CommandLaunch, ARankThatNeverComesIsNamedAtTheDeadlineThatWasGiven) {
  for (const Arguments& command :
       {train_to("o"), Arguments{"bench", "collectives"}, Arguments{"bench", "step"},
        Arguments{"eval", "--model", model_, "--data", data_}}) {
    const Finished finished = amxtrain(command + Arguments{"--connect-timeout", "1"},
                                       rank_variables(0, 2, own_loopback()));
    expect_error(finished, 1, {"rank 1 did not join within the deadline"});
    EXPECT_LT(finished.seconds, 20) << finished;
  }
}

TEST_F(CommandLaunch, RankZeroSaysWhomItWaitsFor) {
  const std::string address = own_loopback();
  Process alone(Arguments{kCommand} + train_to("o"),
                {rank_variables(0, 3, address), directory_.path(), {}});
  EXPECT_TRUE(alone.wait_for("rank 0: waiting for ranks 1, 2 of 3 at " + address + ":29511", 1));
  alone.signal(SIGTERM);
  EXPECT_EQ(alone.wait(10).code, 143);
}

// --- Deaths -----------------------------------------------------------------------------------

TEST_F(CommandLaunch, AKilledRankEndsAllInTwoSecondsAndIsNamed) {
  for (const int victim : {0, 2}) {
    SCOPED_TRACE(victim);
    const std::string output = fmt::format("o{}", victim);
    Process process(launched(3, endless(output, {"--accumulate", "2"})),
                    {{}, directory_.path(), {}});
    ASSERT_TRUE(process.wait_for("saved", 2));
    const std::vector<pid_t> children = children_of(process.pid());
    ASSERT_EQ(children.size(), 3u);
    pid_t dead = 0;
    for (const pid_t child : children) {
      const std::string variables = contents(fmt::format("/proc/{}/environ", child));
      if (has(variables, std::string("\0RANK=", 6) + std::to_string(victim) + '\0')) dead = child;
    }
    ASSERT_GT(dead, 0);
    const double begin = seconds_now();
    kill(dead, SIGKILL);
    const Finished finished = process.wait(30);
    EXPECT_LT(seconds_now() - begin, 2);
    EXPECT_EQ(finished.code, 128 + SIGKILL) << finished;
    EXPECT_THAT(finished.err,
                HasSubstr(fmt::format("error: rank {} was ended by signal 9", victim)));
    EXPECT_THAT(
        finished.err,
        ContainsRegex(fmt::format(
            "during (step [0-9]+|save): rank {} \\(pid {} on host [^ )]+\\) died", victim, dead)));
    for (const pid_t child : children) EXPECT_FALSE(is_running(child));
    expect_whole(output);
    EXPECT_EQ(names_in(path(output)).count("final"), 0u);
  }
}

TEST_F(CommandLaunch, AKilledJobResumesToTheSameCurve) {
  const Arguments job = {"--steps",      "200", "--accumulate", "2",
                         "--save-steps", "2",   "--schedule",   "cosine"};
  ASSERT_EQ(launch(3, train_to("whole", job)).code, 0);
  Process process(launched(3, train_to("o", job)), {{}, directory_.path(), {}});
  ASSERT_TRUE(process.wait_for("saved", 3));
  kill(children_of(process.pid()).at(0), SIGKILL);
  EXPECT_EQ(process.wait(30).code, 128 + SIGKILL);
  const Finished resumed = launch(3, train_to("o", job + Arguments{"--resume", "latest"}));
  ASSERT_EQ(resumed.code, 0) << resumed;
  EXPECT_EQ(curve_of(path("o.jsonl")), curve_of(path("whole.jsonl")));
}

TEST_F(CommandLaunch, RandomKillsNeverLeaveABrokenCheckpoint) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  // Saving is most of what this job does.
  const Arguments job = train_to("o", {"--steps", "1000000", "--save-steps", "1", "--schedule",
                                       "constant", "--accumulate", "1", "--resume", "latest"});
  for (int round = 0; round < 10; ++round) {
    SCOPED_TRACE(fmt::format("round {}", round));
    Process process(launched(2, job), {{}, directory_.path(), {}});
    ASSERT_TRUE(process.wait_for("saved", 1 + static_cast<int>(random() % 3)));
    const std::vector<pid_t> children = children_of(process.pid());
    ASSERT_EQ(children.size(), 2u);
    // Not synchronisation: the moment is what is random.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30'000));
    const uint32_t who = random() % 3;
    if (who == 2) {
      for (const pid_t child : children) kill(child, SIGKILL);
    } else {
      kill(children[who], SIGKILL);
    }
    EXPECT_EQ(process.wait(30).code, 128 + SIGKILL);
    expect_whole("o");
  }
}

TEST_F(CommandLaunch, RanksEndWithTheirLauncher) {
  Process process(launched(2, endless("o")), {{}, directory_.path(), {}});
  ASSERT_TRUE(process.wait_for("saved"));
  const std::vector<pid_t> children = children_of(process.pid());
  ASSERT_EQ(children.size(), 2u);
  std::vector<pollfd> ends;
  for (const pid_t child : children)
    ends.push_back({static_cast<int>(syscall(SYS_pidfd_open, child, 0)), POLLIN, 0});
  process.signal(SIGKILL);
  process.wait(30);
  for (pollfd& end : ends) {
    EXPECT_EQ(poll(&end, 1, 30'000), 1) << "a rank lives on";
    close(end.fd);
  }
  expect_whole("o");
}

}  // namespace
}  // namespace amxt::test
