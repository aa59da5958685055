// A run: what it checks before it begins, what it tells and writes, how it is resumed, and how an error of one rank ends it on all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cmath>
#include <sstream>

#include "base/file.h"
#include "base/json.h"
#include "checkpoint/manifest.h"
#include "checkpoint/save.h"
#include "support/model_files.h"
#include "train/metrics_file.h"
#include "trainer_job.h"

namespace amxt::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using train::EventKind;
using train::RunOptions;
using train::RunVerdict;

template <typename T>
void expect_error(const Result<T>& result, Code code, const std::string& part) {
  ASSERT_FALSE(result.ok()) << "expected: " << part;
  EXPECT_EQ(result.error().code(), code) << result.error().message();
  EXPECT_THAT(result.error().message(), HasSubstr(part));
}

class RunTest : public testing::Test {
 protected:
  ~RunTest() override { set_file_fault({}); }

  RunOptions options(int64_t steps, const std::string& output = "") const {
    RunOptions run;
    run.steps = steps;
    run.output = output.empty() ? "" : folder_ / output;
    return run;
  }
  // A job of `steps` steps that leaves a checkpoint after each of them in `output`.
  void train_to(const std::string& output, int64_t steps,
                const train::TrainOptions& given = job_options()) {
    alone([&](std::shared_ptr<comm::Group> group) {
      Rank job(group, given);
      job.loaded();
      RunOptions run = options(steps, output);
      run.save_steps = 1;
      run.keep = 100;
      must(job->run(data_, run, {}));
    });
  }
  std::string checkpoint(const std::string& output, int64_t step) const {
    return folder_ / (output + "/" + checkpoint::step_name(step));
  }
  std::vector<int64_t> metric_steps(const std::string& name) const {
    std::vector<int64_t> steps;
    std::istringstream lines(read_bytes(folder_ / name));
    for (std::string line; std::getline(lines, line);)
      steps.push_back(must(parse_json(line))["step"].get<int64_t>());
    return steps;
  }

  const TemporaryDirectory folder_;
  const Samples data_{16};
};

// --- What is asked for ----------------------------------------------------------------------------

TEST_F(RunTest, RefusesAnImpossibleLengthByName) {
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    RunOptions run;
    run.steps = 3;
    run.epochs = 2;
    expect_error(job->run(data_, run, {}), Code::kInvalidArgument, "both steps (3) and epochs (2)");
    run.epochs.reset();
    run.steps = 0;
    expect_error(job->run(data_, run, {}), Code::kInvalidArgument, "steps is 0");
    run.steps.reset();
    for (const double epochs : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
      run.epochs = epochs;
      expect_error(job->run(data_, run, {}), Code::kInvalidArgument, "it is above 0");
    }
    EXPECT_EQ(job->state().step, 0);
  });
}

TEST_F(RunTest, RefusesDataThatDoesNotFitTheModel) {
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    expect_error(job->run(Samples(4, 7, kLength + 1), options(1), {}), Code::kInvalidArgument,
                 "samples of 13 positions, the trainer of 12");
    Samples beyond(4);
    beyond.largest = kVocabulary;
    expect_error(job->run(beyond, options(1), {}), Code::kFormat,
                 "token 75 is not in the model's vocabulary of 75");
    beyond.largest = kVocabulary - 1;
    EXPECT_TRUE(job->run(beyond, options(1), {}).ok());
    expect_error(job->run(Samples(0), options(1), {}), Code::kFormat, "no samples");
  });
}

TEST_F(RunTest, IsAnEpochLongUnlessToldOtherwise) {
  alone([&](std::shared_ptr<comm::Group> group) {
    for (const auto& [epochs, steps] :
         std::vector<std::pair<double, int64_t>>{{0, 8}, {0.1, 1}, {0.5, 4}, {1.01, 9}, {2, 16}}) {
      Rank job(group);
      job.loaded();
      RunOptions run;
      if (epochs > 0) run.epochs = epochs;
      must(job->run(data_, run, {}));
      EXPECT_EQ(job->state().step, steps) << epochs << " epochs of 16 samples, two a step";
    }
  });
}

// --- What it tells and writes ---------------------------------------------------------------------

TEST_F(RunTest, TellsStepsSavesEvaluationsAndTheEndInOrder) {
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    RunOptions run = options(5, "o");
    run.save_steps = 2;
    run.eval_steps = 3;
    run.eval_data = &data_;
    run.metrics_path = folder_ / "m.jsonl";
    std::string told;
    run.event = [&](const train::Event& event) -> Result<RunVerdict> {
      constexpr const char* kNames[] = {"", "step", "save", "evaluate", "done"};
      told += std::string(kNames[static_cast<int>(event.kind)]) + " " + std::to_string(event.step) +
              "/" + std::to_string(event.total_steps) + "\n";
      EXPECT_EQ(event.metrics != nullptr, event.kind == EventKind::kStep);
      EXPECT_EQ(event.evaluation != nullptr, event.kind == EventKind::kEvaluate);
      if (event.kind == EventKind::kSave) {
        EXPECT_EQ(event.path, checkpoint("o", event.step));
      }
      if (event.kind == EventKind::kDone) {
        EXPECT_EQ(event.path, folder_ / "o/final");
      }
      return RunVerdict::kContinue;
    };
    must(job->run(data_, run, {}));
    EXPECT_EQ(told,
              "step 1/5\nstep 2/5\nsave 2/5\nstep 3/5\nevaluate 3/5\nstep 4/5\nsave 4/5\n"
              "step 5/5\nevaluate 5/5\nsave 5/5\ndone 5/5\n");
  });
  EXPECT_THAT(metric_steps("m.jsonl"), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_TRUE(path_exists(folder_ / "o/final/model.safetensors"));
  // The two newest stay.
  EXPECT_THAT(must(checkpoint::checkpoint_steps(folder_ / "o")), ElementsAre(4, 5));
}

TEST_F(RunTest, PausesStopsAndGoesOnAsItIsTold) {
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    RunOptions run = options(6, "o");
    run.save_steps = 0;
    RunVerdict answer = RunVerdict::kPause;
    run.event = [&](const train::Event& event) -> Result<RunVerdict> {
      return event.kind == EventKind::kStep && event.step % 2 == 0 ? answer : RunVerdict::kContinue;
    };
    must(job->run(data_, run, {}));
    EXPECT_EQ(job->state().step, 2);
    EXPECT_TRUE(must(checkpoint::checkpoint_steps(folder_ / "o")).empty())
        << "a pause saves nothing";
    answer = RunVerdict::kStop;
    must(job->run(data_, run, {}));
    EXPECT_EQ(job->state().step, 4);
    EXPECT_THAT(must(checkpoint::checkpoint_steps(folder_ / "o")), ElementsAre(4));
    EXPECT_TRUE(path_exists(folder_ / "o/final"));
  });
}

// Sample k of the order is in micro-batch k of the step, whoever takes it: in float32 the losses are the same bits.
TEST_F(RunTest, TakesTheSamplesInOneOrderOnAnyNumberOfRanks) {
  std::vector<std::vector<double>> losses;
  for (const int world : {1, 2, 4}) {
    losses.emplace_back();
    on_ranks(world, [&](std::shared_ptr<comm::Group> group) {
      train::TrainOptions given = job_options();
      given.micro_batch = 2;
      given.accumulate = 4 / world;
      Rank job(group, given);
      job.loaded();
      RunOptions run = options(5);
      run.event = [&](const train::Event& event) -> Result<RunVerdict> {
        if (event.kind == EventKind::kStep && group->rank() == 0)
          losses.back().push_back(event.metrics->loss);
        return RunVerdict::kContinue;
      };
      must(job->run(Samples(33), run, {}));
    });
    EXPECT_EQ(losses.back().size(), 5u);
    EXPECT_EQ(losses.back(), losses.front()) << "world " << world;
  }
}

// --- Resuming -------------------------------------------------------------------------------------

TEST_F(RunTest, ThatIsResumedTakesTheStepsThatWereLeft) {
  for (const train::ComputeType type :
       {train::ComputeType::kFloat32, train::ComputeType::kBFloat16}) {
    train::TrainOptions given = job_options();
    given.compute_type = type;
    const std::string name = type == train::ComputeType::kFloat32 ? "f" : "b";
    train_to(name, 5, given);
    alone([&](std::shared_ptr<comm::Group> group) {
      Rank job(group, given);
      must(job->resume(checkpoint(name, 2), {}));
      const train::TrainerState state = job->state();
      EXPECT_EQ(state.step, 2);
      EXPECT_EQ(state.position, 4);
      EXPECT_EQ(state.total_steps, 5);
      EXPECT_DOUBLE_EQ(state.epoch, 4.0 / 16);
      RunOptions run = options(5, name + "-again");
      run.save_steps = 0;
      must(job->run(data_, run, {}));
    });
    EXPECT_EQ(read_bytes(checkpoint(name + "-again", 5) + "/rank-00000-of-00001.safetensors"),
              read_bytes(checkpoint(name, 5) + "/rank-00000-of-00001.safetensors"))
        << "every bit of weights and moments";
  }
}

TEST_F(RunTest, ThatIsResumedKeepsARateThatWasSetByHand) {
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    must(job->set_learning_rate(0.125));
    must(job->run(data_, options(2, "o"), {}));
    Rank resumed(group);
    must(resumed->resume(checkpoint("o", 2), {}));
    EXPECT_EQ(resumed->state().learning_rate, 0.125);
  });
}

TEST_F(RunTest, OfAnotherLengthThanTheOneResumedIsRefusedUnlessRescheduled) {
  train_to("o", 4);
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    must(job->resume(checkpoint("o", 2), {}));
    expect_error(job->run(data_, options(6), {}), Code::kMismatch,
                 "begun for 4 steps and now asks for 6");
    EXPECT_EQ(job->state().step, 2);
    train::TrainOptions given = job_options();
    given.reschedule = true;
    Rank other(group, given);
    must(other->resume(checkpoint("o", 2), {}));
    must(other->run(data_, options(6), {}));
    EXPECT_EQ(other->state().step, 6);
    EXPECT_EQ(other->state().total_steps, 6);
  });
}

// A horizon of its own lets the steps be cut into several runs.
TEST_F(RunTest, WithAHorizonOfItsOwnMayEndEarlier) {
  train::TrainOptions given = job_options();
  given.schedule = train::ScheduleKind::kLinear;
  given.total_steps = 10;
  train_to("o", 4, given);
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group, given);
    must(job->resume(checkpoint("o", 4), {}));
    EXPECT_DOUBLE_EQ(job->state().learning_rate, 1e-2 * 6 / 10);
    must(job->run(data_, options(7), {}));
    EXPECT_EQ(job->state().step, 7);
    EXPECT_EQ(job->state().total_steps, 10);
  });
}

TEST_F(RunTest, ThatEndsBeforeTheCheckpointSaysSoAndTakesNoStep) {
  train::TrainOptions given = job_options();
  given.total_steps = 10;
  train_to("o", 4, given);
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group, given);
    must(job->resume(checkpoint("o", 4), {}));
    const std::vector<float> before = job.weights();
    must(job->run(data_, options(3), {}));
    EXPECT_TRUE(job.logged("step 4 is taken already, and the job ends after step 3"));
    EXPECT_EQ(job->state().step, 4);
    EXPECT_EQ(job.weights(), before);
  });
}

TEST_F(RunTest, WithAnotherSeedOrLengthOfSamplesIsRefusedUnlessRescheduled) {
  train_to("o", 2);
  alone([&](std::shared_ptr<comm::Group> group) {
    const auto resume_with = [&](const std::function<void(train::TrainOptions&)>& set,
                                 bool reschedule) {
      train::TrainOptions given = job_options();
      set(given);
      given.reschedule = reschedule;
      const Rank job(group, given);
      const Status status = job->resume(checkpoint("o", 2), {});
      EXPECT_EQ(job->state().step, status.ok() ? 2 : 0);
      return status ? std::string() : status.error().message();
    };
    const auto other_seed = [](train::TrainOptions& o) { o.seed = 43; };
    const auto other_length = [](train::TrainOptions& o) { o.sequence_length = 8; };
    EXPECT_THAT(resume_with(other_seed, false),
                HasSubstr("was saved with seed 42, this job has 43: the order of its data"));
    EXPECT_EQ(resume_with(other_seed, true), "");
    EXPECT_THAT(resume_with(other_length, false),
                HasSubstr("was saved with sequence length 12, this job has 8"));
    EXPECT_EQ(resume_with(other_length, true), "");
  });
}

TEST_F(RunTest, ThatIsResumedWithOtherOptionsSaysWhich) {
  train_to("o", 2);
  alone([&](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    given.learning_rate = 3e-3;
    given.schedule = train::ScheduleKind::kLinear;
    given.warmup_steps = 1;
    given.weight_decay = 0.5;
    given.beta1 = 0.5;
    given.beta2 = 0.75;
    given.epsilon = 1e-3;
    given.clip = 2;
    given.decay = train::DecayScope::kMatrices;
    given.loss_average = train::LossAverage::kMicroBatch;
    given.compute_type = train::ComputeType::kBFloat16;
    const Rank job(group, given);
    must(job->resume(checkpoint("o", 2), {}));
    for (const char* line :
         {"the learning rate was 0.01 when the checkpoint was saved and is 0.003 now",
          "the schedule was constant", "warm-up steps was 0", "weight decay was 0.01",
          "beta1 was 0.9", "beta2 was 0.999", "epsilon was 1e-08", "clipping was 1",
          "what decays was all", "the average of the loss was tokens",
          "compute in float32; it goes on in bfloat16"}) {
      EXPECT_TRUE(job.logged(line)) << line;
    }
    const Rank same(group);
    must(same->resume(checkpoint("o", 2), {}));
    EXPECT_FALSE(same.logged("when the checkpoint was saved"));
  });
}

// The first resume left its count of updates behind, which the bias correction of a fresh start then took.
TEST_F(RunTest, AResumeThatFailsLeavesTheTrainerAsCreated) {
  train_to("o", 3);
  const std::string file = checkpoint("o", 3) + "/rank-00000-of-00001.safetensors";
  std::string bytes = read_bytes(file);
  bytes[bytes.size() - 100] = static_cast<char>(bytes[bytes.size() - 100] ^ 0x40);
  write_bytes(file, bytes);
  alone([&](std::shared_ptr<comm::Group> group) {
    const auto first_step = [&](Rank& job) {
      job.loaded();
      must(job->step(batch_of(0, 2), {}));
      return job.weights();
    };
    Rank fresh(group), job(group);
    expect_error(job->resume(checkpoint("o", 3), {}), Code::kCorrupt, "rank-00000-of-00001");
    EXPECT_EQ(job->state().status, train::TrainerStatus::kCreated);
    EXPECT_EQ(job->state().step, 0);
    EXPECT_EQ(job->state().position, 0);
    EXPECT_EQ(job->state().total_steps, fresh->state().total_steps);
    EXPECT_EQ(first_step(job), first_step(fresh));
  });
}

// --- Prepared -------------------------------------------------------------------------------------

TEST_F(RunTest, IsPreparedForWhatItResumes) {
  train_to("o", 3);
  alone([&](std::shared_ptr<comm::Group> group) {
    const auto prepare = [&](const RunOptions& run, bool reschedule = false,
                             const Samples* data = nullptr) {
      train::TrainOptions given = job_options();
      given.reschedule = reschedule;
      return Rank(group, given)->prepare(data != nullptr ? *data : data_, run, {});
    };
    RunOptions run = options(3, "o");
    expect_error(prepare(run), Code::kExists,
                 "holds checkpoints already, the newest of step 3: resume from the latest");
    run.resume = "latest";
    EXPECT_EQ(must(prepare(run)), checkpoint("o", 3));
    run.resume = checkpoint("o", 1);
    EXPECT_EQ(must(prepare(run)), checkpoint("o", 1));
    run.resume = folder_ / "nowhere";
    expect_error(prepare(run), Code::kNotFound, "nowhere");
    EXPECT_EQ(must(prepare(options(3, "new"))), std::nullopt);
    run = options(3, "empty");
    run.resume = "latest";
    EXPECT_EQ(must(prepare(run)), std::nullopt) << "nothing there: afresh";
    run.output.clear();
    expect_error(prepare(run), Code::kInvalidArgument, "needs an output directory");

    run = options(4, "o");
    run.resume = "latest";
    expect_error(prepare(run), Code::kMismatch, "begun for 3 steps and now asks for 4");
    EXPECT_EQ(must(prepare(run, true)), checkpoint("o", 3));
    run.steps = 3;
    const Samples other(16, 8);
    expect_error(prepare(run, false, &other), Code::kMismatch, "the data is not what it was");
    EXPECT_EQ(must(prepare(run, true, &other)), checkpoint("o", 3));
    run.metrics_path = folder_ / "nowhere/m.jsonl";
    expect_error(prepare(run), Code::kNotFound, "m.jsonl");
  });
}

TEST_F(RunTest, FindsAnotherModelsCheckpointBeforeAnythingIsLoaded) {
  train_to("o", 2);
  alone([&](std::shared_ptr<comm::Group> group) {
    const Rank job(group, job_options(), "llama3_1");
    RunOptions run = options(2, "o");
    run.resume = "latest";
    const auto prepared = job->prepare(data_, run, {});
    ASSERT_FALSE(prepared.ok());
    EXPECT_EQ(prepared.error().code(), Code::kMismatch) << prepared.error().message();
  });
}

TEST_F(RunTest, LeavesAFileOfSomethingElseAsItIs) {
  write_bytes(folder_ / "notes.txt", "my notes\n");
  alone([&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    RunOptions run = options(2);
    run.metrics_path = folder_ / "notes.txt";
    expect_error(job->prepare(data_, run, {}), Code::kExists, "something else than metrics");
    job.loaded();
    expect_error(job->run(data_, run, {}), Code::kExists, "something else than metrics");
    EXPECT_EQ(job->state().step, 0);
  });
  EXPECT_EQ(read_bytes(folder_ / "notes.txt"), "my notes\n");
}

// --- Ranks ----------------------------------------------------------------------------------------

TEST_F(RunTest, OfRanksThatDisagreeNamesWhatAndWho) {
  on_ranks(3, [&](std::shared_ptr<comm::Group> group) {
    Rank job(group);
    job.loaded();
    const bool other = group->rank() == 2;
    const auto refuse = [&](const io::Dataset& data, const RunOptions& run,
                            const std::string& part) {
      const Status status = job->run(data, run, {});
      ASSERT_FALSE(status.ok()) << part;
      EXPECT_EQ(status.error().code(), Code::kMismatch);
      EXPECT_EQ(status.error().rank(), 2);
      EXPECT_THAT(status.error().message(),
                  AllOf(HasSubstr("ranks disagree on " + part), HasSubstr("rank 2 has")));
    };
    refuse(Samples(16, other ? 8 : 7), options(2), "the data: rank 0 has");
    refuse(Samples(other ? 15 : 16), options(2), "the data's number of samples");
    refuse(data_, options(other ? 3 : 2), "the number of steps: rank 0 has '2'");
    RunOptions run = options(2, "o");
    run.save = !other;
    refuse(data_, run, "saving");
    run.save = true;
    run.save_steps = other ? 1 : 2;
    refuse(data_, run, "steps between checkpoints");
    run.save = false;
    run.eval_data = &data_;
    run.eval_steps = other ? 1 : 2;
    refuse(data_, run, "steps between evaluations");
    const Samples elsewhere(16, 9);
    run.eval_steps = 1;
    run.eval_data = other ? &elsewhere : &data_;
    refuse(data_, run, "the data to evaluate on");
    run.eval_data = other ? &data_ : nullptr;
    refuse(data_, run, "the data to evaluate on: rank 0 has none, rank 2 has '");
    run.eval_data = other ? nullptr : &data_;
    refuse(data_, run, "the data to evaluate on: rank 0 has '");
    EXPECT_EQ(job->state().step, 0);
  });
}

// What only one rank meets between two steps: the others wait for it in the next one and must hear of it there.
class RunErrorOfOneRank : public RunTest {
 protected:
  // Every rank's run ends with `words`, at `steps` steps; and the trainers are fit for another.
  void expect_end(int failing, Code code, const std::string& words, int64_t steps,
                  const std::function<void(RunOptions&, Samples&)>& spoil) {
    on_ranks(2, [&](std::shared_ptr<comm::Group> group) {
      Rank job(group);
      job.loaded();
      Samples data(16);
      RunOptions run = options(4);
      run.metrics_path = folder_ / "m.jsonl";
      run.eval_data = &data_;
      run.eval_steps = 4;
      RunOptions spoilt = run;
      must(group->barrier(Deadline::never()));
      if (group->rank() == failing) spoil(spoilt, data);
      must(group->barrier(Deadline::never()));
      const Status status = job->run(data, spoilt, {});
      ASSERT_FALSE(status.ok()) << "rank " << group->rank();
      EXPECT_EQ(status.error().code(), code) << status.error().message();
      EXPECT_THAT(status.error().message(), HasSubstr(words));
      if (group->rank() != failing) {
        EXPECT_THAT(status.error().message(), HasSubstr("rank " + std::to_string(failing) + ": "));
      }
      EXPECT_EQ(job->state().step, steps) << "rank " << group->rank();
      if (steps < 4) {
        data.fail = {};
        must(group->barrier(Deadline::never()));
        if (group->rank() == failing) set_file_fault({});
        must(group->barrier(Deadline::never()));
        must(job->run(data, run, {}));
        EXPECT_EQ(job->state().step, 4);
      }
    });
  }
  // A callback that fails at the first event of a kind from a step on.
  static auto fail_at(EventKind kind, int64_t step) {
    return [=](RunOptions& run, Samples&) {
      run.event = [=](const train::Event& event) -> Result<RunVerdict> {
        if (event.kind != kind || event.step < step) return RunVerdict::kContinue;
        return Error(Code::kUser, "the host has had enough");
      };
    };
  }
};

TEST_F(RunErrorOfOneRank, InItsDataEndsTheRunOnAll) {
  for (const int failing : {0, 1}) {
    expect_end(failing, Code::kIo, "the disk has gone", 2, [](RunOptions&, Samples& data) {
      data.fail = [reads = 0](int64_t) mutable -> Status {
        if (++reads <= 4) return {};  // two steps of two
        return Error(Code::kIo, "the disk has gone");
      };
    });
  }
}

TEST_F(RunErrorOfOneRank, InItsMetricsFileEndsTheRunOnAll) {
  expect_end(0, Code::kNoSpace, "m.jsonl", 1, [](RunOptions&, Samples&) {
    set_file_fault([](std::string_view operation, const std::string& path) {
      return operation == "write" && path.ends_with("m.jsonl") ? ENOSPC : 0;
    });
  });
}

TEST_F(RunErrorOfOneRank, InItsCallbackEndsTheRunOnAll) {
  for (const int failing : {0, 1}) {
    expect_end(failing, Code::kUser, "had enough", 3, fail_at(EventKind::kStep, 3));
    expect_end(failing, Code::kUser, "had enough", 4, fail_at(EventKind::kStep, 4));
    expect_end(failing, Code::kUser, "had enough", 4, fail_at(EventKind::kEvaluate, 1));
    expect_end(failing, Code::kUser, "had enough", 4, fail_at(EventKind::kDone, 1));
  }
}

// Rank 0 alone clears away the checkpoints of a future that is taken again.
TEST_F(RunErrorOfOneRank, WhichClearsTheOutputEndsTheRunOnAll) {
  train_to("o", 3);
  on_ranks(2, [&](std::shared_ptr<comm::Group> group) {
    train::TrainOptions given = job_options();
    given.accumulate = 1;
    Rank job(group, given);
    must(job->resume(checkpoint("o", 1), {}));
    must(group->barrier(Deadline::never()));
    if (group->rank() == 0) {
      set_file_fault([](std::string_view operation, const std::string& path) {
        return (operation == "remove" || operation == "rename") &&
                       path.find("step-000003") != std::string::npos
                   ? EACCES
                   : 0;
      });
    }
    must(group->barrier(Deadline::never()));
    const Status status = job->run(data_, options(3, "o"), {});
    ASSERT_FALSE(status.ok()) << "rank " << group->rank();
    EXPECT_EQ(status.error().code(), Code::kIo) << status.error().message();
    EXPECT_EQ(job->state().step, 1);
  });
}

}  // namespace
}  // namespace amxt::test
