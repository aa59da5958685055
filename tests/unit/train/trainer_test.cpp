// A trainer's states, what it refuses and in which words, and that the error of one rank is the error of all.
#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>

#include "support/model_files.h"
#include "trainer_job.h"

namespace amxt::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using train::TrainerStatus;

template <typename T>
void expect_error(const Result<T>& result, Code code, const std::string& part) {
  ASSERT_FALSE(result.ok()) << "expected: " << part;
  EXPECT_EQ(result.error().code(), code) << result.error().message();
  EXPECT_THAT(result.error().message(), HasSubstr(part));
}

// --- States -------------------------------------------------------------------------------------

TEST(Trainer, BeforeItHasWeightsDoesNothing) {
  alone([](std::shared_ptr<comm::Group> group) {
    const Rank job(group);
    const Samples data(8);
    const train::Batch batch = batch_of(0, 2);
    std::vector<float> values(48);
    const TemporaryDirectory folder;
    const std::string words = "no weights yet: load or resume first";
    expect_error(job->step(batch, {}), Code::kInvalidState, words);
    expect_error(job->gradients(batch, {}), Code::kInvalidState, words);
    expect_error(job->forward(batch, {}, {}), Code::kInvalidState, words);
    expect_error(job->evaluate(data, {}), Code::kInvalidState, words);
    expect_error(job->run(data, {}, {}), Code::kInvalidState, words);
    expect_error(job->save(folder.path(), {}), Code::kInvalidState, words);
    expect_error(job->export_model(folder / "model", {}), Code::kInvalidState, words);
    expect_error(job->read_rows("model.norm.weight", store::RowKind::kMaster, 0, 48, values, {}),
                 Code::kInvalidState, words);
    expect_error(job->write_rows("model.norm.weight", store::RowKind::kMaster, 0, 48, values, {}),
                 Code::kInvalidState, words);
    EXPECT_EQ(job->state().status, TrainerStatus::kCreated);
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  });
}

TEST(Trainer, IsPreparedAndResumedBeforeItHasWeightsOnly) {
  alone([](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    EXPECT_EQ(job->state().status, TrainerStatus::kReady);
    const Samples data(8);
    expect_error(job->prepare(data, {}, {}), Code::kInvalidState, "prepare comes before");
    expect_error(job->resume("/nowhere", {}), Code::kInvalidState, "resume into a new one");
    // Other weights may be loaded until the first step.
    EXPECT_TRUE(job->load(golden_path("llama3_2"), {}).ok());
    must(job->step(batch_of(0, 2), {}));
    expect_error(job->load(golden_path("llama3_2"), {}), Code::kInvalidState,
                 "steps have been taken");
  });
}

TEST(Trainer, RefusesTheWeightsOfAnotherModelByTheirFirstDifference) {
  alone([](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    expect_error(job->load(golden_path("llama3_1"), {}), Code::kMismatch,
                 "another model than the trainer's: tensor 'model.embed_tokens.weight' is [");
    EXPECT_EQ(job->state().status, TrainerStatus::kCreated);
    job.loaded();
    EXPECT_EQ(job->state().status, TrainerStatus::kReady);
  });
}

TEST(Trainer, CountsStepsSamplesAndEpochs) {
  alone([](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    given.schedule = train::ScheduleKind::kLinear;
    Rank job(group, given);
    job.loaded();
    const Samples data(5);
    train::RunOptions run;
    run.save = false;
    run.steps = 4;
    must(job->run(data, run, {}));
    const train::TrainerState state = job->state();
    EXPECT_EQ(state.step, 4);
    EXPECT_EQ(state.total_steps, 4);
    EXPECT_EQ(state.position, 8);
    EXPECT_DOUBLE_EQ(state.epoch, 8.0 / 5);
    EXPECT_EQ(state.learning_rate, 0) << "linear, at its end";
  });
}

// --- Batches and rates --------------------------------------------------------------------------

TEST(Trainer, NamesATokenBeyondTheVocabulary) {
  alone([](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    const std::vector<float> before = job.weights();
    train::Batch batch = batch_of(0, 2);
    batch.token[kLength + 3] = kVocabulary;
    expect_error(job->step(batch, {}), Code::kInvalidArgument,
                 "token 75 of sample 1, position 3, is not in the vocabulary of 75");
    expect_error(job->forward(batch, {}, {}), Code::kInvalidArgument, "token 75 of sample 1");
    batch = batch_of(0, 2);
    batch.token[0] = -1;
    expect_error(job->gradients(batch, {}), Code::kInvalidArgument, "token -1 of sample 0");
    batch = batch_of(0, 2);
    batch.target[4] = 1000;
    expect_error(job->step(batch, {}), Code::kInvalidArgument,
                 "label 1000 of sample 0, position 5, is not in the vocabulary of 75");
    EXPECT_EQ(job->state().step, 0);
    EXPECT_EQ(job.weights(), before);
  });
}

TEST(Trainer, TakesTheRateThatIsSetUntilItIsUnset) {
  alone([](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    given.schedule = train::ScheduleKind::kLinear;
    given.total_steps = 10;
    Rank job(group, given);
    job.loaded();
    for (const double wrong :
         {-1e-9, 1000.1, std::nan(""), std::numeric_limits<double>::infinity()})
      expect_error(job->set_learning_rate(wrong), Code::kInvalidArgument, "it is 0 to 1000");
    EXPECT_DOUBLE_EQ(job->state().learning_rate, 1e-2);
    must(job->set_learning_rate(0));
    EXPECT_EQ(job->state().learning_rate, 0);
    const std::vector<float> before = job.weights();
    EXPECT_EQ(must(job->step(batch_of(0, 2), {})).learning_rate, 0);
    EXPECT_EQ(job.weights(), before);
    must(job->set_learning_rate(std::nullopt));
    EXPECT_DOUBLE_EQ(must(job->step(batch_of(0, 2), {})).learning_rate, 9e-3);
    EXPECT_NE(job.weights(), before);
  });
}

TEST(Trainer, TakesNoStepOfAScheduleWhoseEndIsNotKnown) {
  alone([](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    given.schedule = train::ScheduleKind::kCosine;
    Rank job(group, given);
    job.loaded();
    expect_error(job->step(batch_of(0, 2), {}), Code::kInvalidState, "give total_steps");
    EXPECT_TRUE(job->gradients(batch_of(0, 2), {}).ok()) << "which needs no rate";
    EXPECT_EQ(job->state().step, 0);
  });
}

// AdamW corrects its moments by the updates that they have seen.
TEST(Trainer, ASkippedStepIsNoUpdateOfTheMoments) {
  alone([](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    given.nonfinite = train::Nonfinite::kSkip;
    const auto after_one_update = [&](bool skip_first) {
      Rank job(group, given);
      job.loaded();
      if (skip_first) {
        train::Batch batch = batch_of(0, 2);
        batch.weight[1] = std::numeric_limits<float>::infinity();
        const train::StepMetrics skipped = must(job->step(batch, {}));
        EXPECT_TRUE(skipped.skipped);
        EXPECT_EQ(skipped.step, 1);
      }
      EXPECT_FALSE(must(job->step(batch_of(0, 2), {})).skipped);
      EXPECT_EQ(job->state().step, skip_first ? 2 : 1);
      return job.weights("model.embed_tokens.weight", kVocabulary, 48);
    };
    EXPECT_EQ(after_one_update(true), after_one_update(false));
  });
}

TEST(Trainer, GradientsChangeNothingAndAreThoseOfTheStep) {
  alone([](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    std::vector<float> values(48);
    const auto read = [&] {
      return job->read_rows("model.norm.weight", store::RowKind::kGradient, 0, 48, values, {});
    };
    expect_error(read(), Code::kInvalidState, "there are no gradients");
    const std::vector<float> before = job.weights();
    const train::StepMetrics looked = must(job->gradients(batch_of(0, 2), {}));
    must(read());
    EXPECT_THAT(values, testing::Contains(testing::Ne(0.0f)));
    EXPECT_EQ(job.weights(), before);
    EXPECT_EQ(job->state().step, 0);
    const train::StepMetrics taken = must(job->step(batch_of(0, 2), {}));
    EXPECT_EQ(taken.loss, looked.loss);
    EXPECT_EQ(taken.grad_norm, looked.grad_norm);
    expect_error(read(), Code::kInvalidState, "there are no gradients");
  });
}

TEST(Trainer, ForForwardOnlyHasNothingToTrain) {
  alone([](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    given.forward_only = true;
    Rank job(group, given);
    job.loaded();
    const TemporaryDirectory folder;
    std::vector<float> values(48);
    expect_error(job->save(folder / "o", {}), Code::kInvalidState, "forward only");
    expect_error(
        job->read_rows("model.norm.weight", store::RowKind::kFirstMoment, 0, 48, values, {}),
        Code::kInvalidState, "forward only");
    expect_error(
        job->write_rows("model.norm.weight", store::RowKind::kSecondMoment, 0, 48, values, {}),
        Code::kInvalidState, "forward only");
    EXPECT_TRUE(std::isfinite(must(job->evaluate(Samples(5), {})).loss));
  });
}

TEST(Trainer, NamesRowsThatATensorDoesNotHave) {
  alone([](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    std::vector<float> values(96);
    const auto read = [&](const std::string& tensor, int64_t first, int64_t rows, size_t count) {
      return job->read_rows(tensor, store::RowKind::kMaster, first, rows,
                            std::span(values).first(count), {});
    };
    expect_error(read("model.nothing", 0, 1, 1), Code::kNotFound, "no tensor 'model.nothing'");
    expect_error(read("model.norm.weight", 47, 2, 2), Code::kInvalidArgument, "2 rows from row 47");
    expect_error(read("model.norm.weight", -1, 2, 2), Code::kInvalidArgument, "it has 48");
    expect_error(read("model.norm.weight", 0, 0, 0), Code::kInvalidArgument, "it has 48");
    expect_error(read("model.embed_tokens.weight", 0, 2, 95), Code::kInvalidArgument,
                 "2 rows of tensor 'model.embed_tokens.weight' are 96 values, not 95");
    EXPECT_TRUE(read("model.embed_tokens.weight", 73, 2, 96).ok());
    expect_error(job->write_rows("model.norm.weight", store::RowKind::kGradient, 0, 48, values, {}),
                 Code::kInvalidArgument, "read only");
    expect_error(job->write_rows("model.norm.weight", store::RowKind::kMaster, 0, 48, {}, {}),
                 Code::kInvalidArgument, "no values");
  });
}

// Rows 20 to 55 of 75 are of all three ranks; each writes what it owns.
TEST(Trainer, RowsOfAllRanksAreReadAndWrittenInPlace) {
  on_ranks(3, [](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    const std::string tensor = "model.embed_tokens.weight";
    const std::vector<float> before = job.weights(tensor, kVocabulary, 48);
    std::vector<float> rows(36 * 48);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
    must(job->write_rows(tensor, store::RowKind::kMaster, 20, 36, rows, {}));
    std::vector<float> expected = before;
    std::copy(rows.begin(), rows.end(), expected.begin() + 20 * 48);
    EXPECT_EQ(job.weights(tensor, kVocabulary, 48), expected) << "rank " << job.rank();
  });
}

// --- A step that is taken is taken ----------------------------------------------------------------

// A group that tells when somebody looks whether it is alive.
class LookedAtGroup final : public comm::Group {
 public:
  explicit LookedAtGroup(std::shared_ptr<comm::Group> group) : group_(std::move(group)) {}
  const comm::LaunchInfo& launch() const override { return group_->launch(); }
  const comm::Nodes& nodes() const override { return group_->nodes(); }
  Result<std::unique_ptr<comm::Wire>> make_wire(const comm::Limits& limits) override {
    return group_->make_wire(limits);
  }
  void set_listener(Listener listener) override { group_->set_listener(std::move(listener)); }
  void post(int rank, std::string_view message) override { group_->post(rank, message); }
  Result<comm::SharedMemory> share(std::string_view what, int64_t bytes,
                                   const comm::Limits& limits) override {
    return group_->share(what, bytes, limits);
  }
  Status barrier(const comm::Limits& limits) override { return group_->barrier(limits); }
  Result<std::vector<std::string>> exchange(std::string_view payload,
                                            const comm::Limits& limits) override {
    return group_->exchange(payload, limits);
  }
  Status check() const override {
    if (on_check) on_check();
    return group_->check();
  }
  void abort(std::string_view reason) override { group_->abort(reason); }
  Status finalize(const comm::Limits& limits) override { return group_->finalize(limits); }
  bool oversubscribed() const override { return group_->oversubscribed(); }

  std::function<void()> on_check;

 private:
  std::shared_ptr<comm::Group> group_;
};

// The first steps measure memory when they are done, in an attempt of its own: a cancel then came back as "nothing has changed".
TEST(Trainer, ACancelAfterTheCommitOfTheFirstStepIsTooLate) {
  alone([](std::shared_ptr<comm::Group> inner) {
    const auto group = std::make_shared<LookedAtGroup>(inner);
    Rank job(group);
    job.loaded();
    std::atomic<bool> cancel = false;
    int looks = 0;
    // Alone, a step looks once, when it begins; the next look comes after its commit.
    group->on_check = [&] { cancel = ++looks == 2; };
    for (int64_t step = 1; step <= 2; ++step) {
      looks = 0;
      cancel = false;
      const Result<train::StepMetrics> taken =
          job->step(batch_of(0, 2), {Deadline::never(), &cancel});
      ASSERT_TRUE(taken.ok()) << taken.error().message();
      EXPECT_GE(looks, 2);
      EXPECT_EQ(job->state().step, step);
    }
    EXPECT_EQ(job->memory_report().back().stage, "step");
  });
}

TEST(Trainer, ACancelledStepChangesNothing) {
  alone([](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    const std::vector<float> before = job.weights();
    const std::atomic<bool> cancel = true;
    expect_error(job->step(batch_of(0, 2), {Deadline::never(), &cancel}), Code::kCancelled,
                 "nothing has changed");
    expect_error(job->step(batch_of(0, 2), {Deadline::after(0), nullptr}), Code::kTimeout,
                 "nothing has changed");
    EXPECT_EQ(job->state().step, 0);
    EXPECT_EQ(job->state().position, 0);
    EXPECT_EQ(job.weights(), before);
  });
}

// --- Ranks ----------------------------------------------------------------------------------------

TEST(TrainerRanks, WithOtherOptionsAreRefusedByName) {
  on_ranks(3, [](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    if (group->rank() == 2) given.weight_decay = 0.5;
    const Rank job(group, given);
    ASSERT_TRUE(job.refused());
    EXPECT_EQ(job.refused()->code(), Code::kMismatch);
    EXPECT_EQ(job.refused()->rank(), 2);
    EXPECT_THAT(job.refused()->message(),
                AllOf(HasSubstr("ranks disagree on weight_decay"), HasSubstr("rank 2 has 0.5")));
  });
}

TEST(TrainerRanks, WithAnotherModelAreRefused) {
  on_ranks(2, [](std::shared_ptr<comm::Group> group) {
    const Rank job(group, job_options(), group->rank() == 0 ? "llama3_2" : "llama3_1");
    ASSERT_TRUE(job.refused());
    EXPECT_EQ(job.refused()->code(), Code::kMismatch);
    EXPECT_THAT(job.refused()->message(), HasSubstr("different config.json"));
  });
}

TEST(TrainerRanks, ThatCanNotSettleTheirOptionsTellTheOthers) {
  on_ranks(2, [](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    if (group->rank() == 1) given.beta1 = 2;
    const Rank job(group, given);
    ASSERT_TRUE(job.refused());
    EXPECT_EQ(job.refused()->code(), Code::kInvalidArgument);
    EXPECT_THAT(job.refused()->message(), HasSubstr("rank 1: "));
  });
}

TEST(TrainerRanks, ABadTokenOfOneRankEndsTheStepOnAll) {
  on_ranks(2, [](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    train::Batch batch = batch_of(2 * group->rank(), 2);
    if (group->rank() == 1) batch.token[0] = kVocabulary;
    const std::string words =
        std::string(group->rank() == 1 ? "" : "rank 1: ") + "token 75 of sample 0";
    expect_error(job->step(batch, {}), Code::kInvalidArgument, words);
    expect_error(job->forward(batch, {}, {}), Code::kInvalidArgument, words);
    EXPECT_EQ(job->state().step, 0);
    EXPECT_TRUE(job->step(batch_of(2 * group->rank(), 2), {}).ok());
  });
}

TEST(TrainerRanks, WithOtherLearningRatesTakeNoStep) {
  on_ranks(2, [](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    const std::vector<float> before = job.weights();
    must(job->set_learning_rate(group->rank() == 0 ? 0.5 : 0.25));
    expect_error(job->step(batch_of(0, 2), {}), Code::kMismatch,
                 "ranks disagree on the learning rate: rank 0 has 0.5, rank 1 has 0.25");
    EXPECT_EQ(job.weights(), before);
    must(job->set_learning_rate(0.25));
    EXPECT_EQ(must(job->step(batch_of(0, 2), {})).learning_rate, 0.25);
  });
}

TEST(TrainerRanks, ThatAskForOtherRowsAreTold) {
  on_ranks(2, [](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    std::vector<float> values(48);
    const bool second = group->rank() == 1;
    expect_error(job->read_rows("model.norm.weight", store::RowKind::kMaster, 0, second ? 24 : 48,
                                std::span(values).first(second ? 24 : 48), {}),
                 Code::kMismatch, "rank 1 for");
    // An argument that only one rank has wrong keeps nobody waiting.
    for (const std::string& tensor : {std::string("model.norm.weight"), std::string("nothing")}) {
      const std::string asked = second ? tensor : "model.norm.weight";
      const bool good = tensor != "nothing";
      EXPECT_EQ(job->read_rows(asked, store::RowKind::kMaster, 0, 48, values, {}).ok(), good);
      EXPECT_EQ(job->write_rows(asked, store::RowKind::kMaster, 0, 48, values, {}).ok(), good);
    }
  });
}

TEST(TrainerRanks, EvaluateADataSetOnceWhateverTheirNumber) {
  std::vector<double> losses;
  for (const int world : {1, 2, 3}) {
    on_ranks(world, [&](std::shared_ptr<comm::Group> group) {
      Rank job(group);
      job.loaded();
      const train::Evaluation evaluation = must(job->evaluate(Samples(7), {}));
      EXPECT_EQ(evaluation.samples, 7);
      EXPECT_EQ(evaluation.tokens, 7 * (kLength - 1));
      EXPECT_DOUBLE_EQ(evaluation.perplexity, std::exp(evaluation.loss));
      if (group->rank() == 0) losses.push_back(evaluation.loss);
    });
  }
  EXPECT_DOUBLE_EQ(losses[1], losses[0]);
  EXPECT_DOUBLE_EQ(losses[2], losses[0]);
}

TEST(TrainerRanks, AnUnreadableSampleOfOneRankEndsTheEvaluationOnAll) {
  on_ranks(2, [](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    Samples data(8);
    if (group->rank() == 1) {
      data.fail = [](int64_t) -> Status { return Error(Code::kIo, "the disk has gone"); };
    }
    expect_error(job->evaluate(data, {}), Code::kIo,
                 group->rank() == 1 ? "the disk has gone" : "rank 1: the disk has gone");
    data.fail = {};
    EXPECT_TRUE(job->evaluate(data, {}).ok());
  });
}

}  // namespace
}  // namespace amxt::test
