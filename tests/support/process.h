// A program as a test runs it: arguments, environment, working directory; its output as it comes; its end within a deadline.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

extern char** environ;

namespace amxt::test {

// What a test allows for things that work, sanitizers and busy machines included; a failing one ends here instead of hanging.
inline constexpr double kPatienceSeconds = 120;

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A directory that goes with the object.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    path_ = (std::filesystem::temp_directory_path() / "amxt-test-XXXXXX").string();
    if (mkdtemp(path_.data()) == nullptr) throw std::runtime_error("mkdtemp: " + path_);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

using Variables = std::map<std::string, std::string>;

struct ProcessOptions {
  Variables variables;          // besides the inherited ones, which tell of no launcher
  std::string directory;        // empty: the test's own
  std::vector<int> processors;  // empty: all
};

// How a process ended and what it said.
struct Finished {
  int code = -1;   // exit code, -1 when a signal ended it
  int signal = 0;  // that ended it, else 0
  std::string out, err;
  double seconds = 0;

  std::string text() const {
    return "code " + std::to_string(code) + ", signal " + std::to_string(signal) +
           "\n--- stdout\n" + out + "--- stderr\n" + err;
  }
  bool succeeded() const { return code == 0; }
};

inline std::ostream& operator<<(std::ostream& stream, const Finished& finished) {
  return stream << finished.text();
}

class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments, const ProcessOptions& options = {})
      : begin_(seconds_now()) {
    std::array<int, 2> out{}, err{};
    if (pipe2(out.data(), O_CLOEXEC) != 0 || pipe2(err.data(), O_CLOEXEC) != 0)
      throw std::runtime_error("pipe2");
    std::vector<std::string> variables = environment(options.variables);
    std::vector<char*> argv = pointers(arguments), envp = pointers(variables);
    cpu_set_t mask;
    CPU_ZERO(&mask);
    for (const int processor : options.processors) CPU_SET(processor, &mask);
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(126);
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      const int null = open("/dev/null", O_RDONLY);
      if (null >= 0) dup2(null, STDIN_FILENO);
      if (!options.directory.empty() && chdir(options.directory.c_str()) != 0) _exit(126);
      if (!options.processors.empty()) sched_setaffinity(0, sizeof(mask), &mask);
      execvpe(argv[0], argv.data(), envp.data());
      _exit(127);
    }
    close(out[1]);
    close(err[1]);
    if (pid_ < 0) throw std::runtime_error("fork");
    descriptor_ = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
    reader_ = std::thread([this, out, err] { read_both(out[0], err[0]); });
  }

  ~Process() {
    if (!reaped_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    {
      std::lock_guard lock(mutex_);
      abandoned_ = true;
    }
    reader_.join();
    close(descriptor_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const { kill(pid_, number); }

  // Until the two outputs together hold `text` `times` times; false when the process ends or time is over before.
  bool wait_for(std::string_view text, int times = 1, double patience = kPatienceSeconds) {
    std::unique_lock lock(mutex_);
    const auto there = [&] { return count(out_, text) + count(err_, text) >= times; };
    changed_.wait_for(lock, std::chrono::duration<double>(patience),
                      [&] { return there() || closed_; });
    return there();
  }

  // Ends it by force when the time is over, which `code` and `signal` then show.
  Finished wait(double patience = kPatienceSeconds) {
    pollfd end{descriptor_, POLLIN, 0};
    const double deadline = seconds_now() + patience;
    while (poll(&end, 1, static_cast<int>(std::max(0.0, deadline - seconds_now()) * 1000)) < 0 &&
           errno == EINTR) {
    }
    if (end.revents == 0) {
      ADD_FAILURE() << "process " << pid_ << " did not end within " << patience << " s";
      kill(pid_, SIGKILL);
    }
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    reaped_ = true;
    Finished finished;
    finished.seconds = seconds_now() - begin_;
    if (WIFEXITED(status)) finished.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) finished.signal = WTERMSIG(status);
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(2), [&] { return closed_; });
    finished.out = out_;
    finished.err = err_;
    return finished;
  }

 private:
  static int count(const std::string& all, std::string_view text) {
    int result = 0;
    for (size_t at = all.find(text); at != std::string::npos; at = all.find(text, at + text.size()))
      ++result;
    return result;
  }

  static std::vector<char*> pointers(const std::vector<std::string>& texts) {
    std::vector<char*> result;
    for (const std::string& text : texts) result.push_back(const_cast<char*>(text.data()));
    result.push_back(nullptr);
    return result;
  }

  // Ours, without what a launcher, or a user of the library, may have said there.
  static std::vector<std::string> environment(const Variables& own) {
    std::vector<std::string> result;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string_view text = *entry;
      const std::string name(text.substr(0, text.find('=')));
      const bool launcher =
          std::any_of(kLauncherPrefixes.begin(), kLauncherPrefixes.end(),
                      [&](std::string_view prefix) { return name.starts_with(prefix); });
      if (!launcher && !own.contains(name)) result.emplace_back(text);
    }
    for (const auto& [name, value] : own) result.push_back(name + "=" + value);
    return result;
  }

  void read_both(int out, int err) {
    std::array<pollfd, 2> ends{pollfd{out, POLLIN, 0}, pollfd{err, POLLIN, 0}};
    std::array<std::string*, 2> texts{&out_, &err_};
    std::array<char, 65536> buffer{};
    for (;;) {
      const int ready = poll(ends.data(), ends.size(), 50);
      std::lock_guard lock(mutex_);
      if (ready <= 0 && abandoned_) break;
      for (size_t i = 0; i < ends.size(); ++i) {
        if (ends[i].fd < 0 || ends[i].revents == 0) continue;
        const ssize_t count = read(ends[i].fd, buffer.data(), buffer.size());
        if (count > 0) texts[i]->append(buffer.data(), static_cast<size_t>(count));
        if (count == 0) ends[i].fd = -1;
      }
      changed_.notify_all();
      if (ends[0].fd < 0 && ends[1].fd < 0) break;
    }
    close(out);
    close(err);
    std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

  static constexpr std::array<std::string_view, 19> kLauncherPrefixes = {
      "RANK",       "WORLD_SIZE",     "LOCAL_RANK",    "LOCAL_WORLD_SIZE",
      "GROUP_RANK", "MASTER_",        "TORCHELASTIC_", "AMXTRAIN_",
      "SLURM",      "OMPI_",          "PMI_",          "PMIX_",
      "MPI_LOCAL",  "JOB_COMPLETION", "PET_",          "OMP_NUM_THREADS",
      "MV2_",       "JAX_",           "KUBERNETES_"};

  double begin_;
  pid_t pid_ = -1;
  int descriptor_ = -1;
  bool reaped_ = false;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::string out_, err_;
  bool closed_ = false;
  bool abandoned_ = false;
  std::thread reader_;
};

inline Finished run_process(const std::vector<std::string>& arguments,
                            const ProcessOptions& options = {},
                            double patience = kPatienceSeconds) {
  return Process(arguments, options).wait(patience);
}

}  // namespace amxt::test
