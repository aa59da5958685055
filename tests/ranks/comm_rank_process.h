// RankProcess: this executable again, as one rank of a job (comm_rank.h), with its standard output to expect lines from.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/socket.h"

extern char** environ;

namespace amxt::comm::test {

inline constexpr int64_t kSecond = 1'000'000'000;
// What every test allows for things that work; a failing one ends here instead of hanging.
inline constexpr int64_t kPatience = 30 * kSecond;

inline std::string own_loopback() {
  static int count = 0;
  return fmt::format("127.{}.{}.{}", 1 + (getpid() >> 8) % 250, getpid() % 250, 1 + count++ % 250);
}

// Where a rank runs; empty: as the test does.
struct RankPlace {
  std::string network;  // path of a network namespace
  std::string hosts;    // a file that it sees as /etc/hosts
};

// A started rank; killed with its owner.
class RankProcess {
 public:
  RankProcess(const std::string& what, const std::map<std::string, std::string>& variables,
              const RankPlace& place = {}) {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    output_ = Descriptor(ends[0]);
    const Descriptor input(ends[1]);
    std::vector<std::string> settings;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string setting = *entry;
      if (variables.count(setting.substr(0, setting.find('='))) == 0) settings.push_back(setting);
    }
    for (const auto& [name, value] : variables) settings.push_back(name + "=" + value);
    std::vector<char*> environment;
    for (std::string& setting : settings) environment.push_back(setting.data());
    environment.push_back(nullptr);
    std::string program = "/proc/self/exe", mode = "rank", scenario = what;
    char* arguments[] = {program.data(), mode.data(), scenario.data(), nullptr};
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(input.get(), STDOUT_FILENO);
    if (!go_to(place)) _exit(4);
    execve(program.c_str(), arguments, environment.data());
    _exit(5);
  }
  ~RankProcess() {
    signal(SIGKILL);
    wait();
  }
  RankProcess(RankProcess&&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const {
    if (pid_ > 0) kill(pid_, number);
  }
  void wait() {
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  void kill_and_wait() {
    signal(SIGKILL);
    wait();
  }

  // The next line that begins with `start`; what lies before is skipped.
  std::string expect(const std::string& start, int64_t patience_ns = kPatience) {
    const Deadline deadline = Deadline::after(patience_ns);
    std::string before;
    for (;;) {
      const auto line = next_line(deadline);
      if (!line) {
        ADD_FAILURE() << "no line \"" << start << "...\" of process " << pid_ << ", but:\n"
                      << before;
        return "";
      }
      if (line->starts_with(start)) return *line;
      before += *line + "\n";
    }
  }

  struct Failure {
    Code code = Code::kOk;
    int rank = -1;
    std::string message;
  };
  Failure expect_error(int64_t patience_ns = kPatience) {
    const std::string line = expect("error ", patience_ns);
    Failure failure;
    int code = 0, length = 0;
    if (std::sscanf(line.c_str(), "error %d %d %n", &code, &failure.rank, &length) < 2)
      return failure;
    failure.code = static_cast<Code>(code);
    failure.message = line.substr(static_cast<size_t>(length));
    return failure;
  }

 private:
  static bool go_to(const RankPlace& place) {
    if (!place.network.empty()) {
      const Descriptor network(open(place.network.c_str(), O_RDONLY | O_CLOEXEC));
      if (!network || setns(network.get(), CLONE_NEWNET) != 0) return false;
    }
    if (place.hosts.empty()) return true;
    return unshare(CLONE_NEWNS) == 0 &&
           mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           mount(place.hosts.c_str(), "/etc/hosts", nullptr, MS_BIND, nullptr) == 0;
  }

  std::optional<std::string> next_line(Deadline deadline) {
    for (;;) {
      const size_t end = buffer_.find('\n');
      if (end != buffer_.npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      pollfd entry{output_.get(), POLLIN, 0};
      if (poll(&entry, 1, deadline.poll_ms()) <= 0) return std::nullopt;
      char bytes[4096];
      const ssize_t got = read(output_.get(), bytes, sizeof bytes);
      if (got <= 0) return std::nullopt;
      buffer_.append(bytes, static_cast<size_t>(got));
    }
  }

  pid_t pid_ = -1;
  Descriptor output_;
  std::string buffer_;
};

// The whole of main(): all tests, or as `<test> rank <what>` one rank, which ends with the test that started it.
inline int run_tests_or_rank(int argc, char** argv, int (*play)(const std::string& what)) {
  if (argc == 3 && std::strcmp(argv[1], "rank") == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return play(argv[2]);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace amxt::comm::test
