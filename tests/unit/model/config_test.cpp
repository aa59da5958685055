#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/json.h"
#include "model/tensors.h"
#include "support/model_files.h"

namespace amxt::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Json llama() {
  return Json::parse(
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":100,"hidden_size":64,
    "intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"hidden_act":"silu",
    "max_position_embeddings":256,"rms_norm_eps":1e-5})");
}
Json family(const char* type, const char* architecture) {
  Json json = llama();
  json["model_type"] = type;
  json["architectures"] = {architecture};
  return json;
}
Json mistral() { return family("mistral", "MistralForCausalLM"); }
Json qwen2() { return family("qwen2", "Qwen2ForCausalLM"); }
Json qwen3() { return family("qwen3", "Qwen3ForCausalLM"); }

// `patch` replaces and adds members (those within rope_* objects too).
Json patched(Json json, const char* patch) {
  const Json members = Json::parse(patch);
  for (const auto& [key, value] : members.items()) json[key] = value;
  return json;
}

Result<ModelConfig> parse(const Json& json) { return parse_config(json.dump(), "m/config.json"); }
ModelConfig parsed(const Json& json) {
  auto config = parse(json);
  EXPECT_TRUE(config.ok()) << config.error().message();
  return config.ok() ? std::move(config).value() : ModelConfig{};
}

TEST(Config, MinimalLlamaTakesTransformersDefaults) {
  Json json = Json::parse(
      R"({"model_type":"llama","vocab_size":100,"hidden_size":64,"intermediate_size":128,
    "num_hidden_layers":2,"num_attention_heads":4})");
  const ModelConfig config = parsed(json);
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_EQ(config.rope.theta, 10000);
  EXPECT_EQ(config.initializer_range, 0.02);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qkv_bias || config.output_bias || config.mlp_bias || config.qk_norm);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_THAT(config.warnings, IsEmpty());
  EXPECT_EQ(config.text, json.dump());
}

TEST(Config, FamiliesDifferAsTheirGraphsDo) {
  EXPECT_FALSE(parsed(llama()).qkv_bias);
  const ModelConfig bias = parsed(patched(llama(), R"({"attention_bias":true,"mlp_bias":true})"));
  EXPECT_TRUE(bias.qkv_bias && bias.output_bias && bias.mlp_bias);

  const ModelConfig two = parsed(qwen2());
  EXPECT_TRUE(two.qkv_bias);
  EXPECT_FALSE(two.output_bias || two.mlp_bias || two.qk_norm);
  EXPECT_THAT(two.eos_token_ids, IsEmpty());

  const ModelConfig three = parsed(qwen3());
  EXPECT_TRUE(three.qk_norm);
  EXPECT_FALSE(three.qkv_bias);
  EXPECT_EQ(three.head_dim, 128) << "qwen3's default is not hidden_size / heads";
  EXPECT_TRUE(parsed(patched(qwen3(), R"({"attention_bias":true})")).output_bias);
}

TEST(Config, KeyValueHeads) {
  Json json = llama();
  json["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parsed(json).kv_heads, 4) << "null: one per head";
  json = mistral();
  json.erase("num_key_value_heads");
  json["num_attention_heads"] = 32;
  EXPECT_EQ(parsed(json).kv_heads, 8) << "mistral's default";
}

TEST(Config, BothSpellingsOfTheRotationMeanTheSame) {
  const char* scaling =
      R"({"rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
    "high_freq_factor":4.0,"original_max_position_embeddings":64}})";
  const char* legacy =
      R"({"rope_theta":500000,"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":1,
    "high_freq_factor":4,"original_max_position_embeddings":64}})";
  const char* parameters =
      R"({"rope_parameters":{"rope_type":"llama3","rope_theta":500000.0,"factor":8.0,"low_freq_factor":1.0,
    "high_freq_factor":4.0,"original_max_position_embeddings":64}})";
  for (const char* spelling : {scaling, legacy, parameters}) {
    const Rope rope = parsed(patched(llama(), spelling)).rope;
    EXPECT_EQ(rope.type, RopeType::kLlama3);
    EXPECT_EQ(rope.theta, 500000);
    EXPECT_EQ(rope.factor, 8);
    EXPECT_EQ(rope.low_freq_factor, 1);
    EXPECT_EQ(rope.high_freq_factor, 4);
    EXPECT_EQ(rope.original_max_position_embeddings, 64);
  }
}

TEST(Config, PrecedenceOfTheRotationIsThatOfTransformers) {
  EXPECT_EQ(parsed(patched(llama(), R"({"rope_theta":5.0,"rope_parameters":{"rope_theta":7.0}})"))
                .rope.theta,
            7)
      << "inside before beside";
  EXPECT_EQ(
      parsed(patched(llama(), R"({"rope_theta":5.0,"rope_parameters":{"rope_type":"default"}})"))
          .rope.theta,
      5);
  const Rope both =
      parsed(
          patched(
              llama(),
              R"({"rope_scaling":{"type":"linear","factor":2},"rope_parameters":{"rope_type":"default"}})"))
          .rope;
  EXPECT_EQ(both.type, RopeType::kLinear) << "rope_scaling before rope_parameters";
  EXPECT_EQ(
      parsed(patched(llama(),
                     R"({"rope_scaling":{},"rope_parameters":{"rope_type":"linear","factor":2}})"))
          .rope.type,
      RopeType::kLinear)
      << "an empty one is none";
  const char* llama3 =
      R"({"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0}})";
  EXPECT_EQ(parsed(patched(llama(), llama3)).rope.original_max_position_embeddings, 256)
      << "max_position_embeddings, when it is absent";
  EXPECT_EQ(parsed(patched(patched(llama(), llama3), R"({"original_max_position_embeddings":32})"))
                .rope.original_max_position_embeddings,
            32);
}

TEST(Config, Windows) {
  EXPECT_EQ(parsed(mistral()).sliding_window, 4096) << "mistral's default";
  EXPECT_EQ(parsed(patched(mistral(), R"({"sliding_window":null})")).sliding_window, 0);
  EXPECT_EQ(parsed(patched(mistral(), R"({"sliding_window":128})")).sliding_window, 128);
  EXPECT_EQ(parsed(patched(qwen2(), R"({"sliding_window":128,"use_sliding_window":false})"))
                .sliding_window,
            0);
  EXPECT_EQ(
      parsed(patched(qwen2(),
                     R"({"sliding_window":128,"use_sliding_window":true,"max_window_layers":2})"))
          .sliding_window,
      0)
      << "no layer is from max_window_layers on";
}

TEST(Config, EndTokens) {
  EXPECT_THAT(parsed(patched(llama(), R"({"eos_token_id":null})")).eos_token_ids, IsEmpty());
  EXPECT_THAT(parsed(patched(llama(), R"({"eos_token_id":7})")).eos_token_ids, ElementsAre(7));
  EXPECT_THAT(parsed(patched(llama(), R"({"eos_token_id":[7,9]})")).eos_token_ids,
              ElementsAre(7, 9));
  const ModelConfig beyond = parsed(patched(llama(), R"({"eos_token_id":[7,100]})"));
  EXPECT_THAT(beyond.eos_token_ids, ElementsAre(7));
  EXPECT_THAT(beyond.warnings,
              ElementsAre(HasSubstr("'eos_token_id' has 100, beyond the vocabulary of 100")));
}

TEST(Config, UnknownKeyThatSaysNothingIsOneLineOfWarning) {
  for (const char* value : {"null", "false", "0", "0.0", "\"\"", "[]", "{}"}) {
    Json json = llama();
    json["frobnicate"] = Json::parse(value);
    EXPECT_THAT(parsed(json).warnings,
                ElementsAre(HasSubstr("'m/config.json': key 'frobnicate' is not known")))
        << value;
  }
}

TEST(Config, KnownKeysWithoutEffectAreSilent) {
  const ModelConfig config = parsed(patched(
      llama(), R"({"torch_dtype":"bfloat16","dtype":"bfloat16","use_cache":false,"bos_token_id":1,
    "pad_token_id":-1,"transformers_version":"5.23.0","pretraining_tp":1,"attention_dropout":0.0,"_name_or_path":"x","is_llama_config":true,
    "rope_interleaved":false,"num_experts":0,"quantization_config":null,"embedding_multiplier":1.0,"transformers.js_config":{"a":1},
    "temperature":0.6,"id2label":{"0":"x"},"final_logit_softcapping":null,"hidden_act":"swish"})"));
  EXPECT_THAT(config.warnings, IsEmpty());
}

struct Mutation {
  const char* name;
  Json json;
  std::string says;
};

void PrintTo(const Mutation& mutation, std::ostream* out) { *out << mutation.name; }

class ConfigRefused : public testing::TestWithParam<Mutation> {};

TEST_P(ConfigRefused, NamesKeyAndValue) {
  const auto config = parse(GetParam().json);
  ASSERT_FALSE(config.ok()) << "the config was accepted";
  EXPECT_THAT(config.error().message(), testing::StartsWith("'m/config.json': key '"));
  EXPECT_THAT(config.error().message(), HasSubstr(GetParam().says));
  EXPECT_EQ(config.error().message().find('\n'), std::string::npos);
}

Json with(const char* patch) { return patched(llama(), patch); }
Json rope(const char* members) {
  return patched(llama(), (R"({"rope_parameters":)" + std::string(members) + "}").c_str());
}
Json without(const char* key) {
  Json json = llama();
  json.erase(key);
  return json;
}

const Mutation kMutations[] = {
    {"NoModelType", without("model_type"), "'model_type' is missing"},
    {"OtherModel", with(R"({"model_type":"gemma2"})"),
     "'model_type' is 'gemma2', which is not supported; supported are llama, mistral, qwen2, "
     "qwen3"},
    {"ModelTypeIsNumber", with(R"({"model_type":3})"), "'model_type' is '3', not a string"},
    {"Classifier", with(R"({"architectures":["LlamaForSequenceClassification"]})"),
     "'architectures' has"},
    {"OtherArchitecture", with(R"({"architectures":["MistralForCausalLM"]})"),
     "only LlamaForCausalLM is supported"},
    {"ArchitecturesIsString", with(R"({"architectures":"LlamaForCausalLM"})"), "not a list"},
    {"NoVocabulary", without("vocab_size"), "'vocab_size' is missing"},
    {"NoHiddenSize", without("hidden_size"), "'hidden_size' is missing"},
    {"NoIntermediateSize", without("intermediate_size"), "'intermediate_size' is missing"},
    {"NoLayers", without("num_hidden_layers"), "'num_hidden_layers' is missing"},
    {"NoHeads", without("num_attention_heads"), "'num_attention_heads' is missing"},
    {"NullVocabulary", with(R"({"vocab_size":null})"), "'vocab_size' is missing"},
    {"ZeroVocabulary", with(R"({"vocab_size":0})"),
     "'vocab_size' is '0', not from 1 to 2147483647"},
    {"NegativeHiddenSize", with(R"({"hidden_size":-64})"), "'hidden_size' is '-64', not from 1"},
    {"FractionalHiddenSize", with(R"({"hidden_size":64.0})"),
     "'hidden_size' is '64.0', not a whole number"},
    {"HiddenSizeIsString", with(R"({"hidden_size":"64"})"), "not a whole number"},
    {"HiddenSizeIsTrue", with(R"({"hidden_size":true})"),
     "'hidden_size' is 'true', not a whole number"},
    {"HugeVocabulary", with(R"({"vocab_size":2147483648})"), "'vocab_size' is '2147483648'"},
    {"VocabularyOf2To63", with(R"({"vocab_size":9223372036854775808})"),
     "'vocab_size' is '9223372036854775808'"},
    {"HugeHiddenSize", with(R"({"hidden_size":1048577})"), "'hidden_size' is '1048577'"},
    {"HugeIntermediateSize", with(R"({"intermediate_size":4194305})"), "'intermediate_size'"},
    {"HugeLayers", with(R"({"num_hidden_layers":4097})"), "'num_hidden_layers'"},
    {"HugeHeads", with(R"({"num_attention_heads":65537})"), "'num_attention_heads'"},
    {"HugeHeadDimension",
     with(R"({"head_dim":65536,"num_attention_heads":65536,"num_key_value_heads":1})"),
     "times 65536 heads it exceeds 4194304"},
    {"HeadsNotAMultipleOfKeyValueHeads", with(R"({"num_key_value_heads":3})"),
     "'num_key_value_heads' is 3, which does not divide num_attention_heads 4"},
    {"MoreKeyValueHeadsThanHeads", with(R"({"num_key_value_heads":8})"),
     "'num_key_value_heads' is 8"},
    {"ZeroKeyValueHeads", with(R"({"num_key_value_heads":0})"), "'num_key_value_heads' is '0'"},
    {"HiddenSizeNotAMultipleOfHeads", with(R"({"num_attention_heads":6,"num_key_value_heads":2})"),
     "'num_attention_heads' is 6, which does not divide hidden_size 64"},
    {"OddHeadDimension", with(R"({"head_dim":15})"),
     "'head_dim' is 15; the rotation needs an even number"},
    {"OddHeadDimensionByDivision", with(R"({"hidden_size":60})"), "'head_dim' is 15"},
    {"NegativeEpsilon", with(R"({"rms_norm_eps":-1e-5})"), "'rms_norm_eps'"},
    {"EpsilonIsString", with(R"({"rms_norm_eps":"1e-5"})"),
     "'rms_norm_eps' is '\"1e-5\"', not a number"},
    {"NegativeInitializerRange", with(R"({"initializer_range":-0.02})"), "'initializer_range'"},
    {"TieIsNumber", with(R"({"tie_word_embeddings":1})"),
     "'tie_word_embeddings' is '1', not true or false"},
    {"NegativeEos", with(R"({"eos_token_id":-1})"), "'eos_token_id' has '-1', not a token id"},
    {"EosIsString", with(R"({"eos_token_id":"</s>"})"), "'eos_token_id'"},
    {"EosInNestedList", with(R"({"eos_token_id":[[2]]})"), "'eos_token_id'"},
    {"Gelu", with(R"({"hidden_act":"gelu"})"), "'hidden_act' is 'gelu', only 'silu'"},
    {"GeluByOtherKey", with(R"({"hidden_activation":"gelu_pytorch_tanh"})"), "'hidden_activation'"},
    {"AttentionDropout", with(R"({"attention_dropout":0.1})"),
     "'attention_dropout' is '0.1': dropout is not implemented"},
    {"Quantised", with(R"({"quantization_config":{"bits":4}})"), "'quantization_config'"},
    {"SplitProjections", with(R"({"pretraining_tp":2})"), "'pretraining_tp' is '2'"},
    {"Experts", with(R"({"num_local_experts":8})"),
     "'num_local_experts' is '8': mixtures of experts"},
    {"QwenExperts", patched(qwen2(), R"({"num_experts":60})"), "'num_experts'"},
    {"OwnCode", with(R"({"auto_map":{"AutoModel":"x.Y"}})"), "'auto_map'"},
    {"EmbeddingMultiplier", with(R"({"embedding_multiplier":12})"),
     "'embedding_multiplier' is '12'"},
    {"SoftCap", with(R"({"final_logit_softcapping":30.0})"), "'final_logit_softcapping'"},
    {"NoRopeLayers", with(R"({"no_rope_layers":[1,1,0]})"), "'no_rope_layers'"},
    {"InterleavedRotation", with(R"({"rope_interleaved":true})"), "'rope_interleaved'"},
    {"LayersThatDiffer", with(R"({"layer_types":["full_attention","sliding_attention"]})"),
     "'layer_types' has '\"sliding_attention\"' for layer 1"},
    {"LayerTypesOfAnotherCount", with(R"({"layer_types":["full_attention"]})"),
     "'layer_types' has 1 entries for 2 layers"},
    {"LayerTypesIsString", with(R"({"layer_types":"full_attention"})"), "'layer_types'"},
    {"WindowInLlama", with(R"({"sliding_window":4096})"), "'sliding_window' is 4096"},
    {"WindowInQwen2",
     patched(qwen2(), R"({"use_sliding_window":true,"sliding_window":64,"max_window_layers":1})"),
     "'use_sliding_window' is true"},
    {"WindowByDefaultInQwen3",
     patched(qwen3(), R"({"use_sliding_window":true,"max_window_layers":0})"),
     "'use_sliding_window' is true"},
    {"WindowOfZeroInMistral", patched(mistral(), R"({"sliding_window":0})"),
     "'sliding_window' is '0'"},
    {"BiasInMistral", patched(mistral(), R"({"attention_bias":true})"),
     "'attention_bias' is true, which mistral does not have"},
    {"MlpBiasInQwen2", patched(qwen2(), R"({"mlp_bias":true})"),
     "'mlp_bias' is true, which qwen2 does not have"},
    {"YarnRope", rope(R"({"rope_type":"yarn","factor":4})"),
     "'rope_parameters.rope_type' is 'yarn', supported are default, linear and llama3"},
    {"DynamicRope", with(R"({"rope_scaling":{"type":"dynamic","factor":4}})"),
     "'rope_scaling.type' is 'dynamic'"},
    {"LongRope", with(R"({"rope_scaling":{"rope_type":"longrope"}})"), "'rope_scaling.rope_type'"},
    {"TypesOfRopeThatDisagree",
     with(R"({"rope_scaling":{"type":"linear","rope_type":"llama3","factor":2}})"),
     "'rope_scaling.type' is 'linear', but rope_type is 'llama3'"},
    {"RopePerLayerType",
     rope(
         R"({"full_attention":{"rope_type":"default"},"sliding_attention":{"rope_type":"default"}})"),
     "'rope_parameters.full_attention' is an object"},
    {"RopeIsString", rope(R"("default")"), "'rope_parameters' is"},
    {"RopeTypeIsNumber", rope(R"({"rope_type":1})"), "'rope_parameters.rope_type'"},
    {"LinearRopeWithoutFactor", rope(R"({"rope_type":"linear"})"),
     "'rope_parameters.factor' is missing"},
    {"RopeFactorOfZero", rope(R"({"rope_type":"linear","factor":0})"),
     "'rope_parameters.factor' is '0'"},
    {"Llama3RopeWithoutLowFactor",
     rope(R"({"rope_type":"llama3","factor":8,"high_freq_factor":4})"),
     "'rope_parameters.low_freq_factor' is missing"},
    {"Llama3RopeWithEqualFactors",
     rope(R"({"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4})"),
     "'rope_parameters.high_freq_factor' is 4, not more"},
    {"RopeThetaOfZero", with(R"({"rope_theta":0})"), "'rope_theta' is '0'"},
    {"NegativeRopeTheta", rope(R"({"rope_theta":-1})"), "'rope_parameters.rope_theta'"},
    {"PartialRotation", with(R"({"partial_rotary_factor":0.5})"), "'partial_rotary_factor' is 0.5"},
    {"PartialRotationInside", rope(R"({"partial_rotary_factor":0.5})"),
     "'rope_parameters.partial_rotary_factor'"},
    {"UnknownRopeKey", rope(R"({"rope_type":"linear","factor":2,"mscale":1.5})"),
     "'rope_parameters.mscale' is '1.5', and no such key is known"},
    {"UnknownNumber", with(R"({"frobnicate":3})"), "'frobnicate' is '3', and no such key is known"},
    {"UnknownTrue", with(R"({"use_frobnication":true})"), "'use_frobnication' is 'true'"},
    {"UnknownObject", with(R"({"frobnication":{"a":1}})"), "'frobnication'"},
    {"UnknownKeyIsEscapedAndCut", with(("{\"bad\\n" + std::string(300, 'k') + "\":1}").c_str()),
     "'bad\\x0akkkk"},
};

INSTANTIATE_TEST_SUITE_P(Mutations, ConfigRefused, testing::ValuesIn(kMutations),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Config, TextThatIsNoConfigIsRefused) {
  const std::pair<std::string, const char*> texts[] = {
      {"", "not valid JSON"},
      {"[]", "not a JSON object"},
      {"null", "not a JSON object"},
      {"{\"a\":1,\"a\":1}", "duplicate key 'a'"},
      {std::string(100'000, '['), "nested deeper than 16"},
      {"{\"vocab_size\":1e999}", "not valid JSON"},
      {"{\"vocab_size\":18446744073709551616}", "does not fit 64 bits"},
      {std::string("{}\0{", 4), "NUL"},
      {"{\"\xff\":1}", "UTF-8"}};
  for (const auto& [text, says] : texts) {
    const auto config = parse_config(text, "m/config.json");
    ASSERT_FALSE(config.ok()) << text.substr(0, 40);
    EXPECT_THAT(config.error().message(),
                testing::AllOf(testing::StartsWith("'m/config.json': "), HasSubstr(says)));
  }
}

TEST(Config, LargestSizesOverflowNowhere) {
  const ModelConfig config =
      parsed(with(R"({"vocab_size":2147483647,"hidden_size":1048576,"intermediate_size":4194304,
    "num_hidden_layers":4096,"num_attention_heads":64,"num_key_value_heads":64,"head_dim":65536})"));
  // Sixteen bytes a parameter still fit.
  EXPECT_LT(static_cast<double>(parameter_count(config)) * 16, 0x1p63);
  EXPECT_GT(parameter_count(config), 0);
  EXPECT_GT(matmul_parameter_count(config), 0);
}

TEST(Config, UnreadableFilesAreNamed) {
  test::TemporaryDirectory directory;
  auto config = read_config(directory.path());
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.error().code(), Code::kNotFound);
  EXPECT_THAT(config.error().message(), HasSubstr("/config.json'"));
  std::filesystem::create_directory(directory / "config.json");
  config = read_config(directory.path());
  ASSERT_FALSE(config.ok());
  EXPECT_THAT(config.error().message(), HasSubstr("is a directory"));
}

TEST(Config, GoldensHaveTheirGraphs) {
  const auto read = [](const char* name) {
    auto config = read_config(test::golden_directory(name));
    EXPECT_TRUE(config.ok()) << config.error().message();
    return std::move(config).value();
  };
  EXPECT_EQ(read("llama2").rope.type, RopeType::kDefault);
  EXPECT_EQ(read("llama3_1").rope.factor, 8);
  EXPECT_EQ(read("llama3_2").rope.factor, 32);
  EXPECT_TRUE(read("llama3_2").tie_word_embeddings);
  EXPECT_TRUE(read("llama_bias").output_bias);
  EXPECT_EQ(read("llama_head_dim").query_size(), 96);
  EXPECT_EQ(read("llama_linear").rope.type, RopeType::kLinear);
  EXPECT_EQ(read("llama_linear").rope.factor, 4);
  EXPECT_EQ(read("mistral").sliding_window, 0);
  EXPECT_TRUE(read("qwen2").qkv_bias);
  EXPECT_TRUE(read("qwen3").qk_norm);
  EXPECT_EQ(read("smollm2").rope.theta, 100000);
}

TEST(Preset, HaveTheirPublicSizes) {
  const std::pair<const char*, int64_t> sizes[] = {{"1b", 1'235'814'400},
                                                   {"8b", 8'030'261'248},
                                                   {"300m", 308'824'064},
                                                   {"60m", 61'778'560},
                                                   {"tiny", 820'352}};
  for (const auto& [name, parameters] : sizes) {
    const auto text = preset_config(name);
    ASSERT_TRUE(text.ok()) << name;
    const auto config = parse_config(*text, name);
    ASSERT_TRUE(config.ok()) << config.error().message();
    EXPECT_EQ(parameter_count(*config), parameters) << name;
    EXPECT_THAT(config->warnings, IsEmpty()) << name;
  }
}

TEST(Preset, TinyIsForBytesWithoutAnEndToken) {
  const auto config = parse_config(*preset_config("tiny"), "tiny");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->vocab_size, 256);
  EXPECT_THAT(config->eos_token_ids, IsEmpty());
}

TEST(Preset, UnknownOneListsAll) {
  const auto text = preset_config("70b");
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code(), Code::kNotFound);
  EXPECT_THAT(text.error().message(),
              HasSubstr("no preset '70b'; there are 1b, 8b, 300m, 60m, tiny"));
}

}  // namespace
}  // namespace amxt::model
