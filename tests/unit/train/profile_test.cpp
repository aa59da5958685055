#include "train/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/json.h"

namespace amxt::train {
namespace {

using ::testing::HasSubstr;

class ProfileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pool = ThreadPool::create({.threads = 1, .cpus = {}, .spin_us = 0});
    ASSERT_TRUE(pool.ok());
    pool_ = std::move(*pool);
  }
  void work(const char* name, double flop, double bytes) {
    const Span span(pool_->trace(), name, flop, bytes);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  std::unique_ptr<Profile> profile_of_three() {
    auto profile = Profile::begin(pool_.get(), (*cpu_isa())->chosen);
    EXPECT_TRUE(profile.ok());
    EXPECT_NE(pool_->trace(), nullptr);
    work("product", 1e9, 0);
    work("product", 1e9, 0);
    work("wait", 0, 0);
    (*profile)->end();
    EXPECT_EQ(pool_->trace(), nullptr);
    work("later", 1e9, 0);
    return std::move(*profile);
  }

  std::unique_ptr<ThreadPool> pool_;
};

TEST_F(ProfileTest, AddsUpOperationsOfOneNameAndNamesTheRest) {
  const auto profile = profile_of_three();
  const std::vector<Profile::Row> rows = profile->rows();
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].name, "product");
  EXPECT_EQ(rows[0].calls, 2);
  EXPECT_EQ(rows[0].flop, 2e9);
  EXPECT_GE(rows[0].seconds, 4e-3);
  EXPECT_GT(rows[0].limit_seconds, 2e9 / 1e14) << "no thread does 100 TFLOP/s";
  EXPECT_LT(rows[0].limit_seconds, 2e9 / 1e9);
  EXPECT_EQ(rows[1].name, "wait");
  EXPECT_EQ(rows[1].limit_seconds, 0);
  EXPECT_EQ(rows[2].name, "between operations");
  EXPECT_GE(rows[2].seconds, 0);
}

TEST_F(ProfileTest, TheTableAndTheTraceSayTheSame) {
  const auto profile = profile_of_three();
  const std::string table = profile->table(7);
  EXPECT_THAT(table, HasSubstr("step 7: "));
  EXPECT_THAT(table, HasSubstr("TFLOP/s"));
  EXPECT_THAT(table, HasSubstr("\nproduct                     2"));
  const auto json = parse_json(profile->chrome_trace(3));
  ASSERT_TRUE(json.ok());
  const Json& events = json->at("traceEvents");
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].at("name"), "product");
  EXPECT_EQ(events[0].at("ph"), "X");
  EXPECT_EQ(events[0].at("pid"), 3);
  EXPECT_EQ(events[0].at("args").at("flop"), 1e9);
  EXPECT_GE(events[0].at("dur"), 2000);
  EXPECT_GE(events[1].at("ts").get<double>(),
            events[0].at("ts").get<double>() + events[0].at("dur").get<double>());
  EXPECT_FALSE(events[2].at("args").contains("flop"));
}

TEST_F(ProfileTest, APoolThatOutlivesItTracesNowhere) {
  {
    const auto profile = Profile::begin(pool_.get(), (*cpu_isa())->chosen);
    ASSERT_TRUE(profile.ok());
  }
  EXPECT_EQ(pool_->trace(), nullptr);
  work("later", 1, 1);
}

}  // namespace
}  // namespace amxt::train
