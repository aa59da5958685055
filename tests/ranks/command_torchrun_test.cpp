// The command under torchrun: what it leaves for the agent, and, where AMXTRAIN_TEST_TORCH names a python that has torch, the real agent.
#include <csignal>
#include <cstdlib>
#include <functional>
#include <list>
#include <sstream>

#include "ranks/command.h"

namespace amxt::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// --- The error file ---------------------------------------------------------------------------

class CommandErrorFile : public CommandTest {
 protected:
  // What torchrun reads of a file: the line, what it prints, the time.
  struct Reason {
    std::string line, report;
    int64_t timestamp = 0;
  };
  Reason read(const std::string& file) {
    const Json json = Json::parse(contents(file));
    const Json& message = json.at("message");
    const auto text = message.at("extraInfo").at("timestamp").get<std::string>();
    return {message.at("message"), message.at("extraInfo").at("py_callstack"), std::stoll(text)};
  }
};

TEST_F(CommandErrorFile, TellsTorchrunWhatFailed) {
  const auto begin = static_cast<int64_t>(time(nullptr));
  const Finished failed = amxtrain({"inspect", path("missing \"model\"")},
                                   {{"TORCHELASTIC_ERROR_FILE", path("error.json")}});
  EXPECT_EQ(failed.code, 1) << failed;
  const Reason reason = read(path("error.json"));
  EXPECT_THAT(reason.line, AllOf(HasSubstr("AmxtrainError: "), HasSubstr("missing \"model\"")));
  EXPECT_EQ(reason.line.find('\n'), std::string::npos);
  EXPECT_THAT(reason.report, AllOf(HasSubstr("amxtrain: error: "), HasSubstr("missing \"model\""),
                                   HasSubstr("pid ")));
  EXPECT_GE(reason.timestamp, begin);
  EXPECT_LE(reason.timestamp, time(nullptr));
  EXPECT_EQ(names_in(directory_.path()), std::set<std::string>{"error.json"}) << "no part is left";
}

TEST_F(CommandErrorFile, IsNotThereAfterSuccessAndNeverAReasonToFail) {
  EXPECT_EQ(amxtrain({"info"}, {{"TORCHELASTIC_ERROR_FILE", path("error.json")}}).code, 0);
  EXPECT_FALSE(fs::exists(path("error.json")));
  const Finished failed =
      amxtrain({"inspect", path("missing")},
               {{"TORCHELASTIC_ERROR_FILE", path("no/such/folder/error.json")}});
  EXPECT_EQ(failed.code, 1) << failed;
  EXPECT_EQ(error_lines(failed.err).size(), 1u);
}

TEST_F(CommandErrorFile, WhoOnlyFollowsAnotherRankIsLater) {
  const Arguments good = train_to("o", {"--steps", "1000000"});
  const std::string address = own_loopback();
  std::list<Process> processes;
  for (int rank = 0; rank < 2; ++rank) {
    Variables variables = rank_variables(rank, 2, address);
    variables["TORCHELASTIC_ERROR_FILE"] = path(fmt::format("error{}.json", rank));
    const Arguments bad = {"train",     "--model", path("missing"), "--data", data_, "--no-save",
                           "--seq-len", "16",      "--lr",          "0.01"};
    processes.emplace_back(Arguments{kCommand} + (rank == 1 ? bad : good),
                           ProcessOptions{variables, directory_.path(), {}});
  }
  for (Process& process : processes) EXPECT_EQ(process.wait().code, 1);
  const Reason root = read(path("error1.json")), follower = read(path("error0.json"));
  EXPECT_THAT(root.line, HasSubstr("missing"));
  EXPECT_THAT(follower.line, HasSubstr("rank 1"));
  EXPECT_GT(follower.timestamp, root.timestamp + 10);
}

// --- The real torchrun ------------------------------------------------------------------------

class CommandTorchrun : public CommandTest {
 protected:
  void SetUp() override {
    const char* python = std::getenv("AMXTRAIN_TEST_TORCH");
    if (python == nullptr) {
      GTEST_SKIP() << "skipped: AMXTRAIN_TEST_TORCH names no python with torch";
    }
    python_ = python;
    model_ = model();
    data_ = data();
  }

  // `torchrun OPTIONS -- COMMAND`; the agent's store is shared with the ranks, or is not.
  Arguments torchrun(const Arguments& options, const Arguments& command) const {
    return Arguments{python_, "-m", "torch.distributed.run", "--no-python"} + options + command;
  }
  ProcessOptions with_store(bool shared) const {
    Variables variables = {{"AMXTRAIN_LOG", "debug"}};
    if (!shared) variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1";
    return {variables, directory_.path(), {}};
  }
  // Below the ports that connections are given.
  static std::string own_port() {
    static int count = 0;
    return std::to_string(20000 + (getpid() * 16 + count++) % 12000);
  }
  static Arguments rendezvous(const std::string& kind, const std::string& port) {
    if (kind == "static") return {"--master-addr", "127.0.0.1", "--master-port", port};
    return {"--rdzv-backend",    "c10d",         "--rdzv-endpoint",
            "localhost:" + port, "--local-addr", "127.0.0.1"};
  }
  Arguments training(const std::string& output, int steps) {
    return Arguments{kCommand} + train_to(output, {"--steps", std::to_string(steps), "--save-steps",
                                                   "2", "--schedule", "constant"});
  }
  // Trains for ever before there is a file "second", from then on 20 steps, to `output`, when there is a file "go".
  Arguments training_in_attempts(const std::string& output) {
    const auto line = [](const Arguments& words) {
      return fmt::format("{}", fmt::join(words, " "));
    };
    return {"sh", "-c",
            fmt::format("cd {}; [ -e second ] || exec {}; echo $MASTER_PORT > port; echo second "
                        "attempt; until [ -e go ]; do "
                        "sleep 0.1; done; exec {}",
                        directory_.path(), line(training(output + "-first", 1000000)),
                        line(training(output, 20)))};
  }

  // The descendants of `parent` that are rank `rank`.
  static pid_t rank_below(pid_t parent, int rank) {
    std::istringstream list(contents(fmt::format("/proc/{0}/task/{0}/children", parent)));
    for (pid_t child = 0; list >> child;) {
      const std::string variables = contents(fmt::format("/proc/{}/environ", child));
      const std::string own = std::string("\0RANK=", 6) + std::to_string(rank) + '\0';
      const std::string command = contents(fmt::format("/proc/{}/cmdline", child));
      if (command.starts_with(kCommand) && has(variables, own)) return child;
      if (const pid_t below = rank_below(child, rank); below > 0) return below;
    }
    return 0;
  }

  // The number of entries in the list of the agent's store, those of earlier attempts too.
  std::string entries_at(const std::string& port, const std::string& run) {
    const std::string program = fmt::format(
        "import torch.distributed as d, datetime\n"
        "s = d.TCPStore('127.0.0.1', int('''{}'''), is_master=False, wait_for_workers=False, "
        "timeout=datetime.timedelta(seconds=20))\n"
        "print('entries', s.get('amxtrain/{}/entries').decode())\n",
        port, run);
    return run_process({python_, "-c", program}, {{}, directory_.path(), {}}).out;
  }

  std::string python_;
};

TEST_F(CommandTorchrun, TrainsByEitherRendezvousWithTheAgentsStoreAndWithItsOwn) {
  for (const std::string kind : {"static", "c10d"}) {
    for (const bool shared : {true, false}) {
      SCOPED_TRACE(kind + (shared ? ", the agent's store" : ", a store of rank 0's"));
      const std::string output = kind + (shared ? "1" : "0");
      const Finished trained =
          run_process(torchrun(Arguments{"--nproc-per-node", "2"} + rendezvous(kind, own_port()),
                               training(output, 2)),
                      with_store(shared));
      ASSERT_EQ(trained.code, 0) << trained;
      expect_steps(path(output + ".jsonl"), 1, 2);
      EXPECT_THAT(trained.err, HasSubstr("rank 1 connected to 2 of 2"));
    }
  }
}

TEST_F(CommandTorchrun, ARankKilledInTheFirstAttemptIsRestartedAmongItsStaleEntries) {
  for (const bool shared : {true, false}) {
    SCOPED_TRACE(shared ? "the agent's store" : "a store of rank 0's");
    const std::string output = shared ? "agent" : "own";
    fs::remove(path("second"));
    fs::remove(path("go"));
    Process process(
        torchrun(Arguments{"--nproc-per-node", "2", "--max-restarts", "2", "--rdzv-id", "job"} +
                     rendezvous("c10d", own_port()),
                 training_in_attempts(output)),
        with_store(shared));
    ASSERT_TRUE(process.wait_for("saved"));
    const pid_t victim = rank_below(process.pid(), 1);
    ASSERT_GT(victim, 0);
    write_text(path("second"), "");
    kill(victim, SIGKILL);
    ASSERT_TRUE(process.wait_for("second attempt", 2)) << process.wait(1);
    if (shared) {
      EXPECT_THAT(entries_at(contents(path("port")), "job"), HasSubstr("entries 2"))
          << "those of the first attempt";
    }
    write_text(path("go"), "");
    const Finished finished = process.wait();
    EXPECT_EQ(finished.code, 0) << finished;
    expect_steps(path(output + ".jsonl"), 1, 20);
    EXPECT_THAT(finished.err,
                ContainsRegex(fmt::format("\\(pid {} on host [^ )]+\\) died", victim)));
  }
}

TEST_F(CommandTorchrun, TwoAgentsTrainTogetherAndAgainAfterARestart) {
  const std::string port = own_port();
  std::list<Process> agents;
  for (int node = 0; node < 2; ++node) {
    agents.emplace_back(torchrun(Arguments{"--nnodes", "2", "--nproc-per-node", "1",
                                           "--max-restarts", "2", "--rdzv-id", "job"} +
                                     rendezvous("c10d", port),
                                 training_in_attempts("o")),
                        with_store(true));
  }
  Process& first = agents.front();
  Process& second = agents.back();
  // The agents number themselves.
  const auto rank = [&](int number) {
    const pid_t process = rank_below(first.pid(), number);
    return process > 0 ? process : rank_below(second.pid(), number);
  };
  const double end = seconds_now() + kPatienceSeconds;
  while (!fs::exists(path("o-first/latest")) && seconds_now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // for a file: nothing tells of it
  }
  const pid_t victim = rank(1);
  ASSERT_GT(victim, 0);
  write_text(path("second"), "");
  write_text(path("go"), "");
  kill(victim, SIGKILL);
  const Finished a = first.wait(), b = second.wait();
  EXPECT_EQ(a.code, 0) << a;
  EXPECT_EQ(b.code, 0) << b;
  expect_steps(path("o.jsonl"), 1, 20);
  EXPECT_EQ(metrics_of(path("o.jsonl")).back().at("world_size"), 2);
  EXPECT_THAT(a.out, HasSubstr("second attempt"));
  EXPECT_THAT(b.out, HasSubstr("second attempt"));
}

TEST_F(CommandTorchrun, ShowsTheRootCauseOfAFailure) {
  const std::string script = fmt::format(
      "[ $RANK = 1 ] && exec {0} train --model {1}/missing --data {2} --no-save --seq-len 16 "
      "--lr 0.01; exec \"$@\"",
      kCommand, directory_.path(), data_);
  const Finished failed =
      run_process(torchrun(Arguments{"--nproc-per-node", "3"} + rendezvous("static", own_port()),
                           Arguments{"sh", "-c", script, "sh"} + training("o", 1000000)),
                  with_store(true));
  EXPECT_EQ(failed.code, 1) << failed;
  const size_t root = failed.err.find("Root Cause");
  ASSERT_NE(root, std::string::npos) << failed;
  EXPECT_THAT(failed.err.substr(root), ContainsRegex("rank +: 1 (.|\n)*error: .*missing"));
}

}  // namespace
}  // namespace amxt::test
