#include "train/bench_samples.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace amxt::train {
namespace {

const BenchKind kKind{"thing", {{"rows", 100}}, {{1}}};

std::unique_ptr<BenchRun> run_of(int64_t repeat,
                                 const BenchLimits& limits = {Deadline::never(), nullptr}) {
  BenchRequest request;
  request.repeat = repeat;
  auto run = BenchRun::create(kKind, request, 2, false, limits);
  EXPECT_TRUE(run) << run.error().message();
  return std::move(*run);
}

// Something that takes about so long.
std::function<Status()> lasting(int milliseconds) {
  return [milliseconds]() -> Status {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    return {};
  };
}

Contender named(const char* form, std::function<Status()> run) {
  return {Json{{"form", form}}, 0, 1e6, std::move(run)};
}

TEST(BenchSamples, EachTakesItsTurnInEachRound) {
  std::string order;
  const auto writes = [&](char name) {
    return [&order, name]() -> Status {
      order += name;
      return {};
    };
  };
  const auto run = run_of(2);
  run->limit_by({"limit", BenchLimit::Unit::kBytes, 1e6, writes('L')});
  std::vector<Contender> contenders;
  contenders.push_back(named("a", writes('a')));
  contenders.push_back(named("b", writes('b')));
  ASSERT_TRUE(run->take_turns({7}, std::move(contenders)));
  EXPECT_EQ(order, "abLabLab") << "once to prepare, then two rounds";
}

TEST(BenchSamples, RowsAreOfMediansAndOfTheBestLimit) {
  const auto run = run_of(3);
  int call = 0;  // the limit takes 10, 2 and 10 ms, the contender 20 (to prepare), 4, 4 and 30
  run->limit_by(
      {"limit", BenchLimit::Unit::kBytes, 4e6, [&]() { return lasting(++call == 2 ? 2 : 10)(); }});
  int turn = 0;
  std::vector<Contender> contenders;
  contenders.push_back(named("a", [&]() {
    ++turn;
    return lasting(turn == 1 ? 20 : turn == 4 ? 30 : 4)();
  }));
  ASSERT_TRUE(run->take_turns({7}, std::move(contenders)));
  const Json result = run->result();
  EXPECT_EQ(result.at("threads"), 2);
  EXPECT_EQ(result.at("repeat"), 3);
  EXPECT_EQ(result.at("sides"), Json::array({"rows"}));
  const Json& peak = result.at("peak");
  EXPECT_EQ(peak.at("name"), "limit");
  EXPECT_GT(peak.at("gb_per_second"), peak.at("gb_per_second_median"));
  ASSERT_EQ(result.at("rows").size(), 1u);
  const Json& row = result.at("rows")[0];
  EXPECT_EQ(row.at("form"), "a");
  EXPECT_EQ(row.at("rows"), 7);
  EXPECT_FALSE(row.contains("flop"));
  EXPECT_GE(row.at("seconds_least"), 0.004);
  EXPECT_GE(row.at("seconds"), row.at("seconds_least"));
  EXPECT_LT(row.at("seconds"), row.at("seconds_most"));
  EXPECT_GE(row.at("seconds_most"), 0.030);
  EXPECT_NEAR(row.at("ratio_to_peak").get<double>(),
              row.at("gb_per_second").get<double>() / peak.at("gb_per_second").get<double>(), 1e-9);
  EXPECT_NEAR(row.at("gb_per_second").get<double>(), 1e-3 / row.at("seconds").get<double>(), 1e-9);
}

TEST(BenchSamples, AFailureEndsTheRun) {
  const auto run = run_of(5);
  run->limit_by({"limit", BenchLimit::Unit::kFlop, 1, lasting(0)});
  int calls = 0;
  std::vector<Contender> contenders;
  contenders.push_back(named("a", [&]() -> Status {
    if (++calls == 3) return Error(Code::kOutOfMemory, "no more");
    return {};
  }));
  const Status status = run->take_turns({7}, std::move(contenders));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kOutOfMemory);
  EXPECT_EQ(calls, 3);
}

TEST(BenchSamples, ACancelledRunEndsBeforeTheNextTurn) {
  std::atomic<bool> cancel{false};
  const auto run = run_of(5, {Deadline::never(), &cancel});
  run->limit_by({"limit", BenchLimit::Unit::kFlop, 1, lasting(0)});
  int calls = 0;
  std::vector<Contender> contenders;
  contenders.push_back(named("a", [&]() -> Status {
    cancel = ++calls == 2;
    return {};
  }));
  const Status status = run->take_turns({7}, std::move(contenders));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kCancelled);
  EXPECT_EQ(calls, 2);
}

TEST(BenchSamples, ProcessorTimeLeavesOutWhoSleeps) {
  const auto run = run_of(1);
  const CpuClocks clocks(*run->pool());
  BenchSamples samples;
  ASSERT_TRUE(samples.add(clocks, lasting(30)));
  ASSERT_EQ(samples.seconds.size(), 1u);
  EXPECT_GE(samples.seconds[0], 0.030);
  ASSERT_EQ(samples.cpu_seconds.size(), 1u);
  EXPECT_LT(samples.cpu_seconds[0], 0.015);
  EXPECT_GE(samples.cpu_seconds[0], 0);
}

}  // namespace
}  // namespace amxt::train
