// The memory plan: every part of it, what it chooses as the limit shrinks, and what it refuses.
#include "train/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/cpu.h"
#include "base/json.h"
#include "golden_job.h"
#include "model/config.h"

namespace amxt::train {
namespace {

using test::must;
using testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kPlenty = int64_t{1} << 50;

model::ModelConfig preset(const std::string& name) {
  return must(model::parse_config(must(model::preset_config(name)), name));
}

MemoryPlan plan(const model::ModelConfig& config, const EffectiveOptions& options, int ranks = 1,
                int64_t memory = kPlenty) {
  return must(make_plan(config, options, ranks, 2, memory));
}

TEST(Plan, CountsEveryPartAndTheSumIsThePeak) {
  const model::ModelConfig config = preset("60m");
  for (const int ranks : {1, 2, 3, 8}) {
    EffectiveOptions options;
    options.world_size = ranks;
    const MemoryPlan p = plan(config, options, ranks);
    const Json json = must(parse_json(plan_json(config, options, p, {"a note"})));
    EXPECT_EQ(json["notes"], Json::array({"a note"}));
    int64_t per_rank = 0, shared = 0;
    for (const Json& part : json["parts"]) {
      EXPECT_GT(part["bytes"].get<int64_t>(), 0) << part;
      (part["shared"].get<bool>() ? shared : per_rank) += part["bytes"].get<int64_t>();
    }
    EXPECT_EQ(json["parts"].size(), 8u);
    EXPECT_EQ(shared, p.weights + p.arena);
    EXPECT_EQ(per_rank, p.low_bits + p.moments + p.gradients + p.kept + p.scratch + p.overhead);
    EXPECT_EQ(p.peak_bytes_per_node(), ranks * per_rank + shared);
    EXPECT_EQ(p.peak_bytes_per_rank(), per_rank + shared / ranks);
    EXPECT_EQ(json["peak_bytes_per_node"], p.peak_bytes_per_node());
    EXPECT_EQ(json["peak_bytes_per_rank"], p.peak_bytes_per_rank());
    EXPECT_EQ(json["private_bytes_per_rank"], per_rank);
    EXPECT_EQ(json["shared_bytes_per_node"], shared);
    EXPECT_EQ(json["global_batch"], options.accumulate * ranks);
  }
}

// 2 + 2 + 8 + 2 bytes per parameter in bfloat16, 4 + 8 + 4 in float32; a rank keeps its share.
TEST(Plan, TakesTheBytesPerParameterThatTheDocumentsName) {
  const model::ModelConfig config = preset("60m");
  const auto parameters = static_cast<double>(model::parameter_count(config));
  for (const int ranks : {1, 4}) {
    const auto expect_bytes = [&](int64_t bytes, double per_parameter) {
      const double expected = per_parameter * parameters;
      EXPECT_NEAR(static_cast<double>(bytes), expected, 0.03 * expected);
    };
    EffectiveOptions options;
    options.world_size = ranks;
    const MemoryPlan bf16 = plan(config, options, ranks);
    expect_bytes(bf16.weights, 2);
    expect_bytes(bf16.low_bits * ranks, 2);
    expect_bytes(bf16.moments * ranks, 8);
    expect_bytes(bf16.gradients * ranks, 2);
    EXPECT_EQ(bf16.gradient_dtype, DType::kBF16);
    options.wave = 1;
    const MemoryPlan waves = plan(config, options, ranks);
    expect_bytes(waves.gradients * ranks, 4);
    EXPECT_EQ(waves.gradient_dtype, DType::kF32);
    options.compute_type = ComputeType::kFloat32;
    const MemoryPlan f32 = plan(config, options, ranks);
    expect_bytes(f32.weights, 4);
    EXPECT_EQ(f32.low_bits, 0);
    expect_bytes(f32.moments * ranks, 8);
    expect_bytes(f32.gradients * ranks, 4);
    options.forward_only = true;
    const MemoryPlan forward = plan(config, options, ranks);
    EXPECT_EQ(forward.low_bits + forward.moments + forward.gradients, 0);
    expect_bytes(forward.weights, 4);
  }
}

// The plan's bytes are those of the memory that a job takes; buffers end on whole pages.
template <typename E>
void expect_allocated_as_planned(int world, train::GradientType gradient) {
  constexpr int64_t kPage = 4096;
  test::ThreadGroups groups(world);
  groups.run([&](comm::Group& group) {
    EffectiveOptions options = test::golden_options(32, 1, 4);
    options.gradient_type = gradient;
    test::Job<E> job(test::golden_path("llama3_1"), group, options);
    const MemoryPlan& p = job.plan();
    EXPECT_GE(job.parameters().shared_bytes(), p.weights);
    EXPECT_LT(job.parameters().shared_bytes(), p.weights + kPage);
    const int64_t state = p.low_bits + p.moments + p.gradients;
    EXPECT_LT(job.parameters().private_bytes(), state + 3 * kPage);
    if (world == 1) {
      EXPECT_GE(job.parameters().private_bytes(), state);
    }
  });
}

TEST(Plan, SaysWhatAJobAllocates) {
  expect_allocated_as_planned<bf16>(1, GradientType::kAuto);
  expect_allocated_as_planned<bf16>(1, GradientType::kFloat32);
  expect_allocated_as_planned<bf16>(3, GradientType::kAuto);
  expect_allocated_as_planned<float>(2, GradientType::kAuto);
}

// Four nodes of two: each keeps a fourth of the state, whole, and a window of a few layers.
TEST(Plan, DividesTheStateAmongNodes) {
  const model::ModelConfig config = preset("300m");
  EffectiveOptions options;
  options.world_size = 8;
  const MemoryPlan one = must(make_plan(config, options, even_nodes(8, 1), 1, kPlenty)),
                   four = must(make_plan(config, options, even_nodes(8, 4), 1, kPlenty));
  EXPECT_EQ(four.nodes, 4);
  EXPECT_EQ(four.world, 8);
  EXPECT_EQ(four.ranks, 2);
  EXPECT_NEAR(static_cast<double>(four.weights), 0.25 * static_cast<double>(one.weights),
              0.02 * static_cast<double>(one.weights));
  EXPECT_EQ(four.moments, one.moments);  // of a rank
  EXPECT_EQ(one.window + one.exchange, 0);
  EXPECT_GT(four.exchange, 0);
  EXPECT_LT(four.peak_bytes_per_node(), one.peak_bytes_per_node());
  // The window follows the live parameters, and never has less than a layer.
  options.live_parameters = 1;
  const MemoryPlan tight = must(make_plan(config, options, even_nodes(8, 4), 1, kPlenty));
  EXPECT_EQ(tight.window_slots, 1);
  EXPECT_LT(tight.window, four.window);
  options.live_parameters = int64_t{1} << 40;
  options.prefetch_parameters = int64_t{1} << 40;
  const store::Layout layout(config, 8);
  EXPECT_EQ(must(make_plan(config, options, even_nodes(8, 4), 1, kPlenty)).window_slots,
            layout.deals());
  options.wire_type = GradientType::kFloat32;
  EXPECT_EQ(must(make_plan(config, options, even_nodes(8, 4), 1, kPlenty)).exchange,
            2 * four.exchange);
}

TEST(Plan, OfRanksThatSeeOtherMemoryIsTheSmallestOfAll) {
  const model::ModelConfig config = preset("60m");
  EffectiveOptions options;
  options.world_size = 3;
  options.accumulate = 8;
  test::ThreadGroups groups({0, 1, 1});
  const int64_t tight =
      must(make_plan(config, options, even_nodes(3, 2), 1, kPlenty)).peak_bytes_per_node() / 2;
  groups.run([&](comm::Group& group) {
    const MemoryPlan mine =
        must(make_plan(config, options, group.nodes(), 1, group.rank() == 2 ? tight : kPlenty));
    EXPECT_EQ(mine.wave == 8, group.rank() != 2) << mine.wave;
    const MemoryPlan agreed = must(agree_on_plan(mine, config, options, group, Deadline::never()));
    EXPECT_LT(agreed.wave, 8);
    EXPECT_EQ(agreed.keep, model::Keep::kInputs);
    const auto all = must(group.exchange(std::to_string(agreed.wave), Deadline::never()));
    EXPECT_EQ(all[0], all[2]);
    EXPECT_EQ(all[1], all[2]);
  });
}

TEST(Plan, CountsThreadsAndMicroBatches) {
  const model::ModelConfig config = preset("60m");
  EffectiveOptions options;
  options.wave = 2;
  options.keep = Keep::kAttention;
  const MemoryPlan one = must(make_plan(config, options, 1, 1, kPlenty)),
                   many = must(make_plan(config, options, 1, 9, kPlenty));
  EXPECT_GE(many.overhead - one.overhead, 8 * (int64_t{1} << 20));
  EXPECT_GE(many.scratch, one.scratch);
  options.micro_batch = 3;
  const MemoryPlan larger = must(make_plan(config, options, 1, 1, kPlenty));
  EXPECT_NEAR(static_cast<double>(larger.kept), 3.0 * static_cast<double>(one.kept),
              0.01 * static_cast<double>(one.kept));
  EXPECT_NEAR(static_cast<double>(larger.arena), 3.0 * static_cast<double>(one.arena),
              0.1 * static_cast<double>(one.arena));
  const MemoryPlan two = must(make_plan(config, options, 2, 1, kPlenty));
  EXPECT_NEAR(static_cast<double>(two.arena), 2.0 * static_cast<double>(larger.arena),
              0.1 * static_cast<double>(larger.arena));
}

TEST(Plan, KeepsMoreForMoreMemory) {
  const model::ModelConfig config = preset("1b");
  EffectiveOptions options;
  int64_t kept = 0;
  for (const Keep keep : {Keep::kInputs, Keep::kAttention, Keep::kAll}) {
    options.keep = keep;
    const MemoryPlan p = plan(config, options);
    EXPECT_EQ(static_cast<int>(p.keep), static_cast<int>(keep) - 1);
    EXPECT_GT(p.kept, kept);
    kept = p.kept;
  }
}

// What explicit options can ask for: every pair of wave and keep.
int64_t smallest_peak(const model::ModelConfig& config, EffectiveOptions options, int ranks) {
  int64_t least = kPlenty;
  for (options.wave = 1; options.wave <= options.accumulate; ++options.wave) {
    for (const Keep keep : {Keep::kInputs, Keep::kAttention, Keep::kAll}) {
      options.keep = keep;
      least = std::min(least, plan(config, options, ranks).peak_bytes_per_node());
    }
  }
  return least;
}

class PlanLimits : public testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(PlanLimits, AShrinkingLimitTakesMemoryThenFewerActivationsAndNeverMore) {
  const auto [name, ranks] = GetParam();
  const model::ModelConfig config = preset(name);
  EffectiveOptions options;
  options.accumulate = 8;
  options.sequence_length = 1024;
  options.world_size = ranks;
  options.gradient_type = GradientType::kFloat32;  // else one wave has smaller gradients than two
  const int64_t least = smallest_peak(config, options, ranks);
  MemoryPlan last = plan(config, options, ranks);
  EXPECT_TRUE(fits(last).ok());
  bool changed = false;
  for (int64_t limit = last.peak_bytes_per_node(); limit >= least; limit -= limit / 200 + 1) {
    const MemoryPlan p = plan(config, options, ranks, limit);
    ASSERT_LE(p.peak_bytes_per_node(), limit) << "something fits";
    EXPECT_TRUE(fits(p).ok());
    EXPECT_LE(p.peak_bytes_per_node(), last.peak_bytes_per_node());
    EXPECT_LE(p.wave, last.wave);
    if (p.wave == last.wave) {
      EXPECT_LE(static_cast<int>(p.keep), static_cast<int>(last.keep));
    }
    EXPECT_EQ(p.waves, (options.accumulate + p.wave - 1) / p.wave);
    changed = changed || p.wave != last.wave || p.keep != last.keep;
    last = p;
  }
  EXPECT_TRUE(changed);
  const MemoryPlan exactly = plan(config, options, ranks, least);
  EXPECT_EQ(exactly.peak_bytes_per_node(), least);
  EXPECT_TRUE(fits(exactly).ok());
  // One byte less is refused, and what is refused is the smallest that there is.
  const MemoryPlan refused = plan(config, options, ranks, least - 1);
  EXPECT_EQ(refused.peak_bytes_per_node(), least);
  EXPECT_FALSE(fits(refused).ok());
}

INSTANTIATE_TEST_SUITE_P(Models, PlanLimits,
                         testing::Combine(testing::Values("60m", "1b"), testing::Values(1, 2, 5)),
                         [](const auto& test) {
                           return std::string("Of") + std::get<0>(test.param) + "On" +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST(Plan, RefusesWithTheNumbersThatDecide) {
  const model::ModelConfig config = preset("8b");
  EffectiveOptions options;
  options.world_size = 2;
  const MemoryPlan p = plan(config, options, 2, 16 * kGiB);
  const Status refused = fits(p);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Code::kLimit);
  EXPECT_THAT(refused.error().message(), HasSubstr("each of 2 ranks"));
  EXPECT_THAT(refused.error().message(), HasSubstr("memory given for a node of 16.0 GiB"));
  EXPECT_GT(p.peak_bytes_per_node(), 12 * model::parameter_count(config));
  EXPECT_EQ(must(parse_json(plan_json(config, options, p, {})))["fits"], false);
}

TEST(Plan, RecomputesWhenActivationsAreMuchOfTheJobThoughThereIsRoom) {
  const model::ModelConfig config = preset("60m");
  EffectiveOptions options;
  options.sequence_length = 4096;
  options.accumulate = 16;
  const MemoryPlan p = plan(config, options);
  EXPECT_LE(p.arena + p.kept, kGiB) << "the machine's page cache is of use too";
  options.wave = options.accumulate;
  options.keep = Keep::kAll;
  EXPECT_GT(plan(config, options).kept, kGiB) << "what is asked for is done";
}

TEST(Plan, GradientsAreBfloat16OnlyInOneWave) {
  const model::ModelConfig config = preset("60m");
  EffectiveOptions options;
  for (const int64_t wave : {1, 2, 3, 4, 9}) {
    options.wave = wave;
    options.gradient_type = GradientType::kAuto;
    const MemoryPlan p = plan(config, options);
    EXPECT_EQ(p.wave, std::min<int64_t>(wave, 4));
    EXPECT_EQ(p.gradient_dtype, wave >= 4 ? DType::kBF16 : DType::kF32) << "wave " << wave;
    options.gradient_type = GradientType::kBFloat16;
    const Result<MemoryPlan> asked = make_plan(config, options, 1, 1, kPlenty);
    ASSERT_EQ(asked.ok(), wave >= 4) << "wave " << wave;
    if (!asked) {
      EXPECT_EQ(asked.error().code(), Code::kInvalidArgument);
      EXPECT_THAT(asked.error().message(), HasSubstr("one wave"));
    }
  }
  // A plan that must shrink keeps the one wave that was asked for.
  options.wave = 0;
  const MemoryPlan cut = plan(config, options, 1, 1);
  EXPECT_EQ(cut.waves, 1);
  EXPECT_EQ(cut.gradient_dtype, DType::kBF16);
  options.gradient_type = GradientType::kFloat32;
  EXPECT_EQ(plan(config, options).gradient_dtype, DType::kF32);
}

TEST(Plan, RefusesBfloat16GradientsOfFloat32) {
  EffectiveOptions options;
  options.compute_type = ComputeType::kFloat32;
  options.gradient_type = GradientType::kBFloat16;
  const Result<MemoryPlan> p = make_plan(preset("60m"), options, 1, 1, kPlenty);
  ASSERT_FALSE(p.ok());
  EXPECT_EQ(p.error().code(), Code::kInvalidArgument);
}

TEST(Plan, RefusesASequenceLongerThanTheSlidingWindow) {
  model::ModelConfig config = preset("60m");
  config.sliding_window = 256;
  EffectiveOptions options;
  options.sequence_length = 256;
  EXPECT_TRUE(make_plan(config, options, 1, 1, kPlenty).ok());
  options.sequence_length = 257;
  const Result<MemoryPlan> p = make_plan(config, options, 1, 1, kPlenty);
  ASSERT_FALSE(p.ok());
  EXPECT_EQ(p.error().code(), Code::kUnsupported);
  EXPECT_THAT(p.error().message(), HasSubstr("sequence length 257"));
  EXPECT_THAT(p.error().message(), HasSubstr("sliding_window of 256"));
}

TEST(Plan, NamesTheLimitThatDecides) {
  const model::ModelConfig config = preset("60m");
  EffectiveOptions options;
  const CpuLimits machine = cpu_limits();
  const MemoryPlan whole = must(make_plan(config, options, 1, 1));
  EXPECT_LE(whole.limit_bytes, machine.memory_bytes);
  options.memory_limit_bytes = 123'456'789;
  const MemoryPlan given = must(make_plan(config, options, 1, 1));
  EXPECT_EQ(given.limit_bytes, 123'456'789);
  EXPECT_EQ(given.limit_name, "memory limit given");
  // More than there is gives nothing.
  options.memory_limit_bytes = kPlenty;
  const MemoryPlan more = must(make_plan(config, options, 1, 1));
  EXPECT_LE(more.limit_bytes, machine.memory_bytes);
  EXPECT_NE(more.limit_name, "memory limit given");
  // A plan for another machine asks nothing of this one.
  options.memory_limit_bytes = 0;
  EXPECT_EQ(plan(config, options, 1, 3 * kPlenty).limit_bytes, 3 * kPlenty);
}

}  // namespace
}  // namespace amxt::train
