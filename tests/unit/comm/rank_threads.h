// RankThreads: ranks as threads of one process, each with a Group of its own, met through a store like processes.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "comm/group.h"

namespace amxt::comm::test {

inline constexpr int64_t kSecond = 1'000'000'000;

// A loopback address that no other test uses at the same time: every 127.x.y.z is this machine.
inline std::string own_loopback() {
  static std::atomic<int> count{0};
  const int pid = getpid();
  return fmt::format("127.{}.{}.{}", 1 + (pid >> 8) % 250, pid % 250, 1 + count++ % 250);
}

inline LaunchInfo local_launch(int rank, int world, const std::string& address, int port = 29500) {
  LaunchInfo launch;
  launch.rank = launch.local_rank = rank;
  launch.world_size = launch.local_world_size = world;
  launch.master_address = address;
  launch.master_port = port;
  launch.source = "test";
  return launch;
}

struct RankOptions {
  int threads = 1;       // that each rank says it has
  bool finalize = true;  // after the body, unless the group has failed
  // Node of each rank, as AMXTRAIN_NODE_ID would say; none: all on one.
  std::vector<int> nodes = {};
  int64_t peer_timeout_ns = 10 * kSecond;
  std::string secret_file = {};
  bool allow_unauthenticated_data = false;
};

// The launch of a rank on one of several nodes of this machine.
inline LaunchInfo launch_on_nodes(int rank, const std::vector<int>& nodes,
                                  const std::string& address, int port = 29500) {
  LaunchInfo launch = local_launch(rank, static_cast<int>(nodes.size()), address, port);
  const int node = nodes[static_cast<size_t>(rank)];
  launch.node_hint = "node-" + std::to_string(node);
  launch.node_is_named = true;
  launch.local_rank = static_cast<int>(std::count(nodes.begin(), nodes.begin() + rank, node));
  launch.local_world_size = static_cast<int>(std::count(nodes.begin(), nodes.end(), node));
  return launch;
}

// Runs body(group) on `world` threads.
inline void RankThreads(int world, const std::function<void(Group&)>& body,
                        const RankOptions& rank_options = {}) {
  const std::string address = own_loopback();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank) {
    ranks.emplace_back([&, rank] {
      GroupOptions options;
      options.threads = rank_options.threads;
      options.peer_timeout_ns = rank_options.peer_timeout_ns;
      options.allow_unauthenticated_data = rank_options.allow_unauthenticated_data;
      LaunchInfo launch = rank_options.nodes.empty()
                              ? local_launch(rank, world, address)
                              : launch_on_nodes(rank, rank_options.nodes, address);
      launch.secret_file = rank_options.secret_file;
      auto group = Group::create(launch, options, nullptr, Deadline::after(20 * kSecond));
      ASSERT_TRUE(group) << "rank " << rank << ": " << group.error().message();
      body(**group);
      if (!rank_options.finalize || !(*group)->check()) return;
      const auto finalized = (*group)->finalize(Deadline::after(20 * kSecond));
      EXPECT_TRUE(finalized) << "rank " << rank << ": " << finalized.error().message();
    });
  }
  for (std::thread& rank : ranks) rank.join();
}

}  // namespace amxt::comm::test
