// NetworkNodes: machines of a test, as network namespaces that a bridge connects. Node i is 10.91.0.(i + 1) on its eth0.
//
// Each namespace lives as long as the process that holds it, which dies with the test, however that ends: nothing is left behind.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace amxt::test {

class NetworkNodes {
 public:
  // When it can't be done here, reason() says why: root and the tools ip and nsenter are needed.
  explicit NetworkNodes(int count) {
    if (!is_here("ip") || !is_here("nsenter")) {
      reason_ = "the tools ip and nsenter are needed";
      return;
    }
    for (int i = 0; i <= count && reason_.empty(); ++i) hold();
    if (!reason_.empty()) return;
    const pid_t hub = holders_.back();
    in(hub, "ip link add hub type bridge && ip link set hub up");
    for (int i = 0; i < count; ++i) {
      const pid_t node = holders_[static_cast<size_t>(i)];
      in(hub, fmt::format("ip link add port{0} type veth peer name eth0 netns {1} && "
                          "ip link set port{0} master hub up",
                          i, node));
      in(node, fmt::format("ip link set lo up && ip addr add {}/24 dev eth0 && ip link set eth0 up",
                           address(i)));
    }
  }
  ~NetworkNodes() {
    for (const pid_t holder : holders_) {
      kill(holder, SIGKILL);
      waitpid(holder, nullptr, 0);
    }
  }
  NetworkNodes(const NetworkNodes&) = delete;
  NetworkNodes& operator=(const NetworkNodes&) = delete;

  const std::string& reason() const { return reason_; }
  static std::string address(int node) { return fmt::format("10.91.0.{}", node + 1); }
  // For setns(2).
  std::string path(int node) const {
    return fmt::format("/proc/{}/ns/net", holders_[static_cast<size_t>(node)]);
  }
  // A shell command on the node.
  void on(int node, const std::string& command) {
    in(holders_[static_cast<size_t>(node)], command);
  }
  // Nothing reaches or leaves the node any more, and nobody is told.
  void cut_off(int node) { in(holders_.back(), fmt::format("ip link set port{} nomaster", node)); }
  void reconnect(int node) {
    in(holders_.back(), fmt::format("ip link set port{} master hub", node));
  }

 private:
  static bool is_here(const std::string& tool) {
    return std::system(("command -v " + tool + " > /dev/null").c_str()) == 0;
  }

  void hold() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
    const pid_t holder = fork();
    if (holder == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int error = unshare(CLONE_NEWNET) == 0 ? 0 : errno;
      if (write(ends[1], &error, sizeof error) < 0) _exit(1);
      for (;;) pause();
    }
    close(ends[1]);
    holders_.push_back(holder);
    int error = 0;
    if (read(ends[0], &error, sizeof error) != sizeof error || error != 0) {
      reason_ = fmt::format("no network namespace: {}", std::strerror(error));
    }
    close(ends[0]);
  }

  void in(pid_t holder, const std::string& command) {
    const std::string whole =
        fmt::format("nsenter --net=/proc/{}/ns/net sh -c '{}' 2>&1", holder, command);
    if (std::system(whole.c_str()) != 0 && reason_.empty()) reason_ = "failed: " + command;
  }

  std::vector<pid_t> holders_;  // of the nodes, last the hub's
  std::string reason_;
};

}  // namespace amxt::test
