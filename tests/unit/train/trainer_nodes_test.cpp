// A whole job over several nodes, which are groups of threads here: run, save, resume on other nodes, rows, export, evaluation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "checkpoint/manifest.h"
#include "support/model_files.h"
#include "trainer_job.h"

namespace amxt::test {
namespace {

using testing::HasSubstr;
using train::RunOptions;
using Nodes = std::vector<int>;

std::string text_of(const Nodes& nodes) {
  std::string text;
  for (const int node : nodes) text += std::to_string(node);
  return text;
}

class TrainerNodes : public testing::Test {
 protected:
  // Losses of a run up to step `end`, from the last checkpoint in `output` if there is one.
  std::vector<double> run(const Nodes& nodes, const std::string& output, int64_t accumulate,
                          int64_t end, bool resumes) {
    std::vector<double> losses;
    on_nodes(nodes, [&](std::shared_ptr<comm::Group> group) {
      train::TrainOptions given = job_options();
      given.accumulate = accumulate;
      given.total_steps = 6;
      Rank job(group, given);
      ASSERT_TRUE(job.refused() == std::nullopt) << job.refused()->message();
      if (resumes) {
        must(job->resume(folder_ / output, {}));
      } else {
        job.loaded();
      }
      RunOptions run;
      run.steps = end;
      run.output = folder_ / output;
      run.save_steps = 2;
      run.keep = 100;
      run.event = [&](const train::Event& event) -> Result<train::RunVerdict> {
        if (event.kind == train::EventKind::kStep && group->rank() == 0)
          losses.push_back(event.metrics->loss);
        return train::RunVerdict::kContinue;
      };
      must(job->run(data_, run, {}));
    });
    return losses;
  }

  const TemporaryDirectory folder_;
  const Samples data_{64};
};

void expect_near(const std::vector<double>& values, const std::vector<double>& expected,
                 const std::string& what) {
  ASSERT_EQ(values.size(), expected.size()) << what;
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_NEAR(values[i], expected[i], 1e-5 * expected[i]) << what << ", step " << i + 1;
}

TEST_F(TrainerNodes, AJobIsResumedOnAnyNumberOfRanksAndNodes) {
  const std::vector<double> base = run({0}, "one", 8, 6, false);
  run({0, 0, 1, 1}, "begun", 2, 4, false);
  for (const Nodes& nodes : {Nodes{0}, Nodes{0, 1}, Nodes{0, 0, 1, 1}, Nodes{0, 1, 2, 3},
                             Nodes{0, 0, 1, 1, 2, 2, 3, 3}, Nodes{0, 1, 1, 1, 2, 2, 3, 3}}) {
    const std::string output = "resumed-" + text_of(nodes);
    std::filesystem::copy(
        folder_ / "begun", folder_ / output,
        std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
    const std::vector<double> rest =
        run(nodes, output, 8 / static_cast<int64_t>(nodes.size()), 6, true);
    expect_near(rest, {base.begin() + 4, base.end()}, "resumed on nodes " + text_of(nodes));
  }
}

// Worlds that do not divide the batch of the others: three and seven ranks, each against one of its own batch.
TEST_F(TrainerNodes, ThreeAndSevenRanksOnThreeNodesDoAsOne) {
  for (const Nodes& nodes : {Nodes{0, 1, 2}, Nodes{0, 1, 2, 0, 1, 2, 0}}) {
    const auto world = static_cast<int64_t>(nodes.size());
    const std::string name = text_of(nodes);
    const std::vector<double> base = run({0}, "one-" + name, world, 4, false);
    expect_near(run(nodes, "many-" + name, 1, 2, false), {base.begin(), base.begin() + 2}, name);
    expect_near(run(nodes, "many-" + name, 1, 4, true), {base.begin() + 2, base.end()},
                name + " resumed");
  }
}

TEST_F(TrainerNodes, RowsAreReadAndWrittenWhoeverOwnsThem) {
  std::vector<float> expected;
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    expected = job.weights("model.embed_tokens.weight", kVocabulary, 48);
  });
  on_nodes({0, 1, 1, 2}, [&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    EXPECT_EQ(job.weights("model.embed_tokens.weight", kVocabulary, 48), expected)
        << "rank " << group->rank();
    std::vector<float> rows(40 * 48);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i) * 0.25f;
    must(job->write_rows("model.embed_tokens.weight", store::RowKind::kMaster, 20, 40, rows, {}));
    std::vector<float> changed = expected;
    std::copy(rows.begin(), rows.end(), changed.begin() + 20 * 48);
    EXPECT_EQ(job.weights("model.embed_tokens.weight", kVocabulary, 48), changed)
        << "rank " << group->rank();
  });
}

TEST_F(TrainerNodes, TheFinalModelAndItsLossAreThoseOfOneNode) {
  std::vector<double> losses;
  for (const Nodes& nodes : {Nodes{0}, Nodes{0, 0, 1, 1}, Nodes{0, 1, 2, 3}}) {
    const std::string name = "model-" + text_of(nodes);
    on_nodes(nodes, [&](std::shared_ptr<comm::Group> group) {
      Rank job(group);
      job.loaded();
      must(job->export_model(folder_ / name, {}));
      const train::Evaluation evaluation = must(job->evaluate(data_, {}));
      EXPECT_EQ(evaluation.samples, data_.samples());
      if (group->rank() == 0) losses.push_back(evaluation.loss);
    });
    EXPECT_EQ(read_bytes(folder_ / (name + "/model.safetensors")),
              read_bytes(folder_ / "model-0/model.safetensors"));
  }
  ASSERT_EQ(losses.size(), 3u);
  EXPECT_NEAR(losses[1], losses[0], 1e-6 * losses[0]);
  EXPECT_NEAR(losses[2], losses[0], 1e-6 * losses[0]);
}

TEST_F(TrainerNodes, TellsWhatPassedTheWireAndHowLongItWasWaitedFor) {
  on_nodes({0, 1}, [&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    const train::StepMetrics metrics = must(job->step(batch_of(0, 2), {}));
    EXPECT_GT(metrics.wire_bytes, 0);
    EXPECT_GE(metrics.wire_wait_seconds, 0);
    EXPECT_THAT(job->options_json(), HasSubstr("\"nodes\":2"));
  });
  on_ranks(2, [&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    EXPECT_EQ(must(job->step(batch_of(0, 2), {})).wire_bytes, 0);
  });
}

}  // namespace
}  // namespace amxt::test
