#include "train/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/json.h"
#include "train/ds_config.h"

namespace amxt::train {
namespace {

using testing::HasSubstr;

TEST(Options, HaveTheDefaultsThatTheCommandNames) {
  const auto o = resolve({}, nullptr, 2);
  ASSERT_TRUE(o) << o.error().message();
  EXPECT_EQ(o->sequence_length, 512);
  EXPECT_EQ(o->micro_batch, 1);
  EXPECT_EQ(o->accumulate, 4);
  EXPECT_EQ(o->global_batch(), 8);
  EXPECT_EQ(o->schedule.learning_rate, 2e-5);
  EXPECT_EQ(o->schedule.warmup_steps, 0);
  EXPECT_EQ(o->schedule.kind, ScheduleKind::kLinear);
  EXPECT_EQ(o->schedule.total_steps, 0);
  EXPECT_EQ(o->beta1, 0.9);
  EXPECT_EQ(o->beta2, 0.999);
  EXPECT_EQ(o->epsilon, 1e-8);
  EXPECT_EQ(o->weight_decay, 0.01);
  EXPECT_EQ(o->decay, DecayScope::kAll);
  EXPECT_EQ(o->clip, 1.0);
  EXPECT_EQ(o->mode, io::PackMode::kPack);
  EXPECT_EQ(o->seed, 42);
  EXPECT_EQ(o->compute_type, ComputeType::kBFloat16);
  EXPECT_EQ(o->gradient_type, GradientType::kAuto);
  EXPECT_EQ(o->loss_average, LossAverage::kTokens);
  EXPECT_EQ(o->nonfinite, Nonfinite::kStop);
  EXPECT_EQ(o->save_steps, 100);
  EXPECT_EQ(o->keep_checkpoints, 2);
  EXPECT_EQ(o->log_steps, 1);
  EXPECT_FALSE(o->steps);
  EXPECT_FALSE(o->epochs);
}

TEST(Options, TakeWhatIsGiven) {
  TrainOptions given;
  given.sequence_length = 128;
  given.decay = DecayScope::kMatrices;
  given.nonfinite = Nonfinite::kSkip;
  given.steps = 30;
  given.wave = 2;
  given.seed = -7;
  const auto o = resolve(given, nullptr, 1);
  ASSERT_TRUE(o) << o.error().message();
  EXPECT_EQ(o->sequence_length, 128);
  EXPECT_EQ(o->decay, DecayScope::kMatrices);
  EXPECT_EQ(o->nonfinite, Nonfinite::kSkip);
  EXPECT_EQ(o->wave, 2);
  EXPECT_EQ(o->seed, -7);
  // The horizon is the steps of the run unless it was named.
  EXPECT_EQ(o->schedule.total_steps, 30);
  EXPECT_FALSE(o->horizon_given);
  given.total_steps = 90;
  EXPECT_EQ(resolve(given, nullptr, 1)->schedule.total_steps, 90);
  EXPECT_TRUE(resolve(given, nullptr, 1)->horizon_given);
}

TEST(Options, NameTheOneThatIsOutOfItsRange) {
  const auto refuse = [](const std::function<void(TrainOptions&)>& set, const std::string& part) {
    TrainOptions given;
    set(given);
    const auto o = resolve(given, nullptr, 1);
    ASSERT_FALSE(o) << "expected: " << part;
    EXPECT_EQ(o.error().code(), Code::kInvalidArgument);
    EXPECT_THAT(o.error().message(), HasSubstr(part));
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  refuse([](TrainOptions& o) { o.sequence_length = 0; }, "sequence_length 0: must be 1 or more");
  refuse([](TrainOptions& o) { o.micro_batch = 0; }, "micro_batch 0");
  refuse([](TrainOptions& o) { o.accumulate = -1; }, "accumulate -1");
  refuse([](TrainOptions& o) { o.wave = -1; }, "wave -1");
  refuse([](TrainOptions& o) { o.warmup_steps = -1; }, "warmup_steps -1");
  refuse([](TrainOptions& o) { o.total_steps = -1; }, "total_steps -1");
  refuse([](TrainOptions& o) { o.steps = -1; }, "steps -1");
  refuse([](TrainOptions& o) { o.epochs = 0; }, "epochs 0");
  refuse([&](TrainOptions& o) { o.epochs = nan; }, "epochs nan");
  refuse([](TrainOptions& o) { o.epochs = 1e300; }, "epochs 1e+300: must be above 0 and at most");
  refuse([](TrainOptions& o) { o.learning_rate = 1e300; },
         "learning_rate 1e+300: must be 0 to 1000");
  refuse([](TrainOptions& o) { o.save_steps = -1; }, "save_steps -1");
  refuse([](TrainOptions& o) { o.keep_checkpoints = 0; }, "keep 0");
  refuse([](TrainOptions& o) { o.log_steps = 0; }, "log_steps 0");
  refuse([](TrainOptions& o) { o.eval_steps = -2; }, "eval_steps -2");
  refuse([](TrainOptions& o) { o.threads = -1; }, "threads -1");
  refuse([](TrainOptions& o) { o.memory_limit_bytes = -1; }, "memory_limit_bytes -1");
  refuse([](TrainOptions& o) { o.learning_rate = -1e-5; }, "learning_rate -1e-05");
  refuse([&](TrainOptions& o) { o.learning_rate = nan; }, "learning_rate nan");
  refuse([](TrainOptions& o) { o.beta1 = 1; }, "beta1 1");
  refuse([](TrainOptions& o) { o.beta2 = -0.1; }, "beta2 -0.1");
  refuse([](TrainOptions& o) { o.epsilon = 0; }, "epsilon 0");
  refuse([](TrainOptions& o) { o.weight_decay = -1; }, "weight_decay -1");
  refuse([](TrainOptions& o) { o.clip = -1; }, "clip -1");
  refuse([](TrainOptions& o) { o.steps = 5, o.epochs = 1; }, "steps 5 and epochs 1");
  refuse(
      [](TrainOptions& o) {
        o.sequence_length = int64_t{1} << 31;
        o.micro_batch = int64_t{1} << 31;
        o.accumulate = 4;
      },
      "more positions");
  // 2^62 positions can be counted, but not their bytes.
  refuse([](TrainOptions& o) { o.sequence_length = o.micro_batch = int64_t{1} << 31; },
         "more positions");
  refuse([](TrainOptions& o) { o.micro_batch = int64_t{1} << 40; },
         "micro_batch 1099511627776: must be at most 2147483648");
  refuse(
      [](TrainOptions& o) {
        o.compute_type = ComputeType::kFloat32;
        o.gradient_type = GradientType::kBFloat16;
      },
      "gradient_dtype bfloat16");
  EXPECT_FALSE(resolve({}, nullptr, 0));
}

TEST(Options, ReadEveryNameTheyWrite) {
  for (const auto value : {ComputeType::kBFloat16, ComputeType::kFloat32}) {
    EXPECT_EQ(compute_type_from_name(compute_type_name(value)).value(), value);
  }
  for (const auto value : {GradientType::kAuto, GradientType::kBFloat16, GradientType::kFloat32}) {
    EXPECT_EQ(gradient_type_from_name(gradient_type_name(value)).value(), value);
  }
  for (const auto value : {DecayScope::kAll, DecayScope::kMatrices}) {
    EXPECT_EQ(decay_from_name(decay_name(value)).value(), value);
  }
  for (const auto value : {LossAverage::kTokens, LossAverage::kMicroBatch}) {
    EXPECT_EQ(loss_average_from_name(loss_average_name(value)).value(), value);
  }
  for (const auto value : {Nonfinite::kStop, Nonfinite::kSkip}) {
    EXPECT_EQ(nonfinite_from_name(nonfinite_name(value)).value(), value);
  }
  for (const auto value : {Keep::kAuto, Keep::kInputs, Keep::kAttention, Keep::kAll}) {
    EXPECT_EQ(keep_from_name(keep_name(value)).value(), value);
  }
  for (const auto value : {io::PackMode::kPack, io::PackMode::kPad}) {
    EXPECT_EQ(mode_from_name(mode_name(value)).value(), value);
  }
}

TEST(Options, RefuseAnUnknownNameWithWhatIsAllowed) {
  const auto mode = mode_from_name("bucket");
  ASSERT_FALSE(mode);
  EXPECT_EQ(mode.error().code(), Code::kInvalidArgument);
  EXPECT_EQ(mode.error().message(), "mode 'bucket': not one of pack, pad");
  EXPECT_FALSE(compute_type_from_name("float16"));
  EXPECT_FALSE(gradient_type_from_name(""));
  EXPECT_FALSE(decay_from_name("biases"));
  EXPECT_FALSE(loss_average_from_name("mean"));
  EXPECT_FALSE(nonfinite_from_name("ignore"));
  EXPECT_FALSE(keep_from_name("none"));
}

TEST(Options, CanBeReadBackAsJson) {
  TrainOptions given;
  given.micro_batch = 3;
  given.steps = 12;
  const auto json = parse_json(options_json(*resolve(given, nullptr, 2)));
  ASSERT_TRUE(json) << json.error().message();
  EXPECT_EQ((*json)["micro_batch"], 3);
  EXPECT_EQ((*json)["global_batch"], 24);
  EXPECT_EQ((*json)["compute_dtype"], "bfloat16");
  EXPECT_EQ((*json)["schedule"], "linear");
  EXPECT_EQ((*json)["steps"], 12);
  EXPECT_TRUE((*json)["epochs"].is_null());
}

TEST(Options, CountTheStepsOfAJob) {
  EffectiveOptions o;
  o.micro_batch = 2;
  o.accumulate = 2;
  o.world_size = 2;
  EXPECT_EQ(job_steps(o, 80), 10);
  EXPECT_EQ(job_steps(o, 81), 11);
  EXPECT_EQ(job_steps(o, 1), 1);
  o.epochs = 2.5;
  EXPECT_EQ(job_steps(o, 80), 25);
  o.epochs = 0.01;
  EXPECT_EQ(job_steps(o, 80), 1);
  o.epochs = 1e300;
  EXPECT_GT(job_steps(o, 80), 1);
  o.epochs.reset();
  o.steps = 7;
  EXPECT_EQ(job_steps(o, 80), 7);
}

}  // namespace
}  // namespace amxt::train
