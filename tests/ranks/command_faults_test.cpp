// What bad input, full disks and small machines get: one line that names the thing, before anything is lost.
#include <fcntl.h>
#include <sys/mount.h>

#include <cerrno>
#include <list>
#include <sstream>

#include "ranks/command.h"

namespace amxt::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class CommandFaults : public CommandTest {
 protected:
  void SetUp() override {
    model_ = model();
    data_ = data();
  }
  void TearDown() override {
    for (const std::string& mount : mounts_) umount2(mount.c_str(), MNT_DETACH);
  }

  // Mounted at path(name) until the test ends; why not, else empty.
  std::string mount_small_disk(const std::string& name, int64_t bytes) {
    fs::create_directory(path(name));
    const std::string size = fmt::format("size={}", bytes);
    if (mount("tmpfs", path(name).c_str(), "tmpfs", 0, size.c_str()) != 0)
      return std::strerror(errno);
    mounts_.push_back(path(name));
    return {};
  }
  std::string mount_read_only(const std::string& name) {
    fs::create_directory(path(name));
    const char* target = path_c(name);
    if (mount(target, target, nullptr, MS_BIND, nullptr) != 0) return std::strerror(errno);
    mounts_.push_back(path(name));
    if (mount(nullptr, target, nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) != 0)
      return std::strerror(errno);
    return {};
  }
  const char* path_c(const std::string& name) {
    kept_.push_back(path(name));
    return kept_.back().c_str();
  }

  void expect_no_step(const Finished& finished) {
    EXPECT_THAT(finished.out, Not(HasSubstr("step 1/")));
    EXPECT_THAT(finished.err, Not(HasSubstr("loading")));
  }
  // A directory of a configuration without weights.
  std::string config_only(const std::string& name, const Json& config) {
    fs::create_directory(path(name));
    write_text(path(name + "/config.json"), config.dump());
    return path(name);
  }
  void break_byte(const std::string& file, int64_t from_end) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(-from_end, std::ios::end);
    const auto byte = static_cast<char>(stream.get() ^ 0x40);
    stream.seekp(-from_end, std::ios::end);
    stream.put(byte);
    ASSERT_TRUE(stream.good());
  }
  // A token file of one document per text.
  std::string documents(const std::string& name, const std::vector<std::string>& texts) {
    std::string lines;
    for (const std::string& text : texts) lines += Json{{"text", text}}.dump() + "\n";
    write_text(path(name + ".jsonl"), lines);
    EXPECT_EQ(amxtrain({"tokenize", "--out", path(name), path(name + ".jsonl")}).code, 0);
    return path(name);
  }

  std::vector<std::string> mounts_;
  std::list<std::string> kept_;
};

// --- The output -------------------------------------------------------------------------------

TEST_F(CommandFaults, AFullDiskIsFoundBeforeTheFirstStep) {
  const std::string refused = mount_small_disk("disk", 1 << 20);
  if (!refused.empty()) GTEST_SKIP() << "skipped: no mount: " << refused;
  const Finished full = amxtrain(train({"--steps", "2", "--output", path("disk/o")}));
  expect_error(full, 1, {"disk/o"});
  expect_no_step(full);
  EXPECT_FALSE(fs::exists(path("disk/o"))) << "made for nothing";
  fs::create_directory(path("disk/mine"));
  expect_error(amxtrain(train({"--steps", "2", "--output", path("disk/mine")})), 1, {"disk/mine"});
  EXPECT_TRUE(fs::exists(path("disk/mine"))) << "not ours to remove";
}

TEST_F(CommandFaults, ADiskThatFillsUpLaterLeavesTheLastCheckpointWhole) {
  const std::string refused = mount_small_disk("disk", 16 << 20);
  if (!refused.empty()) GTEST_SKIP() << "skipped: no mount: " << refused;
  ASSERT_EQ(launch(2, train({"--steps", "2", "--output", path("whole"), "--metrics",
                             path("whole.jsonl")}))
                .code,
            0);
  Process process(launched(2, train({"--steps", "100000", "--save-steps", "3", "--schedule",
                                     "constant", "--output", path("disk/o")})),
                  {{}, directory_.path(), {}});
  ASSERT_TRUE(process.wait_for("saved", 2));
  // Somebody else takes what is left.
  const int filler = open(path_c("disk/filler"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  const std::string block(1 << 16, 'x');
  while (write(filler, block.data(), block.size()) > 0) {
  }
  const Finished full = process.wait();
  EXPECT_EQ(full.code, 1) << full;
  EXPECT_THAT(full.err, HasSubstr("No space left"));
  const Finished verify = amxtrain({"verify", path("disk/o/latest")});
  EXPECT_EQ(verify.code, 0) << verify;
  // What was half written is gone, and with room again the job goes on.
  for (const std::string& name : names_in(path("disk/o"))) {
    EXPECT_TRUE(name == "latest" || name.starts_with("step-")) << name;
  }
  close(filler);
  fs::remove(path("disk/filler"));
  const int64_t step = std::stoll(fs::read_symlink(path("disk/o/latest")).string().substr(5));
  const Finished resumed =
      launch(2, train({"--steps", std::to_string(step + 1), "--schedule", "constant", "--output",
                       path("disk/o"), "--resume", "latest", "--reschedule"}));
  EXPECT_EQ(resumed.code, 0) << resumed;
}

TEST_F(CommandFaults, AReadOnlyOutputIsFoundBeforeTheFirstStep) {
  const std::string refused = mount_read_only("ro");
  if (!refused.empty()) GTEST_SKIP() << "skipped: no mount: " << refused;
  for (const std::string& output : {path("ro"), path("ro/o")}) {
    const Finished read_only = amxtrain(train({"--steps", "1", "--output", output}));
    expect_error(read_only, 1, {"ro", "Read-only"});
    expect_no_step(read_only);
  }
  // The metrics file too.
  const Finished metrics =
      amxtrain(train({"--steps", "1", "--no-save", "--metrics", path("ro/m.jsonl")}));
  expect_error(metrics, 1, {"m.jsonl", "Read-only"});
  expect_no_step(metrics);
}

TEST_F(CommandFaults, AnOutputIsMadeWithItsParents) {
  const Finished trained = amxtrain(train({"--steps", "1", "--output", path("a/b/c")}));
  EXPECT_EQ(trained.code, 0) << trained;
  EXPECT_TRUE(fs::exists(path("a/b/c/latest")));
}

TEST_F(CommandFaults, AnOutputThatCannotBeMadeSaysSo) {
  expect_error(amxtrain(train({"--steps", "1", "--output", "/proc/o"})), 1,
               {"'/proc/o': making the directory: "});
  expect_error(amxtrain({"init", "--preset", "tiny", "--out", "/proc/o"}), 1,
               {"'/proc/o", "making the directory: "});
  expect_error(amxtrain({"tokenize", "--out", "/proc/o.safetensors", data_ + ".txt"}), 1,
               {"'/proc/o", "making the file: "});
}

TEST_F(CommandFaults, AnOutputThatIsNoDirectoryIsFoundBeforeTheFirstStep) {
  write_text(path("file"), "mine");
  for (const std::string& output : {path("file"), path("file/o")}) {
    const Finished wrong = amxtrain(train({"--steps", "1", "--output", output}));
    expect_error(wrong, 1, {"file"});
    expect_no_step(wrong);
  }
  EXPECT_EQ(contents(path("file")), "mine");
}

// --- Data -------------------------------------------------------------------------------------

TEST_F(CommandFaults, ATokenBeyondTheVocabularyIsNamed) {
  std::string tokens;
  for (int i = 0; i < 100; ++i) tokens += {static_cast<char>(i), '\0'};
  tokens[2 * 37] = '\x2c';
  tokens[2 * 37 + 1] = '\x01';  // 300
  write_text(path("t.bin"), tokens);
  const Arguments base = {"train", "--model",  model_,    "--seq-len",
                          "16",    "--output", path("o"), "--data"};
  const Finished beyond = amxtrain(base + Arguments{path("t.bin")});
  // The first document ends with the separator, token 2.
  expect_error(beyond, 1, {"t.bin", "300", "256", "document 1", "position 34"});
  // In a file of documents: the third document, its second position.
  Json config = small_config();
  config["vocab_size"] = 100;
  const std::string narrow = model("narrow", config);
  const std::string file = documents("d.safetensors", {"###", "$$$$", "!z!"});
  const Finished document = amxtrain(
      {"train", "--model", narrow, "--seq-len", "16", "--output", path("o"), "--data", file});
  expect_error(document, 1, {"d.safetensors", "122", "document 2", "position 1"});
  EXPECT_FALSE(fs::exists(path("o")));
}

TEST_F(CommandFaults, DataWithoutADocumentIsAnError) {
  write_text(path("empty.bin"), "");
  write_text(path("empty.txt"), "");
  const auto refuse = [&](const std::string& file) {
    expect_error(amxtrain({"train", "--model", model_, "--seq-len", "16", "--output", path("o"),
                           "--data", path(file)}),
                 1, {file});
    EXPECT_FALSE(fs::exists(path("o")));
  };
  refuse("empty.bin");
  refuse("missing.safetensors");
  write_text(path("empty.safetensors"), "");
  refuse("empty.safetensors");
  expect_error(amxtrain({"tokenize", "--out", path("none.safetensors"), path("empty.txt")}), 1,
               {"empty.txt", "no token"});
  EXPECT_FALSE(fs::exists(path("none.safetensors")));
}

TEST_F(CommandFaults, MalformedDataNamesTheFile) {
  const auto refuse = [&](const std::string& file, const std::vector<std::string>& parts) {
    SCOPED_TRACE(file);
    std::vector<std::string> all = parts;
    all.push_back(file);
    expect_error(amxtrain({"train", "--model", model_, "--seq-len", "16", "--output", path("o"),
                           "--data", path(file)}),
                 1, all);
  };
  write_text(path("odd.bin"), "abc");
  refuse("odd.bin", {"3"});
  write_text(path("t.txt"), "text");
  refuse("t.txt", {});
  write_text(path("magic.npy"), "NUMPY");
  refuse("magic.npy", {});
  const auto npy = [](std::string header, const std::string& tokens) {
    header.append(128 - 10 - header.size() - 1, ' ');
    return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size() + 1) + '\0' +
           header + '\n' + tokens;
  };
  write_text(path("float.npy"), npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }",
                                    std::string(16, '\0')));
  refuse("float.npy", {"f4"});
  write_text(path("short.npy"), npy("{'descr': '<u2', 'fortran_order': False, 'shape': (40,), }",
                                    std::string(16, '\0')));
  refuse("short.npy", {});
  write_text(path("cube.npy"), npy("{'descr': '<u2', 'fortran_order': False, 'shape': (2, 2, 2), }",
                                   std::string(16, '\0')));
  refuse("cube.npy", {});
  write_text(path("negative.npy"), npy("{'descr': '<i2', 'fortran_order': False, 'shape': (8,), }",
                                       std::string(16, '\xff')));
  refuse("negative.npy", {"-1"});
  write_text(path("ok.bin"), std::string(64, '\0'));
  expect_error(amxtrain({"train", "--model", model_, "--output", path("o"), "--data",
                         path("ok.bin"), "--separator", "300"}),
               2, {"--separator 300", "vocabulary of 256"});
  std::string cut = contents(data_);
  cut.resize(cut.size() - 5);
  write_text(path("cut.safetensors"), cut);
  refuse("cut.safetensors", {});
}

// --- Models -----------------------------------------------------------------------------------

TEST_F(CommandFaults, BadWeightsAreNamedBeforeTraining) {
  const std::string whole = contents(path("model/model.safetensors"));
  const auto refuse = [&](const std::vector<std::string>& parts) {
    const Finished refused = amxtrain(train({"--steps", "1", "--output", path("o")}));
    expect_error(refused, 1, parts);
    EXPECT_FALSE(fs::exists(path("o/latest")));
  };
  write_text(path("model/model.safetensors"), whole.substr(0, whole.size() - 1));
  refuse({"model.safetensors"});
  write_text(path("model/model.safetensors"), "");
  refuse({"model.safetensors"});
  fs::remove(path("model/model.safetensors"));
  refuse({"model"});
  write_text(path("model/model.safetensors"), whole);
  Json config = small_config();
  config["num_hidden_layers"] = 3;
  write_text(path("model/config.json"), config.dump());
  refuse({"model.layers.2"});
  config = small_config();
  config["intermediate_size"] = 128;
  write_text(path("model/config.json"), config.dump());
  refuse({"model.safetensors", "mlp", "128"});
}

TEST_F(CommandFaults, AShardThatAnIndexNamesIsToldWithIndexAndKey) {
  EXPECT_EQ(amxtrain({"init", "--config", path("model.json"), "--out", path("shards"),
                      "--shard-size", "50KB"})
                .code,
            0);
  const Json index = Json::parse(contents(path("shards/model.safetensors.index.json")));
  const std::string shard = index.at("weight_map").begin().value();
  fs::remove(path("shards/" + shard));
  for (const char* command : {"train", "eval"}) {
    Arguments arguments = {command, "--model", path("shards"), "--data", data_};
    if (std::string(command) == "train") arguments = arguments + Arguments{"--output", path("o")};
    expect_error(amxtrain(arguments), 1,
                 {"model.safetensors.index.json", shard, index.at("weight_map").begin().key()});
  }
}

TEST_F(CommandFaults, ValuesThatAreNotFiniteStopOrAreSkippedAsAsked) {
  std::string weights = contents(path("model/model.safetensors"));
  weights[weights.size() - 2] = '\xc0';  // a NaN of bfloat16, little-endian
  weights[weights.size() - 1] = '\x7f';
  write_text(path("model/model.safetensors"), weights);
  const Finished stopped =
      launch(2, train({"--steps", "2", "--output", path("o"), "--metrics", path("m.jsonl")}));
  EXPECT_EQ(stopped.code, 1) << stopped;
  EXPECT_THAT(stopped.err, HasSubstr("step 1"));
  EXPECT_FALSE(fs::exists(path("o/latest")));
  const Finished skipped = launch(
      2, train({"--steps", "2", "--no-save", "--metrics", path("s.jsonl"), "--nonfinite", "skip"}));
  EXPECT_EQ(skipped.code, 0) << skipped;
  EXPECT_THAT(skipped.out, HasSubstr("skipped"));
  for (const Json& line : metrics_of(path("s.jsonl")))
    EXPECT_TRUE(line.at("grad_norm").is_null() || line.at("loss").is_null()) << line;
}

// --- Memory -----------------------------------------------------------------------------------

TEST_F(CommandFaults, ThePlanRefusesWhatDoesNotFitWithNumbers) {
  Json config = small_config();
  config["hidden_size"] = 4096;
  config["intermediate_size"] = 14336;
  config["num_hidden_layers"] = 32;
  config["num_attention_heads"] = 32;
  config["num_key_value_heads"] = 8;
  config["vocab_size"] = 128256;
  config["max_position_embeddings"] = 8192;
  const std::string big = config_only("big", config);
  const Finished plan =
      amxtrain({"plan", "--model", big, "--ranks", "2", "--memory-limit", "16GiB", "--json"});
  expect_error(plan, 1, {"16.0 GiB"});
  const Json json = Json::parse(plan.out);
  EXPECT_GT(json.at("peak_bytes_per_node").get<double>(), 80e9);
  EXPECT_EQ(json.at("limit_bytes"), int64_t{16} << 30);
  EXPECT_EQ(amxtrain({"plan", "--model", big, "--ranks", "2", "--memory-limit", "300GiB"}).code, 0);
}

TEST_F(CommandFaults, TrainingRefusesWhatDoesNotFitBeforeLoading) {
  for (const Finished& refused :
       {amxtrain(train({"--steps", "1", "--output", path("o"), "--memory-limit", "60MB"})),
        launch(2, train({"--steps", "1", "--output", path("o"), "--memory-limit", "60MB"}))}) {
    EXPECT_EQ(refused.code, 1) << refused;
    EXPECT_THAT(refused.err, HasSubstr("MiB"));
    expect_no_step(refused);
    EXPECT_FALSE(fs::exists(path("o/latest")));
  }
}

TEST_F(CommandFaults, TheLimitOfACgroupCounts) {
  const std::string group = fmt::format("/sys/fs/cgroup/memory/amxt-test-{}", getpid());
  std::error_code refused;
  if (!fs::create_directory(group, refused))
    GTEST_SKIP() << "skipped: no memory cgroup of version 1: " << refused.message();
  // Well above what the libraries' file pages take, which a cold machine charges to the group.
  const int64_t bytes = 512 << 20;
  write_text(group + "/memory.limit_in_bytes", std::to_string(bytes));
  const std::string limit = contents(group + "/memory.limit_in_bytes");
  std::string joined = "echo $$ > " + group + "/cgroup.procs && exec \"$@\"";
  const Finished trained = run_process(
      Arguments{"sh", "-c", joined, "sh", kCommand} +
          train({"--steps", "1", "--no-save", "--micro-batch", "8192", "--accumulate", "1"}),
      {{}, directory_.path(), {}});
  const Finished info = run_process({"sh", "-c", joined, "sh", kCommand, "info", "--json"},
                                    {{}, directory_.path(), {}});
  fs::remove(group, refused);
  ASSERT_EQ(limit, fmt::format("{}\n", bytes));
  expect_error(trained, 1, {"512.0 MiB", "cgroup"});
  expect_no_step(trained);
  EXPECT_EQ(Json::parse(info.out).at("cpu").at("cgroup_memory_bytes"), bytes);
}

// --- Checkpoints ------------------------------------------------------------------------------

class CommandCheckpoints : public CommandFaults {
 protected:
  void SetUp() override {
    CommandFaults::SetUp();
    const Finished trained = launch(2, train_to("o", {"--steps", "4", "--save-steps", "2"}));
    ASSERT_EQ(trained.code, 0) << trained;
  }
  Finished resume(const std::string& from, const Arguments& more = {}) {
    return amxtrain(
        train_to("o", Arguments{"--steps", "4", "--accumulate", "8", "--resume", from} + more));
  }
};

TEST_F(CommandCheckpoints, ABrokenByteIsNamedWithFileAndTensor) {
  const std::string file = path("o/step-000004/rank-00001-of-00002.safetensors");
  break_byte(file, fs::file_size(file) / 2);
  expect_error(amxtrain({"verify", path("o/latest")}), 1,
               {"rank-00001-of-00002.safetensors", "model."});
  expect_error(amxtrain({"verify", path("o/latest"), "--json"}), 1,
               {"rank-00001-of-00002.safetensors"});
  expect_error(resume(path("o/step-000004")), 1, {"rank-00001-of-00002.safetensors", "model."});
  EXPECT_EQ(amxtrain({"verify", path("o/step-000002")}).code, 0);
}

TEST_F(CommandCheckpoints, AFileCutShortIsNamed) {
  const std::string file = path("o/step-000004/rank-00000-of-00002.safetensors");
  fs::resize_file(file, fs::file_size(file) - 4096);
  expect_error(amxtrain({"verify", path("o/step-000004")}), 1, {"rank-00000-of-00002.safetensors"});
  expect_error(resume(path("o/step-000004")), 1, {"rank-00000-of-00002.safetensors"});
}

TEST_F(CommandCheckpoints, AMissingFileIsNamed) {
  fs::remove(path("o/step-000004/rank-00000-of-00002.safetensors"));
  expect_error(amxtrain({"verify", path("o/step-000004")}), 1, {"rank-00000-of-00002.safetensors"});
  expect_error(resume(path("o/step-000004")), 1, {"rank-00000-of-00002.safetensors"});
}

TEST_F(CommandCheckpoints, ABrokenManifestIsNamed) {
  const std::string manifest = contents(path("o/step-000004/manifest.json"));
  for (const std::string& text : {std::string(), std::string("{}"), std::string("[1, 2]"),
                                  manifest.substr(0, manifest.size() / 2)}) {
    write_text(path("o/step-000004/manifest.json"), text);
    expect_error(amxtrain({"verify", path("o/step-000004")}), 1, {"manifest.json"});
    expect_error(resume(path("o/step-000004")), 1, {"manifest.json"});
  }
}

TEST_F(CommandCheckpoints, LatestFallsBackToThePreviousWithTheReason) {
  const std::vector<std::string> whole = curve_of(path("o.jsonl"));
  const std::string file = path("o/step-000004/rank-00001-of-00002.safetensors");
  fs::resize_file(file, fs::file_size(file) - 1);
  const Finished resumed = resume("latest", {"--compute-dtype", "bfloat16"});
  EXPECT_EQ(resumed.code, 0) << resumed;
  EXPECT_THAT(resumed.err, HasSubstr("rank-00001-of-00002.safetensors"));
  EXPECT_THAT(resumed.out, HasSubstr("resuming from " + path("o/step-000002")));
  expect_steps(path("o.jsonl"), 1, 4);
  EXPECT_EQ(amxtrain({"verify", path("o/latest")}).code, 0);
}

TEST_F(CommandCheckpoints, LatestFallsBackFromABrokenByteToo) {
  const auto falls_back = [&](const std::string& name, int64_t from_end) {
    break_byte(path("o/step-000004/" + name), from_end);
    const Finished resumed = resume("latest");
    EXPECT_EQ(resumed.code, 0) << resumed;
    EXPECT_THAT(resumed.err, HasSubstr(name));
    EXPECT_THAT(resumed.err, HasSubstr("resumed from '" + path("o/step-000002")));
    EXPECT_EQ(amxtrain({"verify", path("o/latest")}).code, 0);
  };
  falls_back("rank-00001-of-00002.safetensors", 8);  // in the table of checksums
  falls_back("rank-00000-of-00001.safetensors", 100'000);
}

TEST_F(CommandCheckpoints, ACheckpointOfAnotherModelIsRefused) {
  Json config = small_config();
  config["intermediate_size"] = 128;
  const std::string other = model("other", config);
  const Finished refused =
      amxtrain({"train", "--model", other, "--data", data_, "--seq-len", "16", "--output",
                path("other-out"), "--steps", "4", "--resume", path("o/step-000004")});
  expect_error(refused, 1, {"step-000004"});
  expect_no_step(refused);
}

TEST_F(CommandCheckpoints, ACheckpointThatIsNotThereIsNamed) {
  expect_error(resume(path("o/step-000099")), 1, {"step-000099"});
  expect_error(resume(path("model")), 1, {"model"});
  EXPECT_THAT(names_in(path("o")), ElementsAre("final", "latest", "step-000002", "step-000004"));
}

TEST_F(CommandCheckpoints, AnotherOrderOfTheDataIsRefused) {
  expect_error(resume("latest", {"--seed", "43"}), 1, {"seed", "42", "43"});
}

TEST_F(CommandCheckpoints, WhatDeadSavesLeftIsRemoved) {
  fs::create_directory(path("o/.step-000006.tmp-1"));
  const std::set<std::string> before = names_in(path("o"));
  EXPECT_EQ(resume("latest").code, 0);
  EXPECT_EQ(contents(path("o.jsonl")).empty(), false);
  EXPECT_EQ(amxtrain({"verify", path("o")}).code, 0);
}

// --- Evidence of the kernel -------------------------------------------------------------------

class CommandEvidence : public CommandTest {
 protected:
  // Some 50 MB in bfloat16, twice that in float32.
  void SetUp() override {
    Json config = small_config();
    config["hidden_size"] = 512;
    config["intermediate_size"] = 1536;
    config["num_hidden_layers"] = 7;
    config["num_attention_heads"] = 8;
    config["vocab_size"] = 1024;
    model_ = model("big", config);
    data_ = data();
    bytes_ = static_cast<int64_t>(fs::file_size(path("big/model.safetensors")));
    ASSERT_GT(bytes_, 40'000'000);
  }
  static int64_t field(const std::string& file, const std::string& name) {
    std::istringstream lines(contents(file));
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1));
    }
    return 0;
  }
  struct Seen {
    int64_t pss = 0, read = 0, storage = 0;
  };
  // What the kernel says of all ranks when all have loaded and taken a step.
  Seen look(int ranks) {
    Process process(
        launched(ranks, {"train", "--model", model_, "--data", data_, "--seq-len", "16",
                         "--accumulate", "1", "--no-save", "--steps", "100000", "--threads", "1"}),
        {{}, directory_.path(), {}});
    EXPECT_TRUE(process.wait_for("step 2/"));
    std::istringstream children(
        contents(fmt::format("/proc/{0}/task/{0}/children", process.pid())));
    Seen seen;
    for (pid_t child = 0; children >> child;) {
      seen.pss += 1024 * field(fmt::format("/proc/{}/smaps_rollup", child), "Pss");
      seen.read += field(fmt::format("/proc/{}/io", child), "rchar");
      seen.storage += field(fmt::format("/proc/{}/io", child), "read_bytes");
    }
    process.signal(SIGINT);
    EXPECT_EQ(process.wait().code, 130);
    return seen;
  }
  int64_t bytes_ = 0;
};

TEST_F(CommandEvidence, AllRanksTogetherHoldOneCopyOfTheWeightsAndOneOfTheState) {
#ifdef AMXT_SANITIZED
  GTEST_SKIP() << "skipped: a sanitizer's own memory hides the library's";
#endif
  const Seen one = look(1), two = look(2);
  ASSERT_GT(one.pss, 7 * bytes_) << "weights, low bits, moments, gradients";
  // The second rank brings a process of its own, but no second copy of weights (2 bytes of 14) or of state.
  EXPECT_LT(two.pss - one.pss, bytes_ * 3 / 4 + (int64_t{48} << 20))
      << one.pss << " for one rank, " << two.pss << " for two";
}

TEST_F(CommandEvidence, AllRanksTogetherReadTheModelOnce) {
  // Cached pages are no reads of storage, direct reads are; where both are possible, both count as read.
  const Seen one = look(1), three = look(3);
  const int64_t once = bytes_ + bytes_ / 100;
  // Beyond the model: libraries, /proc, data; a small model's reading shows how much.
  const Seen before = [&] {
    const std::string big = model_;
    model_ = model("small");
    const Seen small = look(3);
    model_ = big;
    return small;
  }();
  EXPECT_LE(one.read, once + before.read);
  EXPECT_LE(three.read, once + before.read) << "bytes of read calls over three ranks";
  EXPECT_GE(three.read + three.storage, bytes_) << "it was read at all";
  EXPECT_LE(three.storage, once + before.storage + (int64_t{4} << 20))
      << "bytes of storage over three ranks";
}

}  // namespace
}  // namespace amxt::test
