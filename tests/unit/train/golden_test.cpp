// Loss, gradients and AdamW steps against what torch and transformers computed (tests/golden).
#include <cmath>
#include <cstdio>

#include "golden_job.h"

namespace amxt::test {
namespace {

class GoldenTest : public testing::TestWithParam<std::string> {};

double norm(const std::vector<float>& values) {
  double sum = 0;
  for (float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return std::sqrt(sum);
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double dot = 0;
  for (size_t i = 0; i < a.size(); ++i) dot += static_cast<double>(a[i]) * b[i];
  return dot / (norm(a) * norm(b));
}

TEST_P(GoldenTest, Float32LossAndEveryGradientAreThoseOfTransformers) {
  const Golden golden(GetParam());
  const int64_t S = golden.shape("tokens")[0], T = golden.shape("tokens")[1];
  ThreadGroups groups(1);
  groups.run([&](comm::Group& group) {
    Job<float> job(golden_path(GetParam()), group, golden_options(T, 2, S / 2));
    const train::Batch batch =
        golden_batch(golden.integers("tokens"), golden.integers("labels"), T, 0, S);
    const train::StepResult result = job.step(batch, 1, 0, false);
    const double loss = golden.scalar("loss"), global = golden.scalar("grad_norm");
    EXPECT_NEAR(result.loss, loss, 1e-5 * loss);
    EXPECT_NEAR(result.grad_norm, global, 1e-4 * global);
    for (size_t i = 0; i < job.layout().specs().size(); ++i) {
      const std::string& name = job.layout().specs()[i].name;
      const std::vector<float> expected = golden.floats("grad." + name),
                               actual = job.gradient(static_cast<int64_t>(i));
      ASSERT_EQ(actual.size(), expected.size()) << name;
      EXPECT_LE(distance(actual, expected), std::max(1e-4 * norm(expected), 1e-6 * global))
          << "gradient of " << name;
    }
  });
}

TEST_P(GoldenTest, TenAdamwStepsGiveTheLossesOfTorch) {
  const Golden golden(GetParam());
  const int64_t T = golden.shape("adamw.tokens")[2];
  const std::vector<float> losses = golden.floats("adamw.loss"),
                           norms = golden.floats("adamw.grad_norm");
  ThreadGroups groups(1);
  groups.run([&](comm::Group& group) {
    Job<float> job(golden_path(GetParam()), group, golden_options(T, 1, 2));
    for (int64_t step = 0; step < 10; ++step) {
      const train::Batch batch = golden_batch(golden.integers("adamw.tokens"),
                                              golden.integers("adamw.labels"), T, 2 * step, 2);
      const train::StepResult result = job.step(batch, step + 1, 1e-3);
      EXPECT_NEAR(result.loss, losses[static_cast<size_t>(step)], 1e-4) << "step " << step + 1;
      EXPECT_NEAR(result.grad_norm, norms[static_cast<size_t>(step)],
                  1e-3 * norms[static_cast<size_t>(step)])
          << "step " << step + 1;
    }
    const train::Batch last =
        golden_batch(golden.integers("adamw.tokens"), golden.integers("adamw.labels"), T, 18, 2);
    EXPECT_NEAR(job.step(last, 11, 0, false).loss, golden.scalar("adamw.loss_after"), 1e-4)
        << "after the tenth update";
  });
}

TEST_P(GoldenTest, Bfloat16IsAsCloseToFloat32AsTorchsBfloat16) {
  const Golden golden(GetParam());
  const int64_t S = golden.shape("tokens")[0], T = golden.shape("tokens")[1];
  ThreadGroups groups(1);
  groups.run([&](comm::Group& group) {
    Job<bf16> job(golden_path(GetParam()), group, golden_options(T, 2, S / 2));
    const train::Batch batch =
        golden_batch(golden.integers("tokens"), golden.integers("labels"), T, 0, S);
    const train::StepResult result = job.step(batch, 1, 0, false);
    EXPECT_NEAR(result.loss, golden.scalar("loss"), 3e-3 * golden.scalar("loss"));
    for (size_t i = 0; i < job.layout().specs().size(); ++i) {
      const std::string& name = job.layout().specs()[i].name;
      const double ours =
          cosine(job.gradient(static_cast<int64_t>(i)), golden.floats("grad." + name));
      EXPECT_GE(ours, golden.scalar("bf16.cosine." + name) - 0.001) << "gradient of " << name;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, testing::ValuesIn(golden_names()),
                         [](const auto& test) { return test.param; });

class GoldenPackedTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenPackedTest, DocumentsOfAPackedSequenceDoNotSeeEachOther) {
  const Golden golden(GetParam());
  const int64_t S = golden.shape("packed.tokens")[0], T = golden.shape("packed.tokens")[1];
  ThreadGroups groups(1);
  groups.run([&](comm::Group& group) {
    Job<float> job(golden_path(GetParam()), group, golden_options(T, 1, S));
    const train::Batch batch =
        golden_batch(golden.integers("packed.tokens"), golden.integers("packed.labels"), T, 0, S,
                     golden.integers("packed.document_starts"));
    const std::vector<int64_t> positions = golden.integers("packed.positions");
    for (size_t i = 0; i < positions.size(); ++i) ASSERT_EQ(batch.position[i], positions[i]) << i;
    const train::StepResult result = job.step(batch, 1, 0, false);
    EXPECT_NEAR(result.loss, golden.scalar("packed.loss"), 1e-5 * golden.scalar("packed.loss"));
    for (size_t i = 0; i < job.layout().specs().size(); ++i) {
      const std::string& name = job.layout().specs()[i].name;
      const std::vector<float> expected = golden.floats("packed.grad." + name),
                               actual = job.gradient(static_cast<int64_t>(i));
      EXPECT_LE(distance(actual, expected),
                std::max(1e-4 * norm(expected), 1e-6 * result.grad_norm))
          << "gradient of " << name;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenPackedTest, testing::Values("llama3_2", "even_llama"),
                         [](const auto& test) { return test.param; });

// Weights that may lie in either order give products whose sums are made in another order, and nothing else.
TEST(Orders, TheCurveOfBfloat16IsTheSameInBoth) {
  for (const char* name : {"even_llama", "even_qwen3"}) {
    SCOPED_TRACE(name);
    const Golden golden(name);
    const int64_t T = golden.shape("adamw.tokens")[2];
    std::vector<double> losses[2];
    ThreadGroups groups(1);
    groups.run([&](comm::Group& group) {
      for (const auto order : {store::Layout::Order::kRowMajor, store::Layout::Order::kBlocked}) {
        Job<bf16> job(golden_path(name), group, golden_options(T, 1, 2), 1, order);
        EXPECT_EQ(job.layout().order(), order);
        for (int64_t step = 0; step < 10; ++step) {
          const train::Batch batch = golden_batch(golden.integers("adamw.tokens"),
                                                  golden.integers("adamw.labels"), T, 2 * step, 2);
          losses[order == store::Layout::Order::kBlocked].push_back(
              job.step(batch, step + 1, 1e-3).loss);
        }
      }
    });
    ASSERT_EQ(losses[0].size(), losses[1].size());
    for (size_t i = 0; i < losses[0].size(); ++i)
      EXPECT_NEAR(losses[1][i], losses[0][i], 2e-3 * losses[0][i]) << "step " << i;
    EXPECT_NE(losses[0], losses[1]) << "they are other products";
  }
}

}  // namespace
}  // namespace amxt::test
