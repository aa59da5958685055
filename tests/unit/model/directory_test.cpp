#include "model/directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "base/json.h"
#include "support/model_files.h"

namespace amxt::model {
namespace {

using test::TemporaryDirectory;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr const char* kNames[] = {
    "llama2", "llama3_1",   "llama3_2",   "llama_bias", "llama_head_dim", "llama_linear", "mistral",
    "odd",    "even_llama", "even_qwen3", "qwen2",      "qwen3",          "smollm2"};
constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

class GoldenDirectory : public testing::TestWithParam<const char*> {};

TEST_P(GoldenDirectory, OpensWithEveryTensorFound) {
  const auto model = ModelDirectory::open(test::golden_directory(GetParam()));
  ASSERT_TRUE(model.ok()) << model.error().message();
  EXPECT_THAT(model->warnings(), testing::IsEmpty());
  for (size_t i = 0; i < model->specs().size(); ++i) {
    ASSERT_NE(model->location(i).entry, nullptr) << model->specs()[i].name;
    EXPECT_EQ(model->location(i).entry->name, model->specs()[i].name);
    EXPECT_EQ(model->location(i).entry->elements(), model->specs()[i].elements());
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenDirectory, testing::ValuesIn(kNames),
                         [](const auto& golden) { return std::string(golden.param); });

// A copy of a golden directory (mistral: two shards and an index) to break.
class BrokenModel : public testing::Test {
 protected:
  void copy(const char* golden) {
    test::copy_directory(test::golden_directory(golden), directory_ / "m");
  }
  std::string path(std::string_view name = "") const {
    return directory_ / "m" + (name.empty() ? "" : "/" + std::string(name));
  }
  std::string error() {
    const auto model = ModelDirectory::open(path());
    return model.ok() ? "" : model.error().message();
  }

  template <typename Change>
  void change_json(const char* name, Change change) {
    Json json = Json::parse(test::read_bytes(path(name)));
    change(json);
    test::write_bytes(path(name), json.dump(2));
  }
  void set_config(const char* key, Json value) {
    change_json("config.json", [&](Json& json) { json[key] = std::move(value); });
  }

  // Writes a shard anew: `change` gets the tensors with their bytes.
  struct Stored {
    io::TensorPlan plan;
    std::string data;
  };
  template <typename Change>
  void change_shard(const char* name, Change change) {
    std::vector<Stored> tensors;
    {
      const auto file = io::SafetensorsFile::open(path(name));
      ASSERT_TRUE(file.ok()) << file.error().message();
      for (const io::TensorEntry& entry : file->tensors()) {
        Stored stored{{entry.name, entry.dtype, entry.shape},
                      std::string(static_cast<size_t>(entry.bytes()), '\0')};
        ASSERT_TRUE(file->read(entry, 0, std::as_writable_bytes(std::span(stored.data))).ok());
        tensors.push_back(std::move(stored));
      }
    }
    change(tensors);
    std::filesystem::remove(path(name));
    write_file(name, tensors);
  }
  void write_file(const char* name, const std::vector<Stored>& tensors) {
    std::vector<io::TensorPlan> plans;
    for (const Stored& stored : tensors) plans.push_back(stored.plan);
    auto writer = io::SafetensorsWriter::create(path(name), plans);
    ASSERT_TRUE(writer.ok()) << writer.error().message();
    for (const Stored& stored : tensors) {
      ASSERT_TRUE(
          writer->write(*writer->find(stored.plan.name), 0, std::as_bytes(std::span(stored.data)))
              .ok());
    }
    ASSERT_TRUE(writer->finish().ok());
  }
  static Stored& named(std::vector<Stored>& tensors, std::string_view name) {
    return *std::find_if(tensors.begin(), tensors.end(),
                         [&](const Stored& stored) { return stored.plan.name == name; });
  }

  TemporaryDirectory directory_;
};

TEST_F(BrokenModel, UnbrokenItOpens) {
  copy("mistral");
  EXPECT_EQ(error(), "");
}

TEST_F(BrokenModel, MissingDirectoryIsNamed) {
  EXPECT_THAT(error(), AllOf(HasSubstr("/m/config.json'"), HasSubstr("No such file")));
}

TEST_F(BrokenModel, ConfigErrorComesBeforeMissingWeights) {
  copy("odd");
  std::filesystem::remove(path("model.safetensors"));
  set_config("hidden_act", "gelu");
  EXPECT_THAT(error(), AllOf(HasSubstr("config.json'"), HasSubstr("'hidden_act'")));
}

TEST_F(BrokenModel, NoWeights) {
  copy("odd");
  std::filesystem::remove(path("model.safetensors"));
  EXPECT_THAT(error(),
              AllOf(StartsWith("'" + path() + "': "), HasSubstr("neither model.safetensors nor")));
  EXPECT_TRUE(ModelDirectory::open_config(path()).ok()) << "a plan needs no weights";
}

TEST_F(BrokenModel, PickledWeightsAreNotReadAndItSaysSo) {
  copy("odd");
  std::filesystem::rename(path("model.safetensors"), path("pytorch_model.bin"));
  EXPECT_THAT(error(), HasSubstr("save the model as safetensors"));
}

class BrokenShards : public BrokenModel {
 protected:
  void SetUp() override { copy("mistral"); }
  // The index first, then the key.
  std::string key(std::string_view tensor) const {
    return "'" + path(kIndex) + "': weight_map key '" + std::string(tensor) + "': ";
  }
};

TEST_F(BrokenShards, Case37_LinkOutOfTheDirectory) {
  std::filesystem::rename(path(kSecond), directory_ / "blob");
  std::filesystem::create_symlink("../blob", path(kSecond));
  EXPECT_THAT(error(), AllOf(StartsWith(key("lm_head.weight")), HasSubstr(kSecond),
                             HasSubstr("symbolic link that leaves")));
}

TEST_F(BrokenShards, Case36_ShardIsFifo) {
  std::filesystem::remove(path(kSecond));
  ASSERT_EQ(::mkfifo(path(kSecond).c_str(), 0600), 0);
  EXPECT_THAT(error(), AllOf(StartsWith(key("lm_head.weight")), HasSubstr("is a FIFO")));
}

TEST_F(BrokenShards, Case38_ShardIsMissing) {
  std::filesystem::remove(path(kSecond));
  EXPECT_THAT(error(), AllOf(StartsWith(key("lm_head.weight") + "'" + path(kSecond) + "': "),
                             HasSubstr("No such file")));
}

TEST_F(BrokenShards, Case32_ShardIsCutByAPage) {
  std::filesystem::resize_file(path(kSecond), std::filesystem::file_size(path(kSecond)) - 4096);
  EXPECT_THAT(error(), AllOf(StartsWith(key("lm_head.weight")), HasSubstr(kSecond),
                             HasSubstr("bytes beyond the end of the file")));
}

TEST_F(BrokenShards, Case39_TensorLiesInAnotherShardThanTheIndexSays) {
  change_json(kIndex,
              [](Json& json) { json["weight_map"]["model.embed_tokens.weight"] = kSecond; });
  EXPECT_THAT(error(), AllOf(StartsWith(key("model.embed_tokens.weight")),
                             HasSubstr(std::string(kSecond) + "' does not hold it"),
                             HasSubstr(std::string(kFirst) + "' does")));
}

TEST_F(BrokenShards, Case39_TensorLiesNowhere) {
  change_shard(kSecond, [](auto& tensors) {
    std::erase_if(tensors, [](auto& s) { return s.plan.name == "lm_head.weight"; });
  });
  EXPECT_THAT(error(), AllOf(StartsWith(key("lm_head.weight")), HasSubstr("does not hold it")));
}

TEST_F(BrokenShards, Case40_TensorInTwoShards) {
  std::vector<Stored> norm;
  change_shard(kFirst, [&](auto& tensors) {
    norm.push_back(named(tensors, "model.layers.0.input_layernorm.weight"));
  });
  change_shard(kSecond, [&](auto& tensors) { tensors.push_back(norm[0]); });
  EXPECT_THAT(error(), AllOf(StartsWith(key("model.layers.0.input_layernorm.weight")),
                             HasSubstr(kFirst), HasSubstr(kSecond), HasSubstr("is also in")));
}

TEST_F(BrokenShards, TensorOfAShardThatTheIndexLeavesOut) {
  change_json(kIndex, [](Json& json) { json["weight_map"].erase("model.norm.weight"); });
  EXPECT_THAT(error(), AllOf(HasSubstr(kIndex), HasSubstr("'model.norm.weight'"),
                             HasSubstr("not in weight_map")));
}

TEST_F(BrokenShards, Case41_OtherTotalSizeWarns) {
  change_json(kIndex, [](Json& json) { json["metadata"]["total_size"] = 5; });
  const auto model = ModelDirectory::open(path());
  ASSERT_TRUE(model.ok()) << model.error().message();
  EXPECT_THAT(model->warnings(),
              testing::ElementsAre(AllOf(HasSubstr(kIndex), HasSubstr("'total_size' is 5"))));
}

TEST_F(BrokenShards, Case42_IndexOfAModelOfFewerLayers) {
  set_config("num_hidden_layers", 3);
  EXPECT_THAT(error(), AllOf(StartsWith("'" + path(kIndex) + "': "),
                             HasSubstr("'model.layers.2.input_layernorm.weight' is missing"),
                             HasSubstr("3 layers")));
}

TEST_F(BrokenShards, Case43_IndexOfAModelOfMoreLayers) {
  set_config("num_hidden_layers", 1);
  EXPECT_THAT(error(), AllOf(HasSubstr("weight_map key 'model.layers.1."),
                             HasSubstr("not part of a mistral model of 1 layer")));
}

TEST_F(BrokenShards, SingleFileBesideAnIndexWinsWithAWarning) {
  std::vector<Stored> all;
  for (const char* shard : {kFirst, kSecond}) {
    change_shard(shard,
                 [&](auto& tensors) { all.insert(all.end(), tensors.begin(), tensors.end()); });
  }
  write_file("model.safetensors", all);
  test::write_bytes(path(kIndex), "not even JSON");
  const auto model = ModelDirectory::open(path());
  ASSERT_TRUE(model.ok()) << model.error().message();
  EXPECT_THAT(model->warnings(),
              testing::ElementsAre(AllOf(HasSubstr(kIndex), HasSubstr("not looked at"))));
}

class BrokenFile : public BrokenModel {};

TEST_F(BrokenFile, Case42_MissingTensor) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    std::erase_if(tensors, [](auto& s) { return s.plan.name == "model.norm.weight"; });
  });
  EXPECT_THAT(error(), AllOf(StartsWith("'" + path("model.safetensors") + "': "),
                             HasSubstr("'model.norm.weight' is missing")));
}

TEST_F(BrokenFile, Case42_MissingTensorSaysWhatAsksForIt) {
  const auto without = [&](const char* golden, const std::string& tensor) {
    std::filesystem::remove_all(path());
    copy(golden);
    change_shard("model.safetensors", [&](auto& tensors) {
      std::erase_if(tensors, [&](auto& s) { return s.plan.name == tensor; });
    });
    return error();
  };
  const std::string attention = "model.layers.0.self_attn.";
  EXPECT_THAT(without("llama2", "lm_head.weight"),
              AllOf(HasSubstr("'lm_head.weight' is missing"),
                    HasSubstr("'tie_word_embeddings' is false or left out")));
  for (const char* tensor : {"q_proj.bias", "o_proj.bias"}) {
    EXPECT_THAT(without("llama_bias", attention + tensor),
                AllOf(HasSubstr(tensor), HasSubstr("'attention_bias' is true")));
  }
  EXPECT_THAT(without("llama_bias", "model.layers.0.mlp.down_proj.bias"),
              HasSubstr("'mlp_bias' is true"));
  EXPECT_THAT(without("qwen2", attention + "k_proj.bias"), HasSubstr("'model_type' is 'qwen2'"));
  EXPECT_THAT(without("qwen3", attention + "q_norm.weight"), HasSubstr("'model_type' is 'qwen3'"));
}

TEST_F(BrokenFile, Case43_UnknownTensor) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    tensors.push_back({{"model.layers.0.self_attn.q_norm.weight", DType::kBF16, {1}}, "ab"});
  });
  EXPECT_THAT(error(),
              AllOf(StartsWith("'" + path("model.safetensors") +
                               "': tensor 'model.layers.0.self_attn.q_norm.weight' at offset "),
                    HasSubstr("not part of")));
}

TEST_F(BrokenFile, Case43_FrequenciesOfTheRotationAreLetPass) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    tensors.push_back(
        {{"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {2}}, "abcdefgh"});
  });
  EXPECT_EQ(error(), "");
}

TEST_F(BrokenFile, Case44_OtherShape) {
  copy("odd");
  set_config("intermediate_size", 177);
  EXPECT_THAT(error(),
              AllOf(StartsWith("'" + path("model.safetensors") +
                               "': tensor 'model.layers.0.mlp.gate_proj.weight' at offset "),
                    HasSubstr("has shape [176, 80], config.json makes it [177, 80]")));
}

TEST_F(BrokenFile, Case44_OtherRank) {
  copy("odd");
  change_shard("model.safetensors",
               [](auto& tensors) { named(tensors, "model.norm.weight").plan.shape = {1, 80}; });
  EXPECT_THAT(error(), HasSubstr("has shape [1, 80], config.json makes it [80]"));
}

TEST_F(BrokenFile, Case45_TiedHeadThatEqualsTheEmbedding) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    Stored head = named(tensors, "model.embed_tokens.weight");
    head.plan.name = "lm_head.weight";
    tensors.push_back(head);
  });
  EXPECT_EQ(error(), "");
}

TEST_F(BrokenFile, Case45_TiedHeadThatDiffersFromTheEmbedding) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    Stored head = named(tensors, "model.embed_tokens.weight");
    head.plan.name = "lm_head.weight";
    head.data.back() = static_cast<char>(head.data.back() + 1);
    tensors.push_back(head);
  });
  EXPECT_THAT(error(), AllOf(HasSubstr("'lm_head.weight' differs from 'model.embed_tokens.weight'"),
                             HasSubstr("at byte 48159"), HasSubstr("'tie_word_embeddings'")));
}

TEST_F(BrokenFile, Case45_TiedHeadOfAnotherShape) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    tensors.push_back({{"lm_head.weight", DType::kBF16, {1}}, "ab"});
  });
  EXPECT_THAT(error(), HasSubstr("in shape"));
}

TEST_F(BrokenFile, Case46_MixedDtypesLoad) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    Stored& norm = named(tensors, "model.norm.weight");
    norm.plan.dtype = DType::kF32;
    norm.data.resize(320);
    named(tensors, "model.embed_tokens.weight").plan.dtype = DType::kF16;
  });
  EXPECT_EQ(error(), "");
}

TEST_F(BrokenFile, Case46_WholeNumbersAreNoWeights) {
  copy("odd");
  change_shard("model.safetensors",
               [](auto& tensors) { named(tensors, "model.norm.weight").plan.dtype = DType::kI16; });
  EXPECT_THAT(error(), AllOf(HasSubstr("'model.norm.weight'"),
                             HasSubstr("has dtype I16, supported are BF16, F16 and F32")));
}

TEST_F(BrokenFile, NamesInMessagesAreCutAndEscaped) {
  copy("odd");
  change_shard("model.safetensors", [](auto& tensors) {
    tensors.push_back({{std::string(4000, 'x') + "'", DType::kU8, {1}}, "a"});
  });
  EXPECT_THAT(error(), HasSubstr("tensor '" + std::string(128, 'x') + "...'"));
}

}  // namespace
}  // namespace amxt::model
