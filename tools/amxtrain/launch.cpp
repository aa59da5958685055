// amxtrain launch: starts the ranks of one machine, pins them, and ends all when one fails. It does not use
// the library.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "commands.h"
#include "options.h"

extern char** environ;

namespace command {

namespace {

struct LaunchOptions {
  int ranks = 1;
  int nodes = 1;
  int port = 0;
  bool unpinned = false;
  std::vector<std::string> command;
};

constexpr double kGraceSeconds = 10;  // between SIGTERM and SIGKILL

struct Rank {
  pid_t process = -1;
  bool ended = false;
  int status = 0;  // as waitpid gives it
};

// A port of 127.0.0.1 that is free now.
int free_port() {
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  const bool bound = descriptor >= 0 &&
                     bind(descriptor, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
                     getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  const int reason = errno;
  if (descriptor >= 0) close(descriptor);
  if (!bound) throw Failure(fmt::format("no free port on 127.0.0.1: {}", std::strerror(reason)));
  return ntohs(address.sin_port);
}

int read_number(const std::string& path) {
  int number = 0;
  std::ifstream(path) >> number;
  return number;
}

// The CPUs this process may use; those of one socket, and of one core, side by side.
std::vector<int> cpus_in_order() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return {};
  std::vector<std::tuple<int, int, int>> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string topology = fmt::format("/sys/devices/system/cpu/cpu{}/topology/", cpu);
    cpus.emplace_back(read_number(topology + "physical_package_id"),
                      read_number(topology + "core_id"), cpu);
  }
  std::sort(cpus.begin(), cpus.end());
  std::vector<int> order;
  for (const auto& cpu : cpus) order.push_back(std::get<2>(cpu));
  return order;
}

// The share of a rank: contiguous, none empty as long as there are as many CPUs as ranks.
cpu_set_t share_of(const std::vector<int>& cpus, int rank, int ranks) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  const auto count = static_cast<int>(cpus.size());
  for (int i = count * rank / ranks; i < count * (rank + 1) / ranks; ++i) {
    CPU_SET(cpus[static_cast<size_t>(i)], &mask);
  }
  return mask;
}

// The environment of a rank: ours, without what another launcher said of the job.
std::vector<std::string> environment_of(const LaunchOptions& options, int rank, int port,
                                        const std::string& error_file, bool pinned) {
  const std::vector<std::pair<std::string, std::string>> own = {
      {"RANK", std::to_string(rank)},
      {"LOCAL_RANK", std::to_string(rank)},
      {"WORLD_SIZE", std::to_string(options.ranks)},
      {"LOCAL_WORLD_SIZE", std::to_string(options.ranks)},
      {"MASTER_ADDR", "127.0.0.1"},
      {"MASTER_PORT", std::to_string(port)},
      {"AMXTRAIN_CPUS_OWN", pinned ? "1" : "0"},
      {"AMXTRAIN_ERROR_FILE", error_file}};
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    const bool replaced =
        std::any_of(own.begin(), own.end(), [&](const auto& pair) { return pair.first == name; });
    if (!replaced && !name.starts_with("TORCHELASTIC_") && name != "GROUP_RANK") {
      environment.emplace_back(text);
    }
  }
  for (const auto& [name, value] : own) environment.push_back(name + "=" + value);
  return environment;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

// In a group of its own, so that a signal of the terminal comes to us alone and is passed on once.
pid_t start(std::vector<std::string> command, std::vector<std::string> environment,
            const cpu_set_t* mask) {
  std::array<int, 2> report{};
  if (pipe2(report.data(), O_CLOEXEC) != 0) {
    throw Failure(fmt::format("pipe: {}", std::strerror(errno)));
  }
  std::vector<char*> arguments = pointers(command);
  std::vector<char*> variables = pointers(environment);
  const pid_t parent = getpid();
  const pid_t process = fork();
  if (process == 0) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(128 + SIGTERM);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    if (mask != nullptr) sched_setaffinity(0, sizeof(*mask), mask);
    execvpe(arguments[0], arguments.data(), variables.data());
    const int reason = errno;
    [[maybe_unused]] const ssize_t written = write(report[1], &reason, sizeof(reason));
    _exit(127);
  }
  const int fork_reason = errno;
  close(report[1]);
  int reason = 0;
  const ssize_t count = process < 0 ? 0 : read(report[0], &reason, sizeof(reason));
  close(report[0]);
  if (process < 0) throw Failure(fmt::format("fork: {}", std::strerror(fork_reason)));
  if (count > 0) {
    waitpid(process, nullptr, 0);
    throw Failure(fmt::format("{}: {}", in_quotes(command[0]), std::strerror(reason)));
  }
  setpgid(process, process);
  return process;
}

int exit_code_of(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string end_of(int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("was ended by signal {} ({})", WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
  }
  return fmt::format("ended with code {}", WEXITSTATUS(status));
}

// A folder for the reasons that ranks leave; gone when the launch ends.
class ReasonFolder {
 public:
  ReasonFolder() {
    path_ = (std::filesystem::temp_directory_path() / "amxtrain-launch-XXXXXX").string();
    if (mkdtemp(path_.data()) == nullptr) {
      throw Failure(fmt::format("{}: {}", in_quotes(path_), std::strerror(errno)));
    }
  }
  ~ReasonFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ReasonFolder(const ReasonFolder&) = delete;
  ReasonFolder& operator=(const ReasonFolder&) = delete;

  std::string file(int rank) const { return fmt::format("{}/{}", path_, rank); }

  // Status and line that a rank left; nothing when it could not.
  std::optional<std::pair<int, std::string>> read(int rank) const {
    std::ifstream in(file(rank));
    int status = 0;
    std::string line;
    if (!(in >> status) || !in.ignore() || !std::getline(in, line)) return std::nullopt;
    return std::pair(status, line);
  }

 private:
  std::string path_;
};

class Launch {
 public:
  explicit Launch(const LaunchOptions& options) : options_(options) {
    sigemptyset(&signals_);
    for (const int number : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&signals_, number);
    sigprocmask(SIG_BLOCK, &signals_, nullptr);
  }
  ~Launch() { signal_all(SIGKILL); }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  int run() {
    const int port = options_.port > 0 ? options_.port : free_port();
    const std::vector<int> cpus = cpus_in_order();
    const bool pinned = !options_.unpinned && cpus.size() >= static_cast<size_t>(options_.ranks);
    if (!pinned && !options_.unpinned) {
      error_line(fmt::format("amxtrain: {} on {}: not pinned", counted(options_.ranks, "rank"),
                             counted(static_cast<int64_t>(cpus.size()), "processor")));
    }
    for (int rank = 0; rank < options_.ranks; ++rank) {
      const cpu_set_t mask = share_of(cpus, rank, options_.ranks);
      ranks_.push_back({start(options_.command,
                              environment_of(options_, rank, port, reasons_.file(rank), pinned),
                              pinned ? &mask : nullptr)});
    }
    while (running() > 0) wait_for_something();
    return result();
  }

 private:
  int64_t running() const {
    return std::count_if(ranks_.begin(), ranks_.end(),
                         [](const Rank& rank) { return !rank.ended; });
  }

  void signal_all(int number) {
    for (const Rank& rank : ranks_) {
      if (!rank.ended) kill(-rank.process, number);
    }
  }

  void wait_for_something() {
    const timespec interval{0, 200'000'000};
    siginfo_t information{};
    const int number = sigtimedwait(&signals_, &information, &interval);
    if (number == SIGINT || number == SIGTERM) {
      interrupted_ = number;
      signal_all(number);
    }
    reap();
    if (ending_since_ > 0 && now() - ending_since_ > kGraceSeconds) signal_all(SIGKILL);
  }

  void reap() {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      Rank& rank = ranks_[i];
      if (rank.ended || waitpid(rank.process, &rank.status, WNOHANG) != rank.process) continue;
      rank.ended = true;
      if (rank.status == 0) continue;
      failed_.push_back(static_cast<int>(i));
      if (ending_since_ == 0) {
        ending_since_ = now();
        if (interrupted_ == 0) give_time_to_follow();
      }
    }
  }

  // The others learn of the failure by themselves and leave a reason; who does not gets SIGTERM.
  void give_time_to_follow() {
    const double begin = now();
    while (running() > 0 && now() - begin < 2) {
      const timespec interval{0, 50'000'000};
      sigset_t child;
      sigemptyset(&child);
      sigaddset(&child, SIGCHLD);
      sigtimedwait(&child, nullptr, &interval);
      reap();
    }
    signal_all(SIGTERM);
  }

  // The first that failed by itself; one that only lost a peer comes after it.
  int result() const {
    if (interrupted_ != 0) {
      error_line(fmt::format("amxtrain: ended by {}", strsignal(interrupted_)));
      return 128 + interrupted_;
    }
    if (failed_.empty()) return kSuccess;
    auto followed = [&](int rank) {
      const auto reason = reasons_.read(rank);
      if (!reason) return false;
      // Cancelled, and not by a signal of its own: another rank was.
      const int code = exit_code_of(ranks_[static_cast<size_t>(rank)].status);
      return reason->first >= AMXT_E_COMM_PEER_LOST ||
             (reason->first == AMXT_E_CANCELLED && code == kFailure);
    };
    const auto own = std::find_if_not(failed_.begin(), failed_.end(), followed);
    const int rank = own != failed_.end() ? *own : failed_.front();
    const int status = ranks_[static_cast<size_t>(rank)].status;
    const auto reason = reasons_.read(rank);
    error_line(fmt::format("amxtrain: error: rank {} {}{}", rank, end_of(status),
                           reason ? ": " + reason->second : ""));
    return exit_code_of(status);
  }

  const LaunchOptions& options_;
  ReasonFolder reasons_;
  sigset_t signals_{};
  std::vector<Rank> ranks_;
  std::vector<int> failed_;  // in the order of their ends
  int interrupted_ = 0;
  double ending_since_ = 0;
};

int run_launch(const LaunchOptions& options) {
  if (options.nodes != 1) {
    throw Failure(fmt::format("--nnodes {}: one machine only in this version", options.nodes),
                  kUsage);
  }
  return Launch(options).run();
}

}  // namespace

Run add_launch(CLI::App& app) {
  CLI::App* launch = app.add_subcommand("launch", "Starts a command as the ranks of this machine");
  auto options = std::make_shared<LaunchOptions>();
  launch->add_option("--nproc-per-node,--nproc_per_node", options->ranks, "Processes to start")
      ->required()
      ->transform(whole(1, 4096));
  launch->add_option("--nnodes", options->nodes, "Machines; 1 is all there is");
  launch->add_option("--port", options->port, "Port of the rendezvous (default: a free one)")
      ->transform(whole(1, 65535));
  launch->add_flag("--no-pin", options->unpinned, "Leave processes on all processors");
  launch->add_option("command", options->command, "What to start, behind --")->required();
  launch->positionals_at_end();
  return [options] { return run_launch(*options); };
}

}  // namespace command
