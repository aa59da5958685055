// Collectives among real processes of which one is killed at a random moment: the others end by name, in time, and nothing is left behind.
// This executable is also the rank.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <list>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "comm/collectives.h"
#include "ranks/comm_rank.h"
#include "ranks/comm_rank_process.h"

namespace amxt::comm::test {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using Limits = Collectives::Limits;

// Collectives of all sizes, for ever.
int play_collectives(const std::string&) {
  auto launch = find_launch({}, process_environment());
  if (!launch) report(launch.error());
  auto group = join(*launch, 30'000);
  auto made = make_collectives(*group, {}, nullptr, Deadline::after(kPatience));
  if (!made) report(made.error());
  Collectives& all = **made;
  const auto limits = [] { return Limits{Deadline::after(60 * kSecond), nullptr}; };
  std::vector<float> data(1 << 20, 1.F), out(1 << 20);
  report_unless(all.barrier(limits()));
  say("running");
  for (;;) {
    for (const int64_t count : {int64_t{7}, int64_t{5000}, int64_t{1} << 20}) {
      report_unless(
          all.all_reduce(data.data(), out.data(), count, DType::kF32, ReduceOp::kSum, limits()));
      report_unless(all.broadcast(out.data(), count, DType::kF32, all.size() - 1, limits()));
      const std::vector<int64_t> counts(static_cast<size_t>(all.size()), count / all.size());
      report_unless(all.reduce_scatter(data.data(), out.data(), counts, DType::kF32, ReduceOp::kMax,
                                       limits()));
      report_unless(all.all_gather(data.data(), out.data(), counts, DType::kF32, limits()));
      report_unless(all.all_to_all(data.data(), counts, out.data(), counts, DType::kF32, limits()));
    }
  }
}

class CommCollectives : public ::testing::TestWithParam<std::vector<int>> {
};  // the node of each rank

TEST_P(CommCollectives, AKilledRankIsNamedByAllOthersInTime) {
  const std::vector<int> layout = GetParam();
  const auto world = static_cast<int>(layout.size());
  const auto seed =
      static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  std::mt19937_64 random(seed);
  const std::string host = own_loopback();
  for (int round = 0; round < 4; ++round) {
    const auto victim = static_cast<int>(random() % static_cast<uint64_t>(world));
    SCOPED_TRACE(fmt::format("seed {}, round {}, rank {} dies", seed, round, victim));
    std::list<RankProcess> ranks;
    for (int rank = 0; rank < world; ++rank) {
      const int node = layout[static_cast<size_t>(rank)];
      ranks.emplace_back(
          "collectives",
          std::map<std::string, std::string>{
              {"RANK", std::to_string(rank)},
              {"WORLD_SIZE", std::to_string(world)},
              {"LOCAL_RANK",
               std::to_string(std::count(layout.begin(), layout.begin() + rank, node))},
              {"LOCAL_WORLD_SIZE", std::to_string(std::count(layout.begin(), layout.end(), node))},
              {"MASTER_ADDR", host},
              {"MASTER_PORT", "29500"},
              {"AMXTRAIN_NODE_ID", fmt::format("node-{}", node)},
              {"TORCHELASTIC_RUN_ID", fmt::format("round-{}", round)}});
    }
    for (RankProcess& rank : ranks) rank.expect("running");
    // Anywhere in the collectives.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 100'000));
    auto dead = std::next(ranks.begin(), victim);
    const std::string name = fmt::format("rank {} (pid {}", victim, dead->pid());
    const Deadline end = Deadline::after(2 * kSecond);
    dead->kill_and_wait();
    for (auto rank = ranks.begin(); rank != ranks.end(); ++rank) {
      if (rank == dead) continue;
      const auto failure = rank->expect_error(std::max<int64_t>(end.left_ns(), 1));
      EXPECT_THAT(static_cast<int>(failure.code), AnyOf(static_cast<int>(Code::kCommPeerLost),
                                                        static_cast<int>(Code::kCommAborted)));
      EXPECT_EQ(failure.rank, victim);
      EXPECT_THAT(failure.message, HasSubstr(name));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, CommCollectives,
                         ::testing::Values(std::vector<int>{0, 0, 0}, std::vector<int>{0, 1, 2},
                                           std::vector<int>{0, 0, 1, 1}),
                         [](const auto& layout) {
                           std::string name = "Nodes";
                           for (const int node : layout.param) name += std::to_string(node);
                           return name;
                         });

}  // namespace
}  // namespace amxt::comm::test

int main(int argc, char** argv) {
  return amxt::comm::test::run_tests_or_rank(argc, argv, amxt::comm::test::play_collectives);
}
