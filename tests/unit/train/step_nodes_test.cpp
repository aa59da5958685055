// A step over several nodes, each with its own memory: the same losses as on one node, the same bits whatever the timing, and the same
// transaction. Nodes are groups of threads here; what passes between them, passes through a wire.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <random>

#include "step_job.h"

namespace amxt::test {
namespace {

using Nodes = std::vector<int>;

std::string text_of(const Nodes& nodes) {
  std::string text;
  for (const int node : nodes) text += std::to_string(node);
  return text;
}

void expect_close(const std::vector<double>& values, const std::vector<double>& expected,
                  double tolerance, const std::string& what) {
  ASSERT_EQ(values.size(), expected.size()) << what;
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(values[i], expected[i], tolerance * std::abs(expected[i]))
        << what << (i % 2 == 0 ? ", loss of step " : ", norm of step ") << i / 2 + 1;
  }
}

class StepNodesTest : public testing::TestWithParam<std::string> {};

TEST_P(StepNodesTest, LossesAreThoseOfOneNode) {
  const std::vector<double> base = curve<float>(GetParam(), {});
  for (const Nodes& nodes :
       {Nodes{0, 1}, Nodes{0, 0, 1, 1}, Nodes{0, 1, 0, 1}, Nodes{0, 1, 2, 3}, Nodes{0, 0, 0, 1},
        Nodes{0, 1, 1, 1}, Nodes{0, 0, 1, 1, 2, 2, 3, 3}, Nodes{0, 1, 2, 0, 1, 2, 0, 1}}) {
    Setting setting;
    setting.world = static_cast<int>(nodes.size());
    setting.nodes = nodes;
    expect_close(curve<float>(GetParam(), setting), base, 1e-5, "nodes " + text_of(nodes));
  }
}

TEST_P(StepNodesTest, WindowsWavesAndWhatIsKeptDoNotChangeABit) {
  const Nodes nodes{0, 0, 1, 1};
  const std::string base = hex(curve<float>(GetParam(), {.world = 4, .nodes = nodes}));
  EXPECT_EQ(hex(curve<float>(GetParam(), {.world = 4, .nodes = nodes})), base) << "rerun";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.world = 4, .nodes = nodes, .threads = 2})), base)
      << "2 threads";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.world = 4, .nodes = nodes, .live_parameters = 1})), base)
      << "one deal at a time";
  EXPECT_EQ(
      hex(curve<float>(GetParam(), {.world = 4, .nodes = nodes, .keep = train::Keep::kInputs})),
      base)
      << "only inputs kept";
}

// The parts of two waves are summed apart in each node, and one after the other by the owner: not in the order of one wave.
TEST_P(StepNodesTest, WavesGiveTheSameLosses) {
  const std::vector<double> base = curve<float>(GetParam(), {});
  const Nodes nodes{0, 1};
  expect_close(curve<float>(GetParam(), {.world = 2, .nodes = nodes, .wave = 1}), base, 1e-5,
               "waves of one");
  expect_close(curve<float>(GetParam(), {.world = 2, .nodes = nodes, .wave = 3}), base, 1e-5,
               "waves of 3 and 1");
}

TEST_P(StepNodesTest, InBfloat16TheLossesStayNear) {
  const std::vector<double> base = curve<bf16>(GetParam(), {});
  for (const Nodes& nodes : {Nodes{0, 1}, Nodes{0, 0, 1}}) {
    if (kGlobalBatch % static_cast<int64_t>(nodes.size()) != 0) continue;
    for (const auto gradient : {train::GradientType::kFloat32, train::GradientType::kBFloat16}) {
      Setting setting;
      setting.world = static_cast<int>(nodes.size());
      setting.nodes = nodes;
      setting.gradient = gradient;
      const std::vector<double> first = curve<bf16>(GetParam(), setting);
      expect_close(first, base, 2e-2, "nodes " + text_of(nodes));
      EXPECT_EQ(hex(curve<bf16>(GetParam(), setting)), hex(first)) << "rerun";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, StepNodesTest,
                         testing::Values("llama3_1", "qwen2", "qwen3", "smollm2", "odd",
                                         "even_llama", "even_qwen3"),
                         [](const auto& test) { return test.param; });

// Fifty steps, as many as a rounding error needs to show.
TEST(StepNodes, FiftyStepsOnTwoNodesAreThoseOfOne) {
  Setting one;
  one.steps = 50;
  const std::vector<double> base = curve<float>("llama3_1", one);
  for (const Nodes& nodes : {Nodes{0, 1}, Nodes{0, 0, 1, 1}}) {
    Setting setting;
    setting.steps = 50;
    setting.world = static_cast<int>(nodes.size());
    setting.nodes = nodes;
    const std::vector<double> values = curve<float>("llama3_1", setting);
    ASSERT_EQ(values.size(), base.size());
    for (size_t i = 0; i < values.size(); i += 2)
      EXPECT_NEAR(values[i], base[i], 1e-5 * base[i]) << "step " << i / 2 + 1;
  }
}

// Seven ranks on three nodes, where some own no row of a deal.
TEST(StepNodes, UnevenNodesAgreeWithOneRank) {
  const Golden golden("odd");
  const int64_t T = golden.shape("adamw.tokens")[2];
  std::vector<double> alone, together;
  for (const Nodes& nodes : {Nodes{0}, Nodes{0, 1, 2, 0, 1, 2, 0}}) {
    const int world = static_cast<int>(nodes.size());
    ThreadGroups groups(nodes);
    groups.run([&](comm::Group& group) {
      Job<float> job(golden_path("odd"), group, golden_options(T, 1, 7 / world));
      for (int64_t step = 1; step <= 5; ++step) {
        const train::StepResult result =
            job.step(part_of_batch(golden, step, world, group.rank(), 7), step, 1e-3);
        if (group.rank() == 0) (world == 1 ? alone : together).push_back(result.loss);
      }
    });
  }
  ASSERT_EQ(alone.size(), together.size());
  for (size_t i = 0; i < alone.size(); ++i) EXPECT_NEAR(together[i], alone[i], 1e-5 * alone[i]);
}

TEST(StepNodes, ForwardOfRanksWithUnequalBatches) {
  const Golden golden("llama3_1");
  const int64_t T = golden.shape("adamw.tokens")[2];
  std::vector<double> sums;
  for (const Nodes& nodes : {Nodes{0, 0}, Nodes{0, 1}}) {
    ThreadGroups groups(nodes);
    groups.run([&](comm::Group& group) {
      train::EffectiveOptions options = golden_options(T, 1, 4);
      options.wave = 1;
      Job<float> job(golden_path("llama3_1"), group, options);
      // Rank 0 has three samples, rank 1 none.
      train::Batch batch;
      if (group.rank() == 0)
        batch =
            golden_batch(golden.integers("adamw.tokens"), golden.integers("adamw.labels"), T, 0, 3);
      std::vector<float> log_probabilities(static_cast<size_t>(batch.samples * T), 1.0f);
      const auto evaluated = job.runner().evaluate(batch, log_probabilities.data(), {});
      ASSERT_TRUE(evaluated.ok()) << evaluated.error().message();
      if (group.rank() != 0) return;
      sums.push_back(evaluated->loss_sum);
      for (const float value : log_probabilities) EXPECT_LE(value, 0.0f);
    });
  }
  ASSERT_EQ(sums.size(), 2u);
  EXPECT_EQ(hex({sums[0]}), hex({sums[1]}));
}

// What is sent, counted by the wire: the weights of other nodes twice, their gradients once, and little else.
TEST(StepNodes, BytesOnTheWireAreTheLeast) {
  const Golden golden("llama3_1");
  const int64_t T = golden.shape("adamw.tokens")[2];
  for (const Nodes& nodes : {Nodes{0, 1}, Nodes{0, 0, 1, 1}}) {
    const int world = static_cast<int>(nodes.size());
    ThreadGroups groups(nodes);
    groups.run([&](comm::Group& group) {
      Job<bf16> job(golden_path("llama3_1"), group, golden_options(T, 1, kGlobalBatch / world));
      job.step(part_of_batch(golden, 0, world, group.rank()), 1, 1e-3);
      const train::StepResult result =
          job.step(part_of_batch(golden, 1, world, group.rank()), 2, 1e-3);
      // Two nodes: each lacks what the other has, so each byte of the model passes once, whoever has more.
      const int64_t model_bytes = 2 * job.layout().shared_elements();
      int64_t sent = 0;
      for (size_t i = 0; i < result.wire.size(); ++i) {
        const auto stream = static_cast<store::Stream>(i);
        const store::Traffic::Use& use = result.wire[i];
        EXPECT_GT(use.sent_bytes, 0) << stream_name(stream);
        EXPECT_GT(use.wait_ns, 0) << stream_name(stream);
        const int64_t most = stream == store::Stream::kGradients ? model_bytes : 2 * model_bytes;
        EXPECT_LE(use.sent_bytes, most) << stream_name(stream);
        sent += use.sent_bytes;
      }
      EXPECT_LE(static_cast<double>(sent), 1.3 * static_cast<double>(3 * model_bytes))
          << "the model is so small that records count";
      EXPECT_GT(result.wire_wait_seconds, 0);
      EXPECT_LT(result.wire_wait_seconds, result.seconds);
    });
  }
}

class StepNodesTransaction : public testing::TestWithParam<Nodes> {
 protected:
  const Golden golden_{"llama3_1"};
  const int64_t T_ = golden_.shape("adamw.tokens")[2];

  void expect_nothing_changes(const Spoil& spoil, Code code, const std::string& words) {
    test::expect_nothing_changes(GetParam(), 3, spoil, code, words);
  }
};

TEST_P(StepNodesTransaction, ACancelOnAnyRankEndsTheStepOnAll) {
  std::atomic<bool> cancel{true};
  for (int who = 0; who < static_cast<int>(GetParam().size()); ++who) {
    expect_nothing_changes(
        [&](comm::Group& group, train::Batch&, train::StepControl::Limits& limits) {
          limits.cancel = group.rank() == who ? &cancel : nullptr;
        },
        Code::kCancelled, "cancelled");
  }
}

TEST_P(StepNodesTransaction, ADeadlineInTheMiddleEndsTheStepOnAll) {
  const int last = static_cast<int>(GetParam().size()) - 1;
  expect_nothing_changes(
      [&](comm::Group& group, train::Batch& batch, train::StepControl::Limits& limits) {
        if (group.rank() == last) limits.deadline = Deadline::after(0);
        (void)batch;
      },
      Code::kTimeout, "deadline");
}

// Whenever a deadline passes, in a wait for a layer, for parts of a gradient or for the word,
// all ranks leave the same way and go on together.
TEST_P(StepNodesTransaction, DeadlinesAtAnyMomentEndTheStepAlikeOnAll) {
  const int world = static_cast<int>(GetParam().size());
  constexpr int kAttempts = 60;
  const unsigned seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::vector<int64_t> deadline_ns;
  for (int i = 0; i < kAttempts; ++i) deadline_ns.push_back(random() % 30'000'000);
  std::vector<std::vector<Code>> codes(kAttempts, std::vector<Code>(static_cast<size_t>(world)));
  std::vector<double> losses(static_cast<size_t>(world));
  ThreadGroups groups(GetParam());
  groups.run([&](comm::Group& group) {
    Job<bf16> job(golden_path("llama3_1"), group, golden_options(T_, 1, kGlobalBatch / world));
    int64_t taken = 0;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const auto at = static_cast<size_t>(attempt);
      train::StepControl::Limits limits;
      if (group.rank() == attempt % world) limits.deadline = Deadline::after(deadline_ns[at]);
      train::StepInput input;
      input.step = input.update = taken + 1;
      input.learning_rate = 1e-3;
      const auto result =
          job.runner().step(part_of_batch(golden_, taken % 4, world, group.rank()), input, limits);
      taken += result.ok();
      codes[at][static_cast<size_t>(group.rank())] =
          result.ok() ? Code::kOk : result.error().code();
      if (!result.ok() && result.error().code() != Code::kTimeout) {
        ADD_FAILURE() << "rank " << group.rank() << ", attempt " << attempt << ": "
                      << result.error().message();
        return;
      }
    }
    losses[static_cast<size_t>(group.rank())] =
        job.step(part_of_batch(golden_, 1, world, group.rank()), taken + 1, 1e-3).loss;
  });
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto& all = codes[static_cast<size_t>(attempt)];
    EXPECT_EQ(all, std::vector<Code>(all.size(), all[0])) << "attempt " << attempt;
  }
  EXPECT_EQ(losses, std::vector<double>(losses.size(), losses[0]));
}

TEST_P(StepNodesTransaction, ANanIsNamedOnAll) {
  const int last = static_cast<int>(GetParam().size()) - 1;
  expect_nothing_changes(
      [&](comm::Group& group, train::Batch& batch, train::StepControl::Limits&) {
        if (group.rank() == last) batch.weight[3] = std::numeric_limits<float>::quiet_NaN();
      },
      Code::kNonfinite, "step 2: the loss of rank " + std::to_string(last) + ", micro-batch 0");
}

TEST_P(StepNodesTransaction, ABatchOfAnotherShapeOnOneRankEndsTheStepOnAll) {
  expect_nothing_changes(
      [&](comm::Group& group, train::Batch& batch, train::StepControl::Limits&) {
        if (group.rank() == 1) batch.samples -= 1;
      },
      Code::kInvalidArgument, "samples");
}

INSTANTIATE_TEST_SUITE_P(Nodes, StepNodesTransaction,
                         testing::Values(Nodes{0, 1}, Nodes{0, 0, 1, 1}, Nodes{0, 1, 2, 3}),
                         [](const auto& test) { return "Of" + text_of(test.param); });

}  // namespace
}  // namespace amxt::test
