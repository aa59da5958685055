// A step's promises: the same bits whatever the threads, waves, what is kept and (in fp32) the world;
// and a transaction that changes nothing.
#include "train/step.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "step_job.h"

namespace amxt::test {
namespace {

class StepBitsTest : public testing::TestWithParam<std::string> {};

TEST_P(StepBitsTest, RerunThreadsWavesAndWhatIsKeptDoNotChangeABit) {
  const std::string base = hex(curve<float>(GetParam(), {}));
  EXPECT_EQ(hex(curve<float>(GetParam(), {})), base) << "rerun";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.threads = 2})), base) << "2 threads";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.wave = 3})), base)
      << "waves of 3, 3 and 2 micro-batches";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.wave = 1})), base) << "waves of one";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.keep = train::Keep::kInputs})), base)
      << "only inputs kept";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.keep = train::Keep::kAttention})), base)
      << "inputs and attention kept";
  EXPECT_EQ(hex(curve<float>(GetParam(), {.keep = train::Keep::kAll})), base) << "all kept";
}

TEST_P(StepBitsTest, InBfloat16Too) {
  const std::string base = hex(curve<bf16>(GetParam(), {}));
  EXPECT_EQ(hex(curve<bf16>(GetParam(), {})), base) << "rerun";
  EXPECT_EQ(hex(curve<bf16>(GetParam(), {.threads = 2})), base) << "2 threads";
  EXPECT_EQ(hex(curve<bf16>(GetParam(), {.wave = 3})), base) << "waves of 3, 3 and 2 micro-batches";
  EXPECT_EQ(hex(curve<bf16>(GetParam(), {.keep = train::Keep::kInputs})), base)
      << "only inputs kept";
  EXPECT_EQ(hex(curve<bf16>(GetParam(), {.keep = train::Keep::kAttention})), base)
      << "inputs and attention kept";
}

TEST_P(StepBitsTest, WorldsOfOneToEightGiveTheSameBitsInFloat32) {
  const std::string base = hex(curve<float>(GetParam(), {}));
  for (int world : {2, 4, 8})
    EXPECT_EQ(hex(curve<float>(GetParam(), {.world = world})), base) << "world " << world;
}

// Own products add each element in one chain in bf16 too.
TEST(StepBits, WorldsGiveTheSameBitsInBfloat16WhereTheProductsAreOurs) {
  for (const char* name : {"even_llama", "even_qwen3"}) {
    const std::string base = hex(curve<bf16>(name, {}));
    for (int world : {2, 4, 8})
      EXPECT_EQ(hex(curve<bf16>(name, {.world = world})), base) << name << ", world " << world;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, StepBitsTest,
                         testing::Values("llama3_1", "qwen2", "qwen3", "smollm2", "odd",
                                         "even_llama", "even_qwen3"),
                         [](const auto& test) { return test.param; });

class StepTransactionTest : public testing::Test {
 protected:
  const Golden golden_{"llama3_1"};
  const int64_t T_ = golden_.shape("adamw.tokens")[2];

  void expect_nothing_changes(int world, const Spoil& spoil, Code code, const std::string& words) {
    test::expect_nothing_changes(std::vector<int>(static_cast<size_t>(world)), 1, spoil, code,
                                 words);
  }
};

TEST_F(StepTransactionTest, ACancelOnOneRankEndsTheStepOnAllAndChangesNothing) {
  std::atomic<bool> cancel{true};
  expect_nothing_changes(
      2,
      [&](comm::Group& group, train::Batch&, train::StepControl::Limits& limits) {
        limits.cancel = group.rank() == 1 ? &cancel : nullptr;
      },
      Code::kCancelled, "cancelled");
}

TEST_F(StepTransactionTest, ADeadlineOnOneRankEndsTheStepOnAllAndChangesNothing) {
  expect_nothing_changes(
      2,
      [&](comm::Group& group, train::Batch&, train::StepControl::Limits& limits) {
        if (group.rank() == 0) limits.deadline = Deadline::after(0);
      },
      Code::kTimeout, "deadline");
}

TEST_F(StepTransactionTest, ANanInOneRanksMicroBatchIsNamedAndChangesNothing) {
  expect_nothing_changes(
      2,
      [&](comm::Group& group, train::Batch& batch, train::StepControl::Limits&) {
        if (group.rank() == 1) batch.weight[3] = std::numeric_limits<float>::quiet_NaN();
      },
      Code::kNonfinite, "step 2: the loss of rank 1, micro-batch 0");
}

TEST_F(StepTransactionTest, ABatchOfAnotherShapeOnOneRankEndsTheStepOnAllAndChangesNothing) {
  expect_nothing_changes(
      2,
      [&](comm::Group& group, train::Batch& batch, train::StepControl::Limits&) {
        if (group.rank() == 1) batch.samples -= 1;
      },
      Code::kInvalidArgument, "samples");
}

TEST_F(StepTransactionTest, SkippingCountsTheStepAndChangesNoWeight) {
  ThreadGroups groups(2);
  groups.run([&](comm::Group& group) {
    train::EffectiveOptions options = golden_options(T_, 1, kGlobalBatch / 2);
    options.nonfinite = train::Nonfinite::kSkip;
    Job<bf16> job(golden_path("llama3_1"), group, options);
    const std::vector<float> before = state_of(job);
    train::Batch batch = part_of_batch(golden_, 0, 2, group.rank());
    if (group.rank() == 1) batch.weight[3] = std::numeric_limits<float>::infinity();
    EXPECT_TRUE(job.step(batch, 1, 1e-3).skipped);
    EXPECT_EQ(state_of(job), before);
    EXPECT_FALSE(job.step(part_of_batch(golden_, 0, 2, group.rank()), 2, 1e-3).skipped);
  });
}

TEST_F(StepTransactionTest, ABatchWithoutACountedTokenHasLossZero) {
  ThreadGroups groups(1);
  groups.run([&](comm::Group& group) {
    Job<float> job(golden_path("llama3_1"), group, golden_options(T_, 1, kGlobalBatch));
    train::Batch batch = part_of_batch(golden_, 0, 1, 0);
    std::fill(batch.weight.begin(), batch.weight.end(), 0.0f);
    const train::StepResult result = job.step(batch, 1, 1e-3);
    EXPECT_EQ(result.loss, 0);
    EXPECT_EQ(result.grad_norm, 0);
    EXPECT_EQ(result.counted, 0);
  });
}

TEST_F(StepTransactionTest, WorldsThatDoNotDivideThePanelsEvenlyAgreeToo) {
  // World 3 and 7: another global batch than 8, so each is compared with one rank that accumulates as many micro-batches.
  for (int world : {3, 7}) {
    std::vector<double> alone, together;
    for (int ranks : {1, world}) {
      ThreadGroups groups(ranks);
      groups.run([&](comm::Group& group) {
        Job<float> job(golden_path("odd"), group,
                       golden_options(Golden("odd").shape("adamw.tokens")[2], 1, world / ranks));
        const Golden odd("odd");
        const std::vector<int64_t> tokens = odd.integers("adamw.tokens"),
                                   labels = odd.integers("adamw.labels");
        for (int64_t step = 0; step < 5; ++step) {
          const train::Batch batch = golden_batch(tokens, labels, odd.shape("adamw.tokens")[2],
                                                  step + group.rank(), world / ranks);
          const double loss = job.step(batch, step + 1, 1e-3).loss;
          if (group.rank() == 0) (ranks == 1 ? alone : together).push_back(loss);
        }
      });
    }
    EXPECT_EQ(hex(together), hex(alone)) << "world " << world;
  }
}

}  // namespace
}  // namespace amxt::test
