// What `amxtrain train` leaves behind: metrics, checkpoints, the final model; and that a resumed job is the same job.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cmath>

#include "ranks/command.h"

namespace amxt::test {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class CommandTrain : public CommandTest {
 protected:
  void SetUp() override {
    model_ = model();
    data_ = data();
  }

  Finished succeed(const Arguments& arguments) {
    Finished finished = amxtrain(arguments);
    EXPECT_EQ(finished.code, 0) << finished;
    return finished;
  }
  Finished succeed_on(int ranks, const Arguments& arguments) {
    Finished finished = launch(ranks, arguments);
    EXPECT_EQ(finished.code, 0) << finished;
    return finished;
  }
};

TEST_F(CommandTrain, ProfilesTheThirdStep) {
  const Finished trained =
      succeed(train({"--steps", "4", "--no-save", "--profile", path("trace.json")}));
  EXPECT_THAT(trained.err,
              AllOf(HasSubstr("profile: step 3: "), HasSubstr("profile: dW "),
                    HasSubstr("profile: attention backward "), HasSubstr("profile: optimizer "),
                    HasSubstr("profile: between operations ")));
  const Json trace = metrics_of(path("trace.json")).at(0);  // one line
  std::map<std::string, double> seconds;
  for (const Json& event : trace.at("traceEvents"))
    seconds[event.at("name").get<std::string>()] += event.at("dur").get<double>();
  for (const char* name : {"qkv", "attention", "down dX", "logits", "head dX", "norm of gradients"})
    EXPECT_GT(seconds[name], 0) << name;
}

// With fewer steps, the last; and by rank 0 alone.
TEST_F(CommandTrain, ProfilesTheLastStepOfAShortRun) {
  const Finished trained =
      succeed_on(2, train({"--steps", "1", "--no-save", "--profile", path("trace.json")}));
  EXPECT_THAT(trained.out + trained.err, HasSubstr("profile: step 1: "));
  const Json trace = metrics_of(path("trace.json")).at(0);
  EXPECT_GT(trace.at("traceEvents").size(), 10u);
  for (const Json& event : trace.at("traceEvents")) ASSERT_EQ(event.at("pid"), 0);
}

TEST_F(CommandTrain, AProfileThatCannotBeWrittenIsRefusedBeforeTraining) {
  const Finished refused =
      amxtrain(train({"--steps", "4", "--no-save", "--profile", path("none/trace.json")}));
  EXPECT_NE(refused.code, 0);
  EXPECT_THAT(refused.err, HasSubstr("none/trace.json"));
  EXPECT_THAT(refused.out, Not(HasSubstr("step 1/4")));
}

TEST_F(CommandTrain, WritesALineOfMetricsAStep) {
  const Finished trained = succeed(train_to("o", {"--steps", "4"}));
  expect_steps(path("o.jsonl"), 1, 4);
  for (const Json& line : metrics_of(path("o.jsonl"))) {
    for (const char* key :
         {"step", "epoch", "loss", "grad_norm", "lr", "tokens", "seconds", "tokens_per_second",
          "model_tflops", "peak_rss_bytes", "peak_pss_bytes_all_ranks", "world_size"}) {
      EXPECT_TRUE(line.contains(key) && line.at(key).is_number()) << key << " in " << line;
    }
    EXPECT_EQ(line.at("tokens"), 4 * 16);
    EXPECT_EQ(line.at("world_size"), 1);
    EXPECT_GT(line.at("loss"), 1);
    EXPECT_GT(line.at("peak_rss_bytes"), 1 << 20);
  }
  for (const char* text :
       {"Running training", "examples", "accumulation", "batch, all ranks", "optimizer steps",
        "trainable parameters", "memory after load", "memory master weights", "memory moments",
        "memory first step", "memory step", "step 4/4", "saved ", "final model in "}) {
    EXPECT_THAT(trained.out, HasSubstr(text));
  }
  EXPECT_FALSE(has(trained.out + trained.err, "\r")) << "a bar without a terminal";
}

TEST_F(CommandTrain, LearnsItsData) {
  succeed(train_to("o", {"--steps", "60", "--schedule", "cosine", "--warmup-steps", "5"}));
  const std::vector<Json> lines = metrics_of(path("o.jsonl"));
  EXPECT_LT(lines.back().at("loss").get<double>(), lines.front().at("loss").get<double>() - 2);
  const Finished eval =
      succeed({"eval", "--model", path("o/final"), "--data", data_, "--seq-len", "16", "--json"});
  EXPECT_LT(Json::parse(eval.out).at("loss").get<double>(), 3.2);
}

TEST_F(CommandTrain, KeepsTheNewestCheckpointsAndPointsAtTheLast) {
  succeed(train_to("o", {"--steps", "7", "--save-steps", "2"}));
  EXPECT_THAT(names_in(path("o")), ElementsAre("final", "latest", "step-000006", "step-000007"));
  EXPECT_EQ(fs::read_symlink(path("o/latest")), "step-000007");
  succeed(train_to("three", {"--steps", "7", "--save-steps", "2", "--keep", "3"}));
  EXPECT_THAT(names_in(path("three")),
              ElementsAre("final", "latest", "step-000004", "step-000006", "step-000007"));
  succeed(train_to("last", {"--steps", "3", "--save-steps", "0"}));
  EXPECT_THAT(names_in(path("last")), ElementsAre("final", "latest", "step-000003"));
}

TEST_F(CommandTrain, LeavesAFinalModelWithTokenizerFiles) {
  write_text(path("model/tokenizer.json"), "{\"version\": \"1.0\"}");
  write_text(path("model/tokenizer_config.json"), "{\"model_max_length\": 16}");
  write_text(path("model/special_tokens_map.json"), "{}");
  for (const auto& [dtype, name] : {std::pair("bfloat16", "BF16"), std::pair("float32", "F32")}) {
    const std::string output = std::string("o-") + dtype;
    succeed(train_to(output, {"--steps", "2", "--compute-dtype", dtype}));
    for (const char* file :
         {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}) {
      EXPECT_EQ(contents(path(output + "/final/" + file)),
                contents(path(std::string("model/") + file)))
          << file;
    }
    const Finished inspect = succeed({"inspect", path(output + "/final"), "--scan", "--json"});
    const Json json = Json::parse(inspect.out);
    for (const Json& tensor : json.at("tensors")) EXPECT_EQ(tensor.at("dtype"), name);
    const Json config = Json::parse(contents(path(output + "/final/config.json")));
    EXPECT_EQ(config.at("hidden_size"), 64);
    EXPECT_EQ(config.contains("torch_dtype") ? config.at("torch_dtype") : config.at("dtype"),
              dtype);
  }
  // It is a model like any other, and can be trained on.
  succeed({"train", "--model", path("o-float32/final"), "--data", data_, "--seq-len", "16",
           "--steps", "1", "--output", path("again")});
}

TEST_F(CommandTrain, NoSaveWritesMetricsOnly) {
  succeed(train({"--steps", "2", "--no-save", "--metrics", path("m.jsonl")}));
  expect_steps(path("m.jsonl"), 1, 2);
  succeed(train({"--steps", "2", "--no-save", "--output", path("o")}));
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(CommandTrain, AnEmptyNameIsNoWishToDoWithout) {
  for (const char* option : {"--output", "--metrics", "--resume"}) {
    expect_error(amxtrain(train_to("o", {"--steps", "1", option, ""})), 2, {option});
  }
  expect_error(amxtrain(train({"--output=", "--steps", "1"})), 2, {"--output="});
}

TEST_F(CommandTrain, WhatStandsInTheWayIsFoundBeforeTheFirstStep) {
  fs::create_directories(path("a/latest"));
  fs::create_directories(path("b/final"));
  write_text(path("b/final/notes"), "mine");
  for (const char* output : {"a", "b"}) {
    const Finished refused = amxtrain(train_to(output, {"--steps", "1"}));
    EXPECT_EQ(refused.code, 1) << refused;
    EXPECT_THAT(refused.out, Not(HasSubstr("step 1/1")));
  }
  EXPECT_EQ(contents(path("b/final/notes")), "mine");
}

TEST_F(CommandTrain, AnotherModeIsRefusedAndAnotherBatchIsSaid) {
  succeed(train_to("o", {"--steps", "2", "--save-steps", "1"}));
  expect_error(
      amxtrain(train_to("o", {"--steps", "2", "--resume", path("o/step-000001"), "--mode", "pad"})),
      1, {"mode", "pack", "pad"});
  const Finished wider = succeed(
      train_to("o", {"--steps", "2", "--resume", path("o/step-000001"), "--micro-batch", "2"}));
  EXPECT_THAT(wider.err, HasSubstr("the samples of a step"));
}

TEST_F(CommandTrain, TwoJobsDoNotShareAnOutput) {
  const Finished first = succeed(train_to("o", {"--steps", "1"}));
  const int held = open(path("o").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(flock(held, LOCK_EX | LOCK_NB), 0);
  expect_error(amxtrain(train_to("o", {"--steps", "1", "--resume", "latest"})), 1,
               {"another job is writing there"});
  close(held);
  succeed(train_to("o", {"--steps", "1", "--resume", "latest"}));
}

TEST_F(CommandTrain, DryRunPlansAndWritesNothing) {
  const Finished dry = succeed(train_to("o", {"--steps", "2", "--dry-run"}));
  EXPECT_THAT(dry.out, HasSubstr("peak"));
  EXPECT_FALSE(fs::exists(path("o")));
  EXPECT_FALSE(fs::exists(path("o.jsonl")));
  expect_error(amxtrain(train_to("o", {"--dry-run", "--memory-limit", "20MB"})), 1, {"MiB"});
}

TEST_F(CommandTrain, TrainsOneEpochWhenNotToldOtherwise) {
  const Finished trained =
      succeed(train({"--no-save", "--metrics", path("m.jsonl"), "--accumulate", "16"}));
  const std::vector<Json> lines = metrics_of(path("m.jsonl"));
  ASSERT_FALSE(lines.empty());
  EXPECT_GE(lines.back().at("epoch").get<double>(), 1);
  EXPECT_LT(lines[lines.size() - 2].at("epoch").get<double>(), 1);
  succeed(
      train({"--no-save", "--metrics", path("two.jsonl"), "--accumulate", "16", "--epochs", "2"}));
  EXPECT_NEAR(static_cast<double>(metrics_of(path("two.jsonl")).size()),
              2.0 * static_cast<double>(lines.size()), 1);
}

TEST_F(CommandTrain, GivesTheSameBitsAgainWhateverTheThreads) {
  succeed(train_to("a", {"--steps", "4", "--no-save"}));
  succeed(train_to("b", {"--steps", "4", "--no-save"}));
  succeed(train_to("one", {"--steps", "4", "--no-save", "--threads", "1"}));
  EXPECT_EQ(curve_of(path("a.jsonl")), curve_of(path("b.jsonl")));
  EXPECT_EQ(curve_of(path("a.jsonl")), curve_of(path("one.jsonl")));
}

TEST_F(CommandTrain, AResumedJobIsTheSameJob) {
  for (const std::string dtype : {"bfloat16", "float32"}) {
    const Arguments options = {"--steps",         "6",   "--save-steps", "3",
                               "--compute-dtype", dtype, "--schedule",   "cosine",
                               "--warmup-steps",  "2"};
    succeed(train_to("whole-" + dtype, options));
    const std::string cut = "cut-" + dtype;
    succeed(train_to(cut, options));
    // Resumed from its middle: later lines of metrics and later checkpoints are of a future that is taken again.
    const Finished resumed =
        succeed(train_to(cut, options + Arguments{"--resume", path(cut + "/step-000003")}));
    EXPECT_THAT(resumed.out, HasSubstr("step-000003"));
    EXPECT_THAT(resumed.out, Not(HasSubstr("step 3/6")));
    expect_steps(path(cut + ".jsonl"), 1, 6);
    EXPECT_EQ(curve_of(path(cut + ".jsonl")), curve_of(path("whole-" + dtype + ".jsonl")));
    EXPECT_EQ(contents(path(cut + "/final/model.safetensors")),
              contents(path("whole-" + dtype + "/final/model.safetensors")));
    EXPECT_EQ(contents(path(cut + "/step-000006/rank-00000-of-00001.safetensors")),
              contents(path("whole-" + dtype + "/step-000006/rank-00000-of-00001.safetensors")));
  }
}

TEST_F(CommandTrain, AResumeWithNothingLeftKeepsWhatIsThere) {
  succeed(train_to("o", {"--steps", "3"}));
  const auto before = curve_of(path("o.jsonl"));
  fs::remove_all(path("o/final"));
  succeed(train_to("o", {"--steps", "3", "--resume", "latest"}));
  EXPECT_EQ(curve_of(path("o.jsonl")), before);
  EXPECT_THAT(names_in(path("o")), ElementsAre("final", "latest", "step-000003"));
}

TEST_F(CommandTrain, OneToFourRanksTakeTheSameCurveFromOneCheckpoint) {
  const Arguments options = {"--steps",         "6",       "--save-steps", "2",
                             "--compute-dtype", "float32", "--keep",       "3"};
  succeed_on(2, train_to("o", options + Arguments{"--accumulate", "6"}));
  const std::vector<Json> whole = metrics_of(path("o.jsonl"));
  for (int ranks = 1; ranks <= 4; ++ranks) {
    const std::string name = fmt::format("on-{}", ranks);
    succeed_on(ranks, train_to(name, options + Arguments{"--accumulate", std::to_string(12 / ranks),
                                                         "--resume", path("o/step-000002")}));
    const std::vector<Json> curve = metrics_of(path(name + ".jsonl"));
    ASSERT_EQ(curve.size(), 4u);
    for (size_t i = 0; i < curve.size(); ++i) {
      EXPECT_EQ(curve[i].at("world_size"), ranks);
      EXPECT_EQ(curve[i].at("step"), whole[i + 2].at("step"));
      EXPECT_EQ(curve[i].at("tokens"), whole[i + 2].at("tokens"));
      EXPECT_EQ(hex(curve[i].at("loss")), hex(whole[i + 2].at("loss"))) << ranks << " ranks";
      EXPECT_EQ(hex(curve[i].at("grad_norm")), hex(whole[i + 2].at("grad_norm")))
          << ranks << " ranks";
    }
    EXPECT_EQ(contents(path(name + "/final/model.safetensors")),
              contents(path("o/final/model.safetensors")))
        << ranks << " ranks";
  }
}

TEST_F(CommandTrain, ResumeLatestWithNothingThereStartsAfreshAndSaysSo) {
  const Finished trained = succeed(train_to("o", {"--steps", "2", "--resume", "latest"}));
  EXPECT_THAT(trained.out + trained.err, HasSubstr("nothing to resume"));
  expect_steps(path("o.jsonl"), 1, 2);
}

TEST_F(CommandTrain, AnOutputThatHoldsCheckpointsIsAnErrorWithoutResume) {
  succeed(train_to("o", {"--steps", "2"}));
  const std::string checksum = contents(path("o/step-000002/manifest.json"));
  expect_error(amxtrain(train_to("o", {"--steps", "2"})), 1,
               {path("o").substr(0, 100), "--resume latest", "another --output"});
  EXPECT_EQ(contents(path("o/step-000002/manifest.json")), checksum);
  expect_steps(path("o.jsonl"), 1, 2);
}

TEST_F(CommandTrain, AnotherNumberOfStepsNeedsReschedule) {
  succeed(train_to("o", {"--steps", "2"}));
  expect_error(amxtrain(train_to("o", {"--steps", "4", "--resume", "latest"})), 1,
               {"2", "4", "reschedule"});
  expect_steps(path("o.jsonl"), 1, 2);
  succeed(train_to("o", {"--steps", "4", "--resume", "latest", "--reschedule"}));
  expect_steps(path("o.jsonl"), 1, 4);
  const std::vector<Json> lines = metrics_of(path("o.jsonl"));
  EXPECT_NEAR(lines[0].at("lr").get<double>(), 0.01, 1e-9);
  EXPECT_NEAR(lines[2].at("lr").get<double>(), 0.005, 1e-9);
}

TEST_F(CommandTrain, SchedulesAreThoseOfTransformers) {
  succeed(train(
      {"--steps", "4", "--no-save", "--metrics", path("linear.jsonl"), "--warmup-steps", "2"}));
  succeed(train({"--steps", "4", "--no-save", "--metrics", path("constant.jsonl"), "--schedule",
                 "constant"}));
  std::vector<double> linear, constant;
  for (const Json& line : metrics_of(path("linear.jsonl"))) linear.push_back(line.at("lr"));
  for (const Json& line : metrics_of(path("constant.jsonl"))) constant.push_back(line.at("lr"));
  EXPECT_THAT(linear, ElementsAre(0, 0.005, 0.01, 0.005));
  EXPECT_THAT(constant, ElementsAre(0.01, 0.01, 0.01, 0.01));
}

TEST_F(CommandTrain, EvaluatesWhileItTrains) {
  const std::string other = data("eval.safetensors", 10);
  const Finished trained =
      succeed(train({"--steps", "4", "--no-save", "--eval-data", other, "--eval-steps", "2"}));
  EXPECT_THAT(trained.out, HasSubstr("evaluation after step 2"));
  EXPECT_THAT(trained.out, HasSubstr("evaluation after step 4"));
  const Finished once = succeed(train({"--steps", "3", "--no-save", "--eval-data", other}));
  EXPECT_THAT(once.out, HasSubstr("evaluation after step 3"));
  EXPECT_THAT(once.out, Not(HasSubstr("evaluation after step 2")));
}

TEST_F(CommandTrain, PadModeCountsPositionsThatAreNotPadding) {
  write_text(path("two.jsonl"),
             "{\"text\": \"abc\"}\n{\"text\": \"0123456789abcdefghijklmnop\"}\n");
  succeed({"tokenize", "--out", path("two.safetensors"), path("two.jsonl")});
  succeed({"train", "--model", model_, "--data", path("two.safetensors"), "--mode", "pad",
           "--seq-len", "8", "--accumulate", "2", "--steps", "1", "--no-save", "--metrics",
           path("m.jsonl")});
  EXPECT_EQ(metrics_of(path("m.jsonl")).at(0).at("tokens"), 3 + 8);
}

TEST_F(CommandTrain, TakesPlainStreamsOfTokens) {
  std::string bytes;
  for (int i = 0; i < 400; ++i) bytes += {static_cast<char>(i * 7 % 256), '\0'};
  write_text(path("tokens.bin"), bytes);
  const Arguments base = {"train",   "--model", model_,      "--seq-len", "16",
                          "--steps", "2",       "--no-save", "--data"};
  succeed(base + Arguments{path("tokens.bin")});
  succeed(base + Arguments{path("tokens.bin"), "--separator", "0"});
  std::string header = "{'descr': '<u2', 'fortran_order': False, 'shape': (400,), }";
  header.append(128 - 10 - header.size() - 1, ' ');
  write_text(path("tokens.npy"), std::string("\x93NUMPY\x01\x00", 8) +
                                     static_cast<char>(header.size() + 1) + '\0' + header + '\n' +
                                     bytes);
  succeed(base + Arguments{path("tokens.npy")});
  succeed(base + Arguments{path("tokens.npy"), path("tokens.bin"), data_});
}

TEST_F(CommandTrain, EachInstructionSetTrains) {
  const std::vector<std::string> order = {"avx2", "avx512", "avx512_bf16", "amx"};
  const Finished info = succeed({"info", "--json"});
  const std::string best = Json::parse(info.out).at("cpu").at("isa");
  const auto rank = [&](const std::string& isa) {
    return std::find(order.begin(), order.end(), isa) - order.begin();
  };
  std::vector<double> losses;
  std::string skipped;
  for (const std::string& isa : order) {
    if (rank(isa) > rank(best)) {
      skipped += " " + isa;
      continue;
    }
    const Finished trained =
        amxtrain(train({"--steps", "3", "--no-save", "--metrics", path(isa + ".jsonl")}),
                 {{"AMXTRAIN_MAX_ISA", isa}});
    ASSERT_EQ(trained.code, 0) << isa << trained;
    EXPECT_THAT(trained.err, HasSubstr(isa));
    losses.push_back(metrics_of(path(isa + ".jsonl")).back().at("loss"));
    EXPECT_NEAR(losses.back(), losses.front(), 0.02) << isa;
  }
  for (const Arguments& command : {train({"--steps", "1", "--no-save"}),
                                   Arguments{"eval", "--model", model_, "--data", data_}}) {
    expect_error(amxtrain(command, {{"AMXTRAIN_MAX_ISA", "sse9"}}), 1,
                 {"AMXTRAIN_MAX_ISA", "sse9"});
  }
  if (!skipped.empty()) GTEST_SKIP() << "skipped: this machine has no" << skipped;
}

TEST_F(CommandTrain, LogLevelsAreByOptionAndEnvironment) {
  const Arguments options = {"--steps", "1", "--no-save"};
  EXPECT_THAT(succeed(train(options)).err, HasSubstr("rank 0 connected to 1 of 1"));
  const Finished quiet = succeed(train(options + Arguments{"--log", "off"}));
  EXPECT_THAT(quiet.err, Not(HasSubstr("amxtrain:")));
  const Finished silenced = amxtrain(train(options), {{"AMXTRAIN_LOG", "error"}});
  EXPECT_EQ(silenced.code, 0) << silenced;
  EXPECT_THAT(silenced.err, Not(HasSubstr("connected")));
}

// --- DeepSpeed's configuration ----------------------------------------------------------------

constexpr const char* kZero3 = R"({
  "bf16": {"enabled": true},
  "zero_optimization": {
    "stage": 3,
    "offload_optimizer": {"device": "cpu"},
    "offload_param": {"device": "cpu"},
    "overlap_comm": true,
    "contiguous_gradients": true,
    "stage3_max_live_parameters": 1e9,
    "stage3_prefetch_bucket_size": 5e8,
    "stage3_param_persistence_threshold": 1e6
  },
  "gradient_accumulation_steps": 4,
  "gradient_clipping": 1.0,
  "steps_per_print": 1000,
  "train_micro_batch_size_per_gpu": 1,
  "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "weight_decay": 0.01}}
})";

constexpr const char* kAllAuto = R"({
  "bf16": {"enabled": "auto"},
  "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
  "scheduler": {
    "type": "WarmupDecayLR",
    "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"}
  },
  "zero_optimization": {
    "stage": 3,
    "offload_optimizer": {"device": "cpu", "pin_memory": true},
    "offload_param": {"device": "cpu", "pin_memory": true},
    "overlap_comm": true,
    "contiguous_gradients": true,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": true
  },
  "gradient_accumulation_steps": "auto",
  "gradient_clipping": "auto",
  "steps_per_print": 2000,
  "train_batch_size": "auto",
  "train_micro_batch_size_per_gpu": "auto",
  "wall_clock_breakdown": false
})";

class CommandDsConfig : public CommandTrain {
 protected:
  Arguments with(const std::string& text, const Arguments& more = {}) {
    write_text(path("ds.json"), text);
    return Arguments{
               "train",       "--model",      model_,    "--data", data_,       "--seq-len",
               "16",          "--no-save",    "--steps", "2",      "--metrics", path("m.jsonl"),
               "--ds-config", path("ds.json")} +
           more;
  }
  Json change(const char* text, const std::string& pointer, const Json& value) {
    Json json = Json::parse(text);
    json[Json::json_pointer(pointer)] = value;
    return json;
  }
};

TEST_F(CommandDsConfig, ZeroThreeWithOffloadRunsUnchanged) {
  const Finished trained = succeed(with(kZero3));
  const std::vector<Json> lines = metrics_of(path("m.jsonl"));
  EXPECT_EQ(lines.at(0).at("lr"), 2e-5);
  EXPECT_EQ(lines.at(0).at("tokens"), 4 * 16);
  for (const char* key : {"stage", "offload_param", "overlap_comm"})
    EXPECT_THAT(trained.out + trained.err, HasSubstr(key));
}

TEST_F(CommandDsConfig, AutoTakesTheFlagsElseTheDefaults) {
  succeed(with(kAllAuto));
  EXPECT_EQ(metrics_of(path("m.jsonl")).at(1).at("tokens"), 4 * 16);
  succeed(with(kAllAuto, {"--lr", "0.003", "--accumulate", "2", "--micro-batch", "3"}));
  const std::vector<Json> lines = metrics_of(path("m.jsonl"));
  EXPECT_EQ(lines.at(1).at("tokens"), 6 * 16);
  EXPECT_LE(lines.at(1).at("lr").get<double>(), 0.003);
}

TEST_F(CommandDsConfig, RunsOnSeveralRanks) {
  for (const char* text : {kZero3, kAllAuto}) {
    succeed_on(2, with(text));
    EXPECT_EQ(metrics_of(path("m.jsonl")).at(0).at("tokens"), 2 * 4 * 16);
  }
}

TEST_F(CommandDsConfig, AFlagThatContradictsTheFileIsAnErrorThatListsBoth) {
  expect_error(amxtrain(with(kZero3, {"--lr", "0.001"})), 2, {"lr", "2e-05", "0.001"});
  expect_error(amxtrain(with(kZero3, {"--accumulate", "8"})), 2,
               {"gradient_accumulation_steps", "4", "8"});
  expect_error(amxtrain(with(kZero3, {"--clip", "0.5"})), 2, {"gradient_clipping", "0.5"});
  expect_error(amxtrain(with(kZero3, {"--compute-dtype", "float32"})), 2, {"bf16", "float32"});
}

TEST_F(CommandDsConfig, UnknownAndContradictoryKeysAreNamed) {
  const auto refuse = [&](const std::string& text, const std::vector<std::string>& parts) {
    SCOPED_TRACE(text);
    expect_error(amxtrain(with(text)), 1, parts);
  };
  refuse(change(kZero3, "/zero_optimisation", Json::object()).dump(),
         {"ds.json", "zero_optimisation"});
  refuse(change(kZero3, "/zero_optimization/stage4", 1).dump(), {"ds.json", "stage4"});
  refuse(change(kZero3, "/zero_optimization/stage", 4).dump(), {"ds.json", "stage"});
  refuse(change(kZero3, "/zero_optimization/offload_param/device", "nvme").dump(),
         {"ds.json", "offload_param", "nvme"});
  refuse(change(kZero3, "/fp16", {{"enabled", true}}).dump(), {"ds.json", "fp16"});
  refuse(change(kZero3, "/optimizer/type", "Lion").dump(), {"ds.json", "Lion"});
  refuse(change(kZero3, "/gradient_clipping", "much").dump(), {"ds.json", "gradient_clipping"});
  refuse("{\"steps_per_print\": 1, \"steps_per_print\": 2}", {"ds.json", "steps_per_print"});
  refuse("{\"bf16\": ", {"ds.json"});
  refuse("[]", {"ds.json"});
}

// Numbers that do not fit each other or the number of ranks are the caller's to settle.
TEST_F(CommandDsConfig, NumbersThatContradictEachOtherAreListed) {
  expect_error(amxtrain(with(change(kZero3, "/train_batch_size", 7).dump())), 2,
               {"train_batch_size", "7", "4"});
  expect_error(amxtrain(with(change(kZero3, "/optimizer/params/betas", {0.9, 2}).dump())), 2,
               {"ds.json", "optimizer.params.betas[1] 2"});
}

TEST_F(CommandDsConfig, WhatTheFileLeavesOutIsDeepSpeedsDefault) {
  succeed(with("{}"));
  EXPECT_EQ(metrics_of(path("m.jsonl")).at(0).at("tokens"), 16) << "an accumulation of 1";
  succeed(
      with("{\"bf16\": {\"enabled\": true}, \"train_batch_size\": 6, "
           "\"train_micro_batch_size_per_gpu\": 2}"));
  EXPECT_EQ(metrics_of(path("m.jsonl")).at(0).at("tokens"), 6 * 16);
}

TEST_F(CommandDsConfig, PlanReadsItToo) {
  write_text(path("ds.json"), kAllAuto);
  const Arguments plan = {"plan", "--model", model_, "--ds-config", path("ds.json")};
  EXPECT_THAT(succeed(plan).out, HasSubstr("accepted, without effect"));
  const Json json = Json::parse(succeed(plan + Arguments{"--json"}).out);
  EXPECT_THAT(json.at("notes").dump(), AllOf(HasSubstr("honoured"), HasSubstr("first step")));
  expect_error(amxtrain({"plan", "--model", model_, "--ds-config", path("none.json")}), 1,
               {"none.json"});
}

}  // namespace
}  // namespace amxt::test
