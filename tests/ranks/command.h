// A user's directory: a small model, data, and the command run over them.
#pragma once

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/process.h"

namespace amxt::test {

using Json = nlohmann::json;
using Arguments = std::vector<std::string>;
namespace fs = std::filesystem;

inline const std::string kCommand = AMXT_TEST_COMMAND;

inline std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_text(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(text.data(), static_cast<std::streamsize>(text.size()));
}

inline bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

// Lines of `text` that begin with "amxtrain: error: ".
inline std::vector<std::string> error_lines(const std::string& text) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    if (line.starts_with("amxtrain: error: ")) lines.push_back(line);
    begin = end + 1;
  }
  return lines;
}

// Bits of a number, so that equality has no tolerance.
inline std::string hex(double value) { return fmt::format("{:a}", value); }

inline std::vector<Json> metrics_of(const fs::path& path) {
  std::vector<Json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

// "step:loss/grad_norm" of each line, as bits.
inline std::vector<std::string> curve_of(const fs::path& path) {
  std::vector<std::string> curve;
  for (const Json& line : metrics_of(path)) {
    curve.push_back(fmt::format("{}: loss {} norm {} lr {}", line.at("step").get<int64_t>(),
                                hex(line.at("loss")), hex(line.at("grad_norm")),
                                hex(line.at("lr"))));
  }
  return curve;
}

inline Arguments operator+(Arguments left, const Arguments& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

class CommandTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return directory_.path() + "/" + name; }

  static Json small_config() {
    return {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"vocab_size", 256},
            {"hidden_size", 64},
            {"intermediate_size", 96},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"max_position_embeddings", 256},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 10000.0},
            {"hidden_act", "silu"},
            {"tie_word_embeddings", false},
            {"torch_dtype", "bfloat16"}};
  }

  // A model directory of `config`; the small one by default.
  std::string model(const std::string& name = "model", std::optional<Json> config = {}) {
    write_text(path(name + ".json"), config.value_or(small_config()).dump());
    const Finished init =
        amxtrain({"init", "--config", path(name + ".json"), "--out", path(name), "--seed", "7"});
    EXPECT_EQ(init.code, 0) << init;
    return path(name);
  }

  // A token file of some kilobytes of text.
  std::string data(const std::string& name = "data.safetensors", int lines = 60) {
    std::string text;
    for (int i = 0; i < lines; ++i)
      text += fmt::format("In line {} of {} the square of the number is {}.\n", i, lines, i * i);
    write_text(path(name + ".txt"), text);
    const Finished tokenize = amxtrain({"tokenize", "--out", path(name), path(name + ".txt")});
    EXPECT_EQ(tokenize.code, 0) << tokenize;
    return path(name);
  }

  // `amxtrain ARGUMENTS`, alone.
  Finished amxtrain(const Arguments& arguments, const Variables& variables = {},
                    double patience = kPatienceSeconds) {
    return run_process(Arguments{kCommand} + arguments, {variables, directory_.path(), {}},
                       patience);
  }

  // `amxtrain launch --nproc-per-node RANKS -- amxtrain ARGUMENTS`.
  static Arguments launched(int ranks, const Arguments& arguments) {
    return Arguments{kCommand, "launch", "--nproc-per-node", std::to_string(ranks),
                     "--",     kCommand} +
           arguments;
  }
  Finished launch(int ranks, const Arguments& arguments, const Variables& variables = {}) {
    return run_process(launched(ranks, arguments), {variables, directory_.path(), {}});
  }

  // A short training of the small model, to which options are added.
  Arguments train(const Arguments& more = {}) {
    if (model_.empty()) model_ = model();
    if (data_.empty()) data_ = data();
    return Arguments{"train",     "--model", model_, "--data", data_,
                     "--seq-len", "16",      "--lr", "0.01"} +
           more;
  }
  Arguments train_to(const std::string& output, const Arguments& more = {}) {
    return train(Arguments{"--output", path(output), "--metrics", path(output + ".jsonl")} + more);
  }

  // What every bad input gets: the code, one line of error that holds all `parts`, and no crash.
  static void expect_error(const Finished& finished, int code,
                           const std::vector<std::string>& parts) {
    EXPECT_EQ(finished.code, code) << finished;
    const std::vector<std::string> lines = error_lines(finished.err);
    ASSERT_EQ(lines.size(), 1u) << finished;
    for (const std::string& part : parts) EXPECT_THAT(lines[0], ::testing::HasSubstr(part));
    EXPECT_FALSE(has(finished.err, "Sanitizer")) << finished;
  }
  static void expect_steps(const std::string& metrics, int first, int last) {
    const std::vector<Json> lines = metrics_of(metrics);
    ASSERT_EQ(lines.size(), static_cast<size_t>(last - first + 1)) << contents(metrics);
    for (size_t i = 0; i < lines.size(); ++i)
      EXPECT_EQ(lines[i].at("step"), first + static_cast<int>(i));
  }

  std::set<std::string> names_in(const std::string& directory) const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory))
      names.insert(entry.path().filename().string());
    return names;
  }

  // An address of the loopback network of this process alone, so that tests beside it may take any port.
  static std::string own_loopback() {
    static int count = 0;
    return fmt::format("127.{}.{}.{}", 1 + (getpid() >> 8) % 250, getpid() % 250,
                       1 + count++ % 250);
  }
  // What a launcher tells rank `rank`.
  static Variables rank_variables(int rank, int ranks, const std::string& address) {
    return {{"RANK", std::to_string(rank)},
            {"LOCAL_RANK", std::to_string(rank)},
            {"WORLD_SIZE", std::to_string(ranks)},
            {"LOCAL_WORLD_SIZE", std::to_string(ranks)},
            {"MASTER_ADDR", address},
            {"MASTER_PORT", "29511"}};
  }

  TemporaryDirectory directory_;
  std::string model_, data_;
};

}  // namespace amxt::test
