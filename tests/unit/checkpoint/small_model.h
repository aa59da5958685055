// A small model directory with random weights, and folders that go when the test ends.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/bf16.h"
#include "base/file.h"
#include "io/safetensors.h"
#include "model/config.h"
#include "model/tensors.h"

namespace amxt::checkpoint {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    char name[] = "/tmp/amxt-checkpoint-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~TemporaryFolder() {
    set_file_fault({});
    (void)remove_tree(path_);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

#define ASSERT_GOOD(expression)                                     \
  do {                                                              \
    const auto& good_result = (expression);                         \
    ASSERT_TRUE(good_result.ok()) << good_result.error().message(); \
  } while (false)
#define EXPECT_GOOD(expression)                                     \
  do {                                                              \
    const auto& good_result = (expression);                         \
    EXPECT_TRUE(good_result.ok()) << good_result.error().message(); \
  } while (false)

// hidden 96: with sides that are multiples of 32, so that bf16 weights are in the blocked order.
inline const char* small_config(bool tied, int hidden = 80) {
  static std::string text;
  const bool even = hidden == 96;
  text =
      std::string(
          R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 301, "hidden_size": )") +
      std::to_string(hidden) + R"(, "intermediate_size": )" + (even ? "160" : "176") +
      R"(, "num_hidden_layers": 2, "num_attention_heads": )" + (even ? "6" : "5") +
      R"(, "num_key_value_heads": )" + (even ? "2" : "1") +
      R"(, "head_dim": 16,)"
      R"( "max_position_embeddings": 128, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "attention_bias": false, "mlp_bias": false,)"
      R"( "dtype": "float16", "tie_word_embeddings": )" +
      (tied ? "true}" : "false}");
  return text.c_str();
}

// fp32 values that each tensor of the model has after loading.
using Values = std::map<std::string, std::vector<float>>;

// Writes config.json and model.safetensors with random weights in `dtype` (two shards and an index when asked).
inline Values write_small_model(const std::string& directory, DType dtype, bool tied, unsigned seed,
                                bool sharded = false, int hidden = 80) {
  EXPECT_GOOD(make_directories(directory));
  EXPECT_GOOD(
      write_text_file_atomically(join_path(directory, "config.json"), small_config(tied, hidden)));
  const auto config = model::read_config(directory);
  EXPECT_GOOD(config);
  std::mt19937 random(seed);
  Values values;
  std::vector<std::vector<io::TensorPlan>> plans(sharded ? 2 : 1);
  std::string map;
  const auto specs = model::tensor_specs(*config);
  const auto file_name = [&](size_t file) {
    return sharded ? "model-0000" + std::to_string(file + 1) + "-of-00002.safetensors"
                   : std::string("model.safetensors");
  };
  for (size_t i = 0; i < specs.size(); ++i) {
    const size_t file = sharded && i > specs.size() / 2 ? 1 : 0;
    io::TensorPlan plan{specs[i].name, dtype, {specs[i].columns}};
    if (!specs[i].vector) plan.shape.insert(plan.shape.begin(), specs[i].rows);
    plans[file].push_back(plan);
    map += (map.empty() ? "" : ", ") + ("\"" + specs[i].name + "\": \"" + file_name(file) + "\"");
  }
  if (sharded)
    EXPECT_GOOD(write_text_file_atomically(join_path(directory, "model.safetensors.index.json"),
                                           "{\"metadata\": {}, \"weight_map\": {" + map + "}}"));
  for (size_t file = 0; file < plans.size(); ++file) {
    auto writer = io::SafetensorsWriter::create(join_path(directory, file_name(file)), plans[file],
                                                {{"format", "pt"}});
    EXPECT_GOOD(writer);
    for (const io::TensorEntry& tensor : writer->tensors()) {
      std::vector<float>& expected = values[tensor.name];
      std::vector<uint16_t> halves;
      for (int64_t k = 0; k < tensor.elements(); ++k) {
        const uint32_t bits = random();
        if (dtype == DType::kBF16) {
          halves.push_back(to_bf16(std::bit_cast<float>((bits & 0x80FFFFFF) | 0x3C000000)).bits);
          expected.push_back(to_float(bf16{halves.back()}));
        } else if (dtype == DType::kF16) {
          halves.push_back(static_cast<uint16_t>((bits & 0x83FF) | 0x3800));
          const float value = 0.5f + static_cast<float>(bits & 0x3FF) / 2048.0f;
          expected.push_back((bits & 0x8000) != 0 ? -value : value);
        } else {
          expected.push_back(std::bit_cast<float>((bits & 0x80FFFFFF) | 0x3C000000));
        }
      }
      if (dtype == DType::kF32) {
        EXPECT_GOOD(writer->write(tensor, 0, std::as_bytes(std::span(expected))));
      } else {
        EXPECT_GOOD(writer->write(tensor, 0, std::as_bytes(std::span(halves))));
      }
    }
    EXPECT_GOOD(writer->finish());
  }
  return values;
}

}  // namespace amxt::checkpoint
