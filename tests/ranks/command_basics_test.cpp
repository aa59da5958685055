// Each command as a user meets it first: its help, its JSON, its exit codes, what it prints and writes.
#include <sys/stat.h>

#include <cmath>

#include "ranks/command.h"

namespace amxt::test {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class Command : public CommandTest {};

TEST_F(Command, TellsItsVersion) {
  const Finished version = amxtrain({"--version"});
  EXPECT_EQ(version.code, 0) << version;
  EXPECT_THAT(version.out, ContainsRegex("^amxtrain [0-9]+\\.[0-9]+\\.[0-9]+"));
}

TEST_F(Command, TellsWhatEachCommandTakes) {
  const std::vector<std::pair<std::string, Arguments>> commands = {
      {"info", {"--launch", "--json"}},
      {"init", {"--preset", "--config", "--out", "--seed", "--shard-size", "--json"}},
      {"inspect", {"path", "--scan", "--json"}},
      {"tokenize", {"--out", "paths", "--json"}},
      {"plan",
       {"--model", "--ranks", "--ds-config", "--seq-len", "--micro-batch", "--accumulate",
        "--json"}},
      {"train",
       {"--model",        "--data",         "--output",       "--ds-config",  "--steps",
        "--epochs",       "--seq-len",      "--micro-batch",  "--accumulate", "--lr",
        "--warmup-steps", "--schedule",     "--weight-decay", "--decay",      "--clip",
        "--mode",         "--save-steps",   "--log-steps",    "--eval-data",  "--eval-steps",
        "--resume",       "--metrics",      "--seed",         "--threads",    "--compute-dtype",
        "--no-save",      "--dry-run",      "--reschedule",   "--keep",       "--separator",
        "--bin-dtype",    "--loss-average", "--nonfinite"}},
      {"eval", {"--model", "--data", "--seq-len", "--mode", "--json"}},
      {"verify", {"checkpoint", "--json"}},
      {"launch", {"--nproc-per-node", "--nnodes"}},
      {"bench", {}}};
  const Finished all = amxtrain({"--help"});
  EXPECT_EQ(all.code, 0) << all;
  for (const auto& [command, options] : commands) {
    EXPECT_THAT(all.out, HasSubstr("\n  " + command + " "));
    const Finished help = amxtrain({command, "--help"});
    EXPECT_EQ(help.code, 0) << help;
    EXPECT_EQ(help.err, "");
    for (const std::string& option : options) EXPECT_THAT(help.out, HasSubstr(option)) << command;
  }
}

TEST_F(Command, TellsWhoItIsToItsLauncher) {
  const Finished alone = amxtrain({"info", "--launch"});
  EXPECT_EQ(alone.code, 0) << alone;
  EXPECT_THAT(alone.out, AllOf(HasSubstr("no launcher's variables"), HasSubstr("0 of 1")));
  const Variables open_mpi = {
      {"OMPI_COMM_WORLD_RANK", "1"},       {"OMPI_COMM_WORLD_SIZE", "2"},
      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
      {"PMIX_NAMESPACE", "1651638273"},    {"SLURM_NTASKS", "2"}};
  const Finished table = amxtrain({"info", "--launch"}, open_mpi);
  EXPECT_EQ(table.code, 0) << table;
  EXPECT_THAT(table.out,
              AllOf(HasSubstr("OMPI_COMM_WORLD_RANK='1'"),
                    HasSubstr("Open MPI (the innermost complete set)"), HasSubstr("1 of 2"),
                    HasSubstr("Slurm is there, but not taken: outside a step")));
  const Finished as_json = amxtrain({"info", "--launch", "--json"}, open_mpi);
  EXPECT_EQ(as_json.code, 0) << as_json;
  const Json json = Json::parse(as_json.out);
  const Json launch = json.at("launch");
  EXPECT_EQ(launch.at("rank"), 1);
  EXPECT_EQ(launch.at("local_size"), 2);
  EXPECT_EQ(launch.at("launcher"), "Open MPI");
  EXPECT_EQ(launch.at("address"), "127.0.0.1");
  EXPECT_GE(launch.at("port").get<int>(), 61000);
  EXPECT_EQ(json.at("found").at(0).at("variables").at("OMPI_COMM_WORLD_SIZE"), "2");
  EXPECT_EQ(json.at("found").at(1).at("launcher"), "Slurm");
}

TEST_F(Command, TellsWhatALauncherLeftOut) {
  const Finished half = amxtrain({"info", "--launch", "--json"}, {{"RANK", "1"}});
  expect_error(half, 1, {"WORLD_SIZE is unset", "RANK='1'"});
  const Json json = Json::parse(half.out);
  EXPECT_TRUE(json.at("launch").is_null());
  EXPECT_THAT(json.at("error").get<std::string>(), HasSubstr("WORLD_SIZE is unset"));
  EXPECT_EQ(json.at("found").at(0).at("variables").at("RANK"), "1");
}

TEST_F(Command, RefusesWhatItDoesNotKnowWithTwo) {
  for (const Arguments& arguments :
       {Arguments{}, Arguments{"trian"}, Arguments{"--frobnicate"},
        Arguments{"info", "--frobnicate"}, Arguments{"train"},
        Arguments{"init", "--out", path("m")},
        Arguments{"init", "--preset", "tiny", "--config", "c", "--out", path("m")},
        Arguments{"verify"}, Arguments{"launch", "--nproc-per-node", "2"},
        Arguments{"launch", "--", "true"},
        Arguments{"launch", "--nproc-per-node", "0", "--", "true"}}) {
    const Finished refused = amxtrain(arguments);
    expect_error(refused, 2, {"(see --help)"});
    EXPECT_EQ(refused.out, "");
  }
}

TEST_F(Command, NamesACommandThatItDoesNotKnow) {
  expect_error(amxtrain({"foo"}), 2,
               {"unknown command 'foo'", "info, init, inspect", "launch, bench"});
  expect_error(amxtrain({"foo", "--model", "m"}), 2, {"unknown command 'foo'"});
  expect_error(amxtrain({"bench", "foo"}), 2, {"unknown command 'bench foo'", "bench peak"});
}

TEST_F(Command, SaysWhatAValueMustBeAsItWasTyped) {
  const Arguments base = {"train", "--model", "m", "--data", "d", "--output", "o"};
  const auto refuse = [&](const Arguments& options, const std::string& line) {
    const Finished refused = amxtrain(base + options);
    expect_error(refused, 2, {"amxtrain: error: " + line});
    EXPECT_THAT(refused.err, Not(HasSubstr("9223372036854775807")));
  };
  refuse({"--lr", "nan"}, "--lr nan: must be 0 or more");
  refuse({"--lr", "fast"}, "--lr fast: must be a number");
  refuse({"--beta1", "2"}, "--beta1 2: must be 0 or more and below 1");
  refuse({"--beta2", "nan"}, "--beta2 nan: must be 0 or more and below 1");
  refuse({"--epsilon", "0"}, "--epsilon 0: must be above 0");
  refuse({"--clip", "inf"}, "--clip inf: must be 0 or more");
  refuse({"--weight-decay", "-1"}, "--weight-decay -1: must be 0 or more");
  refuse({"--micro-batch", "0"}, "--micro-batch 0: must be 1 or more");
  refuse({"--micro-batch", "4000000000000"},
         "--micro-batch 4000000000000: must be at most 2147483648");
  refuse({"--micro-batch", "99999999999999999999"},
         "--micro-batch 99999999999999999999: must be at most 2147483648");
  refuse({"--micro-batch", "1.5"}, "--micro-batch 1.5: must be a whole number");
  refuse({"--seed", "99999999999999999999"}, "--seed 99999999999999999999: is too large");
  refuse({"--epochs", "1e300"}, "--epochs 1e300: must be above 0 and at most 1000000");
  refuse({"--epochs", "0"}, "--epochs 0: must be above 0");
  refuse({"--steps", "0"}, "--steps 0: must be 1 or more");
  refuse({"--schedule", "zigzag"}, "--schedule zigzag: not one of linear, cosine, constant");
  refuse({"--memory-limit", "12Q"}, "--memory-limit 12Q: must be a size");
  refuse({"--memory-limit", "0"}, "--memory-limit 0: must be a size of 1 byte or more");
  refuse({"--separator", "-2"}, "--separator -2: must be -1 or more");
}

TEST_F(Command, SaysWhichOptionsDoNotGoTogether) {
  const auto refuse = [&](const Arguments& options, const std::vector<std::string>& parts) {
    expect_error(amxtrain(train(Arguments{"--no-save"} + options)), 2, parts);
  };
  refuse({"--gradient-dtype", "bfloat16", "--compute-dtype", "float32"},
         {"--gradient-dtype bfloat16", "--compute-dtype float32"});
  refuse({"--gradient-dtype", "bfloat16", "--wave", "2"},
         {"--gradient-dtype bfloat16", "wave 2 of 4"});
  refuse({"--micro-batch", "2147483648", "--accumulate", "2147483648"},
         {"--seq-len 16 x --micro-batch 2147483648 x accumulate 2147483648 x 1 rank: more"});
  refuse({"--resume", "latest"}, {"output"});
}

TEST_F(Command, NamesAPresetThatThereIsNot) {
  expect_error(amxtrain({"init", "--preset", "nope", "--out", path("m")}), 2,
               {"--preset nope", "tiny"});
  expect_error(amxtrain({"bench", "step", "--preset", "nope"}), 2, {"--preset nope", "tiny"});
  expect_error(amxtrain({"tokenize", "--out", path("t.bin"), "a.txt"}), 2,
               {"--out " + path("t.bin"), ".safetensors"});
}

TEST_F(Command, RefusesValuesThatCannotBeWithTwo) {
  const Arguments base = {"train", "--model", "m", "--data", "d", "--output", "o"};
  const std::vector<Arguments> options = {
      {"--steps", "0"},          {"--steps", "x"},        {"--steps", "2", "--epochs", "1"},
      {"--seq-len", "-1"},       {"--lr", "-1"},          {"--schedule", "exponential"},
      {"--mode", "stack"},       {"--keep", "0"},         {"--decay", "none"},
      {"--micro-batch", "1.5"},  {"--clip", "-0.5"},      {"--compute-dtype", "float16"},
      {"--eval-steps", "2"},     {"--bin-dtype", "int8"}, {"--threads", "0"},
      {"--nonfinite", "ignore"}, {"--loss-average", "x"}, {"--log", "loud"}};
  for (const Arguments& option : options) {
    const Finished refused = amxtrain(base + option);
    expect_error(refused, 2, {option[0]});
  }
  expect_error(amxtrain({"train", "--model", "m", "--data", "d"}), 2, {"--output"});
}

TEST_F(Command, TellsWhatTheMachineCanDo) {
  const Finished info = amxtrain({"info"});
  EXPECT_EQ(info.code, 0) << info;
  for (const char* row : {"instruction set", "threads", "memory", "processor"})
    EXPECT_THAT(info.out, HasSubstr(row));
  const Finished as_json = amxtrain({"info", "--json"});
  EXPECT_EQ(as_json.code, 0) << as_json;
  const Json json = Json::parse(as_json.out);
  EXPECT_TRUE(json.at("cpu").at("isa").is_string());
  EXPECT_TRUE(json.at("cpu").at("memory_bytes").is_number_integer());
  EXPECT_TRUE(json.at("build").at("libraries").is_object());
}

TEST_F(Command, WritesAModelThatItCanInspect) {
  const Finished init = amxtrain({"init", "--preset", "tiny", "--out", path("m")});
  EXPECT_EQ(init.code, 0) << init;
  EXPECT_EQ(Json::parse(contents(path("m/config.json"))).at("vocab_size"), 256);
  const Finished inspect = amxtrain({"inspect", path("m")});
  EXPECT_EQ(inspect.code, 0) << inspect;
  EXPECT_THAT(inspect.out, HasSubstr("model.embed_tokens.weight"));
  const Finished as_json = amxtrain({"inspect", path("m"), "--scan", "--json"});
  EXPECT_EQ(as_json.code, 0) << as_json;
  const Json json = Json::parse(as_json.out);
  EXPECT_TRUE(json.at("problems").empty());
  EXPECT_EQ(json.at("bytes").get<int64_t>(), 2 * json.at("parameters").get<int64_t>());
  for (const Json& tensor : json.at("tensors")) {
    EXPECT_EQ(tensor.at("dtype"), "BF16");
    EXPECT_EQ(tensor.at("nan"), 0);
  }
}

TEST_F(Command, MakesTheSameModelOfTheSameSeedWhateverTheShards) {
  const std::string config = path("c.json");
  write_text(config, small_config().dump());
  const auto init = [&](const std::string& out, const Arguments& more) {
    const Finished done =
        amxtrain(Arguments{"init", "--config", config, "--out", path(out), "--json"} + more);
    EXPECT_EQ(done.code, 0) << done;
    EXPECT_GT(Json::parse(done.out).at("parameters").get<int64_t>(), 0);
  };
  init("a", {"--seed", "3"});
  init("b", {"--seed", "3"});
  init("c", {"--seed", "4"});
  init("shards", {"--seed", "3", "--shard-size", "50KB"});
  EXPECT_EQ(contents(path("a/model.safetensors")), contents(path("b/model.safetensors")));
  EXPECT_NE(contents(path("a/model.safetensors")), contents(path("c/model.safetensors")));
  const Json index = Json::parse(contents(path("shards/model.safetensors.index.json")));
  std::set<std::string> files;
  for (const auto& [tensor, file] : index.at("weight_map").items())
    files.insert(file.get<std::string>());
  EXPECT_GT(files.size(), 2u);
  for (const std::string& file : files)
    EXPECT_LE(fs::file_size(path("shards/" + file)), 60'000u) << file;
  const auto loss = [&](const std::string& name) {
    const Finished eval =
        amxtrain({"eval", "--model", path(name), "--data", data_, "--seq-len", "16", "--json"});
    EXPECT_EQ(eval.code, 0) << eval;
    return hex(Json::parse(eval.out).at("loss"));
  };
  data_ = data();
  EXPECT_EQ(loss("a"), loss("shards"));
  EXPECT_NE(loss("a"), loss("c"));
}

TEST_F(Command, LeavesNothingBehindWhenAModelCannotBeWritten) {
  expect_error(amxtrain({"init", "--preset", "gigantic", "--out", path("m")}), 2, {"gigantic"});
  EXPECT_FALSE(fs::exists(path("m")));
  expect_error(amxtrain({"init", "--config", path("missing.json"), "--out", path("m")}), 1,
               {"missing.json"});
  Json config = small_config();
  config["hidden_act"] = "gelu";
  write_text(path("c.json"), config.dump());
  expect_error(amxtrain({"init", "--config", path("c.json"), "--out", path("m")}), 1,
               {"hidden_act", "gelu"});
  EXPECT_FALSE(fs::exists(path("m")));
  ASSERT_EQ(mkdir(path("full").c_str(), 0755), 0);
  write_text(path("full/model.safetensors"), "precious");
  expect_error(amxtrain({"init", "--preset", "tiny", "--out", path("full")}), 1, {"full"});
  EXPECT_EQ(contents(path("full/model.safetensors")), "precious");
}

TEST_F(Command, InspectNeverWaitsForAFifo) {
  ASSERT_EQ(mkfifo(path("pipe.safetensors").c_str(), 0600), 0);
  expect_error(amxtrain({"inspect", path("pipe.safetensors")}, {}, 20), 1, {"pipe.safetensors"});
  model();
  fs::remove(path("model/model.safetensors"));
  ASSERT_EQ(mkfifo(path("model/model.safetensors").c_str(), 0600), 0);
  expect_error(amxtrain({"inspect", path("model")}, {}, 20), 1, {"model.safetensors"});
}

TEST_F(Command, InspectTellsProblems) {
  expect_error(amxtrain({"inspect", path("nothing")}), 1, {"nothing"});
  model();
  const std::string file = path("model/model.safetensors");
  fs::resize_file(file, fs::file_size(file) - 1);
  const Finished cut = amxtrain({"inspect", file, "--json"});
  expect_error(cut, 1, {"model.safetensors"});
  EXPECT_EQ(Json::parse(cut.out).at("complete"), false);
}

TEST_F(Command, InspectTellsNothingThatIsNotTrue) {
  model();
  const std::string file = path("model/model.safetensors");
  fs::resize_file(file, fs::file_size(file) - 1);
  for (const std::string& broken : {file, path("model")}) {
    const Finished cut = amxtrain({"inspect", broken});
    expect_error(cut, 1, {"model.safetensors", "1 byte beyond"});
    EXPECT_EQ(cut.out, "") << "not that there are 0 tensors";
  }
  ASSERT_EQ(amxtrain({"init", "--config", path("model.json"), "--out", path("shards"),
                      "--shard-size", "50KB"})
                .code,
            0);
  for (const auto& entry : fs::directory_iterator(path("shards")))
    if (has(entry.path().string(), "model-00002")) fs::remove(entry.path());
  const Finished partly = amxtrain({"inspect", path("shards")});
  expect_error(partly, 1, {"model-00002"});
  EXPECT_THAT(partly.out, HasSubstr("of what can be read: "));
  fs::remove(file);
  const Finished alone = amxtrain({"inspect", path("model")});
  EXPECT_EQ(alone.code, 0) << alone;
  EXPECT_THAT(alone.out, AllOf(HasSubstr("no weights"), Not(HasSubstr("0 tensors"))));
}

TEST_F(Command, InspectScansForValuesThatAreNotFinite) {
  model();
  const std::string file = path("model/model.safetensors");
  std::string bytes = contents(file);
  bytes[bytes.size() - 2] = '\xc0';  // a NaN of bfloat16, little-endian
  bytes[bytes.size() - 1] = '\x7f';
  write_text(file, bytes);
  EXPECT_EQ(amxtrain({"inspect", path("model")}).code, 0);
  const Finished scan = amxtrain({"inspect", path("model"), "--scan"});
  EXPECT_EQ(scan.code, 1) << scan;
  EXPECT_THAT(scan.err, HasSubstr("model.safetensors"));
}

TEST_F(Command, TokenizesTextAndPairs) {
  write_text(path("a.txt"), "hello");
  write_text(path("b.jsonl"),
             "{\"text\": \"abc\"}\n{\"prompt\": \"12\", \"completion\": \"345\"}\n");
  const Finished done = amxtrain(
      {"tokenize", "--out", path("t.safetensors"), path("a.txt"), path("b.jsonl"), "--json"});
  EXPECT_EQ(done.code, 0) << done;
  const Json json = Json::parse(done.out);
  EXPECT_EQ(json.at("documents"), 3);
  EXPECT_EQ(json.at("tokens"), 13);
  EXPECT_EQ(json.at("masked_tokens"), 2);
  const Finished inspect = amxtrain({"inspect", path("t.safetensors"), "--json"});
  const Json inspected = Json::parse(inspect.out);
  std::set<std::string> tensors;
  for (const Json& tensor : inspected.at("tensors"))
    tensors.insert(tensor.at("name").get<std::string>());
  EXPECT_THAT(tensors, ElementsAre("document_offsets", "loss_weight", "tokens"));
}

TEST_F(Command, CountsOneOfAThingWithoutAnS) {
  write_text(path("a.txt"), "x");
  const Finished one = amxtrain({"tokenize", "--out", path("t.safetensors"), path("a.txt")});
  EXPECT_THAT(one.out, HasSubstr(": 1 document, 1 token, 0 of them masked"));
  model_ = model();
  EXPECT_THAT(amxtrain({"inspect", model_}).out, HasSubstr(" tensors in 1 file, "));
  EXPECT_THAT(amxtrain({"plan", "--model", model_}).out, HasSubstr(" on 1 rank, 1 wave a step"));
  const Finished trained = run_process(Arguments{kCommand} + train_to("o", {"--steps", "1"}),
                                       {{}, directory_.path(), {0}});
  EXPECT_THAT(trained.err, HasSubstr("1 thread (1 CPU in the affinity mask, 1 local rank)"));
  EXPECT_THAT(amxtrain({"verify", path("o")}).out, HasSubstr(" 1 file, "));
}

TEST_F(Command, GivesNoRateOfAnInstant) {
  const Finished init = amxtrain({"init", "--preset", "tiny", "--out", path("m")});
  EXPECT_THAT(init.err, HasSubstr("model.safetensors: 1.5"));
  EXPECT_THAT(init.err, Not(HasSubstr("TiB/s")));
  write_text(path("a.txt"), "x");
  const Finished one = amxtrain({"tokenize", "--out", path("t.safetensors"), path("a.txt")});
  EXPECT_THAT(one.err, ContainsRegex(": 1 B( at [0-9]+ B/s)?\n"));
}

TEST_F(Command, AKeyThatNobodyKnowsIsOneLine) {
  model();
  Json config = Json::parse(contents(path("model/config.json")));
  config["flavour"] = nullptr;
  write_text(path("model/config.json"), config.dump());
  const Finished plan = amxtrain({"plan", "--model", path("model")});
  EXPECT_EQ(plan.code, 0) << plan;
  const size_t first = plan.err.find("'flavour'");
  ASSERT_NE(first, std::string::npos) << plan;
  EXPECT_EQ(plan.err.find("'flavour'", first + 1), std::string::npos) << plan;
}

TEST_F(Command, TokenizeRefusesWhatHasNoToken) {
  write_text(path("empty.txt"), "");
  write_text(path("empty.jsonl"), "\n\n");
  for (const char* name : {"empty.txt", "empty.jsonl"}) {
    expect_error(amxtrain({"tokenize", "--out", path("t.safetensors"), path(name)}), 1,
                 {name, "no token"});
    EXPECT_FALSE(fs::exists(path("t.safetensors")));
  }
}

TEST_F(Command, SaysWhichKeyAsksForATensorThatIsMissing) {
  model();
  Json config = small_config();
  config["attention_bias"] = true;
  write_text(path("model/config.json"), config.dump());
  expect_error(amxtrain({"eval", "--model", path("model"), "--data", data()}), 1,
               {"self_attn.q_proj.bias", "is missing", "'attention_bias' is true"});
}

TEST_F(Command, SaysThatAScheduleBeginsWithoutARate) {
  write_text(path("ds.json"), R"({"bf16": {"enabled": true},
      "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}})");
  const Finished trained =
      amxtrain(train({"--ds-config", path("ds.json"), "--steps", "1", "--no-save"}));
  EXPECT_EQ(trained.code, 0) << trained;
  EXPECT_THAT(trained.err, HasSubstr("the first step has a learning rate of 0"));
}

TEST_F(Command, TokenizeNamesTheLineThatIsWrong) {
  write_text(path("b.jsonl"), "{\"text\": \"abc\"}\n{\"txt\": \"abc\"}\n");
  expect_error(amxtrain({"tokenize", "--out", path("t.safetensors"), path("b.jsonl")}), 1,
               {"b.jsonl", "2"});
  EXPECT_FALSE(fs::exists(path("t.safetensors")));
  write_text(path("c.jsonl"), "{\"text\": \"abc\"\n");
  expect_error(amxtrain({"tokenize", "--out", path("t.safetensors"), path("c.jsonl")}), 1,
               {"c.jsonl"});
  expect_error(amxtrain({"tokenize", "--out", path("t.safetensors"), path("missing.txt")}), 1,
               {"missing.txt"});
  write_text(path("t.safetensors"), "mine");
  write_text(path("a.txt"), "hello");
  expect_error(amxtrain({"tokenize", "--out", path("t.safetensors"), path("a.txt")}), 1,
               {"t.safetensors"});
  EXPECT_EQ(contents(path("t.safetensors")), "mine");
}

TEST_F(Command, EvaluatesAUniformModelAtTheLogarithmOfItsVocabulary) {
  Json config = small_config();
  config["initializer_range"] = 1e-6;
  model("flat", config);
  const Finished eval =
      amxtrain({"eval", "--model", path("flat"), "--data", data(), "--seq-len", "16", "--json"});
  ASSERT_EQ(eval.code, 0) << eval;
  const Json json = Json::parse(eval.out);
  EXPECT_NEAR(json.at("loss").get<double>(), std::log(256.0), 1e-2);
  EXPECT_NEAR(json.at("perplexity").get<double>(), 256, 3);
  EXPECT_GT(json.at("tokens").get<int64_t>(), 1000);
  EXPECT_EQ(amxtrain({"eval", "--model", path("flat"), "--data", path("data.safetensors"),
                      "--seq-len", "16", "--mode", "pad"})
                .code,
            0);
}

TEST_F(Command, EvaluatesTheSameOnSeveralRanks) {
  model();
  data();
  const Arguments eval = {
      "eval",      "--model", path("model"),     "--data",  path("data.safetensors"),
      "--seq-len", "16",      "--compute-dtype", "float32", "--json"};
  const Finished alone = amxtrain(eval), three = launch(3, eval);
  ASSERT_EQ(alone.code, 0) << alone;
  ASSERT_EQ(three.code, 0) << three;
  const Json one = Json::parse(alone.out), other = Json::parse(three.out);
  EXPECT_EQ(one.at("tokens"), other.at("tokens"));
  EXPECT_NEAR(one.at("loss").get<double>(), other.at("loss").get<double>(),
              1e-6 * one.at("loss").get<double>());
}

TEST_F(Command, PlansFromAConfigurationAlone) {
  ASSERT_EQ(mkdir(path("m").c_str(), 0755), 0);
  write_text(path("m/config.json"), small_config().dump());
  const Finished table =
      amxtrain({"plan", "--model", path("m"), "--ranks", "2", "--seq-len", "64"});
  EXPECT_EQ(table.code, 0) << table;
  EXPECT_THAT(table.out, HasSubstr("weights"));
  const Finished as_json =
      amxtrain({"plan", "--model", path("m"), "--ranks", "2", "--seq-len", "64", "--json"});
  EXPECT_EQ(as_json.code, 0) << as_json;
  const Json json = Json::parse(as_json.out);
  EXPECT_GT(json.at("peak_bytes_per_rank").get<int64_t>(), 0);
  EXPECT_NEAR(json.at("peak_bytes_per_node").get<double>(),
              2 * json.at("peak_bytes_per_rank").get<double>(), 16);
  const Finished nodes =
      amxtrain({"plan", "--model", path("m"), "--ranks", "2", "--nodes", "3", "--seq-len", "64"});
  EXPECT_THAT(nodes.out, AllOf(HasSubstr(" on 3 nodes of 2 ranks"), HasSubstr("a node")));
  const Json several = Json::parse(amxtrain({"plan", "--model", path("m"), "--ranks", "2",
                                             "--nodes", "3", "--seq-len", "64", "--json"})
                                       .out);
  EXPECT_EQ(several.at("ranks"), 6);
  EXPECT_EQ(several.at("nodes"), 3);
  expect_error(amxtrain({"plan", "--model", path("m"), "--nodes", "0"}), 2, {"--nodes"});
  // Weights are missing: training is another matter.
  expect_error(amxtrain({"train", "--model", path("m"), "--data", data(), "--output", path("o")}),
               1, {"m"});
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(Command, PlanSaysAConfigurationErrorBeforeMissingWeights) {
  ASSERT_EQ(mkdir(path("m").c_str(), 0755), 0);
  Json config = small_config();
  config["sliding_window_of_mine"] = 3;
  write_text(path("m/config.json"), config.dump());
  for (const Arguments& command :
       {Arguments{"plan", "--model", path("m")},
        Arguments{"train", "--model", path("m"), "--data", "d", "--output", path("o")}}) {
    expect_error(amxtrain(command), 1, {"config.json", "sliding_window_of_mine"});
  }
}

TEST_F(Command, WarnsOfAnUnknownKeyThatSaysNothing) {
  Json config = small_config();
  config["future_feature"] = false;
  model("m", config);
  const Finished inspect = amxtrain({"plan", "--model", path("m")});
  EXPECT_EQ(inspect.code, 0) << inspect;
  EXPECT_THAT(inspect.err, HasSubstr("future_feature"));
}

TEST_F(Command, EscapesAndCutsNames) {
  std::string name = "a\nb\x1b[31m";
  expect_error(amxtrain({"inspect", path(name)}), 1, {"a\\"});
  EXPECT_FALSE(has(amxtrain({"inspect", path(name)}).err, "\x1b"));
  const Finished longest = amxtrain({"inspect", path(std::string(250, 'x'))});
  expect_error(longest, 1, {"xxx"});
  EXPECT_FALSE(has(longest.err, std::string(130, 'x'))) << longest;
}

TEST_F(Command, VerifyTellsWhatIsNoCheckpoint) {
  expect_error(amxtrain({"verify", path("nothing")}), 1, {"nothing"});
  ASSERT_EQ(mkdir(path("empty").c_str(), 0755), 0);
  expect_error(amxtrain({"verify", path("empty")}), 1, {"empty"});
}

TEST_F(Command, VerifiesACheckpoint) {
  const Finished trained = amxtrain(train_to("o", {"--steps", "2"}));
  ASSERT_EQ(trained.code, 0) << trained;
  EXPECT_EQ(amxtrain({"verify", path("o/latest")}).code, 0);
  EXPECT_EQ(amxtrain({"verify", path("o")}).code, 0);
  const Finished as_json = amxtrain({"verify", path("o/step-000002"), "--json"});
  EXPECT_EQ(as_json.code, 0) << as_json;
  const Json json = Json::parse(as_json.out);
  EXPECT_EQ(json.at("step"), 2);
  EXPECT_EQ(json.at("valid"), true);
}

TEST_F(Command, MeasuresSteps) {
  const Finished bench = amxtrain({"bench", "step", "--preset", "tiny", "--seq-len", "16",
                                   "--steps", "2", "--warmup", "1", "--json"});
  ASSERT_EQ(bench.code, 0) << bench;
  EXPECT_GT(Json::parse(bench.out).at("tokens_per_second").get<double>(), 0) << bench;
  EXPECT_EQ(amxtrain({"bench", "peak", "--help"}).code, 0);
}

}  // namespace
}  // namespace amxt::test
