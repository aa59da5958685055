#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <string>

#include "base/file.h"
#include "base/json.h"

namespace amxt::train {
namespace {

Schedule schedule(ScheduleKind kind, int64_t warmup, int64_t total, double rate = 1) {
  Schedule s;
  s.kind = kind;
  s.learning_rate = rate;
  s.warmup_steps = warmup;
  s.total_steps = total;
  return s;
}

TEST(Schedule, LinearRisesFromZeroAndFallsToZero) {
  const Schedule s = schedule(ScheduleKind::kLinear, 2, 6, 2e-5);
  const double expected[] = {0, 1e-5, 2e-5, 1.5e-5, 1e-5, 0.5e-5, 0, 0};
  for (int64_t step = 0; step < 8; ++step) {
    EXPECT_NEAR(s.rate(step), expected[step], 1e-18) << "step " << step;
  }
}

TEST(Schedule, LinearWithoutWarmupBeginsAtTheTop) {
  EXPECT_EQ(schedule(ScheduleKind::kLinear, 0, 4).rate(0), 1);
  EXPECT_EQ(schedule(ScheduleKind::kLinear, 0, 4).rate(3), 0.25);
}

TEST(Schedule, CosineFallsByHalfAWave) {
  const Schedule s = schedule(ScheduleKind::kCosine, 1, 5);
  EXPECT_EQ(s.rate(0), 0);
  EXPECT_EQ(s.rate(1), 1);
  EXPECT_DOUBLE_EQ(s.rate(2), 0.5 * (1 + std::cos(std::numbers::pi * 0.25)));
  EXPECT_DOUBLE_EQ(s.rate(3), 0.5);
  EXPECT_NEAR(s.rate(5), 0, 1e-16);
}

TEST(Schedule, ConstantStaysAfterItsWarmup) {
  const Schedule s = schedule(ScheduleKind::kConstant, 4, 0);
  EXPECT_EQ(s.rate(1), 0.25);
  EXPECT_EQ(s.rate(4), 1);
  EXPECT_EQ(s.rate(1000000), 1);
}

TEST(Schedule, AWarmupLongerThanTheRunDividesByNothing) {
  for (const ScheduleKind kind : {ScheduleKind::kLinear, ScheduleKind::kCosine,
                                  ScheduleKind::kWarmupDecay, ScheduleKind::kWarmupCosine}) {
    for (int64_t step = 0; step < 20; ++step) {
      EXPECT_TRUE(std::isfinite(schedule(kind, 10, 3).rate(step))) << schedule_name(kind);
    }
  }
}

TEST(Schedule, DeepSpeedLagsOneStepAndWarmsUpOverTwoStepsAtLeast) {
  for (const int64_t warmup : {0, 1, 2}) {
    const Schedule s = schedule(ScheduleKind::kWarmup, warmup, 0);
    EXPECT_EQ(s.rate(0), 0);
    EXPECT_EQ(s.rate(1), 0);
    EXPECT_DOUBLE_EQ(s.rate(2), 1);  // log(2) / log(2)
    EXPECT_EQ(s.rate(3), 1);
  }
}

// Values that transformers and DeepSpeed gave: tests/golden/README.md.
TEST(Schedule, GivesTheRatesOfTransformersAndDeepSpeed) {
  const auto text = read_text_file(AMXT_TEST_GOLDEN_DIR "/schedules.json", 1 << 20);
  ASSERT_TRUE(text) << text.error().message();
  const auto golden = parse_json(*text);
  ASSERT_TRUE(golden) << golden.error().message();
  ASSERT_GE(golden->size(), 18u);
  for (const Json& entry : *golden) {
    const Json& parameters = entry.at("parameters");
    const auto kind = schedule_from_name(entry.at("name").get<std::string>());
    ASSERT_TRUE(kind) << kind.error().message();
    Schedule s = schedule(*kind, 0, 0);
    s.warmup_steps = parameters.value("num_warmup_steps", parameters.value("warmup_num_steps", 0));
    s.total_steps = parameters.value("num_training_steps", parameters.value("total_num_steps", 0));
    s.learning_rate = parameters.value("warmup_max_lr", 1.0);
    s.warmup_min_lr = parameters.value("warmup_min_lr", 0.0);
    s.warmup_log = parameters.value("warmup_type", "log") == "log";
    s.warmup_min_ratio = parameters.value("warmup_min_ratio", 0.0);
    s.cosine_min_ratio = parameters.value("cos_min_ratio", 0.0);
    int64_t step = 0;
    for (const Json& rate : entry.at("lr")) {
      EXPECT_NEAR(s.rate(step), rate.get<double>(), 1e-15) << entry.dump() << " step " << step;
      ++step;
    }
  }
}

TEST(Schedule, HasANameForEachKindAndBack) {
  for (const ScheduleKind kind :
       {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine,
        ScheduleKind::kWarmup, ScheduleKind::kWarmupDecay, ScheduleKind::kWarmupCosine}) {
    const auto back = schedule_from_name(schedule_name(kind));
    ASSERT_TRUE(back);
    EXPECT_EQ(*back, kind);
  }
}

TEST(Schedule, RefusesAnUnknownNameByName) {
  const auto kind = schedule_from_name("polynomial");
  ASSERT_FALSE(kind);
  EXPECT_EQ(kind.error().code(), Code::kInvalidArgument);
  EXPECT_NE(kind.error().message().find("'polynomial'"), std::string::npos);
}

}  // namespace
}  // namespace amxt::train
