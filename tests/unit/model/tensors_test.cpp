#include "model/tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "model/config.h"

namespace amxt::model {
namespace {

ModelConfig small() {
  ModelConfig config;
  config.vocab_size = 100;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 32;  // queries are wider than the hidden state
  return config;
}

std::vector<std::string> names(const ModelConfig& config) {
  std::vector<std::string> all;
  for (const TensorSpec& spec : tensor_specs(config)) all.push_back(spec.name);
  return all;
}

const TensorSpec& named(const std::vector<TensorSpec>& specs, std::string_view name) {
  for (const TensorSpec& spec : specs) {
    if (spec.name == name) return spec;
  }
  ADD_FAILURE() << name;
  return specs.front();
}

TEST(TensorSpecs, EmbeddingLayersNormHeadInOrderOfMemory) {
  ModelConfig config = small();
  config.layers = 1;
  EXPECT_THAT(
      names(config),
      testing::ElementsAre(
          "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
          "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
          "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
          "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight",
          "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
          "model.norm.weight", "lm_head.weight"));
}

TEST(TensorSpecs, BiasesAndNormsStandBesideTheirMatrices) {
  ModelConfig config = small();
  config.layers = 1;
  config.qkv_bias = config.output_bias = config.mlp_bias = config.qk_norm =
      config.tie_word_embeddings = true;
  EXPECT_THAT(
      names(config),
      testing::ElementsAre(
          "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
          "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
          "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.q_proj.bias",
          "model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.v_proj.bias",
          "model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_norm.weight",
          "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.o_proj.bias",
          "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight",
          "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.bias",
          "model.layers.0.mlp.up_proj.bias", "model.layers.0.mlp.down_proj.weight",
          "model.layers.0.mlp.down_proj.bias", "model.norm.weight"));
}

TEST(TensorSpecs, ShapesFollowTheHeads) {
  ModelConfig config = small();
  config.qkv_bias = config.qk_norm = true;
  const auto specs = tensor_specs(config);
  const auto shape = [&](const char* name) {
    const TensorSpec& spec = named(specs, std::string("model.layers.1.self_attn.") + name);
    return std::pair(spec.rows, spec.columns);
  };
  EXPECT_EQ(shape("q_proj.weight"), std::pair(int64_t{128}, int64_t{64}));
  EXPECT_EQ(shape("k_proj.weight"), std::pair(int64_t{64}, int64_t{64}));
  EXPECT_EQ(shape("o_proj.weight"), std::pair(int64_t{64}, int64_t{128}));
  EXPECT_EQ(shape("q_proj.bias"), std::pair(int64_t{1}, int64_t{128}));
  EXPECT_EQ(shape("k_norm.weight"), std::pair(int64_t{1}, int64_t{32}));
}

TEST(TensorSpecs, UnitsAreEmbeddingLayersAndHead) {
  const auto specs = tensor_specs(small());
  EXPECT_EQ(named(specs, "model.embed_tokens.weight").unit, kEmbeddingUnit);
  EXPECT_EQ(named(specs, "model.layers.1.mlp.up_proj.weight").unit, 1);
  EXPECT_EQ(named(specs, "model.norm.weight").unit, 2);
  EXPECT_EQ(named(specs, "lm_head.weight").unit, 2);
  EXPECT_TRUE(named(specs, "model.norm.weight").vector);
  EXPECT_FALSE(named(specs, "lm_head.weight").vector);
}

TEST(Counts, TiedHeadIsMultipliedButNotStored) {
  ModelConfig config = small();
  const int64_t untied = parameter_count(config);
  const int64_t products = matmul_parameter_count(config);
  config.tie_word_embeddings = true;
  EXPECT_EQ(untied - parameter_count(config), 100 * 64);
  EXPECT_EQ(matmul_parameter_count(config), products);
}

TEST(Counts, FlopsOfTheComparisonModel) {
  // 6 x (layers x (2 h h + 2 h kv + 3 h i) + h v) + 6 x layers x h x T, the 300m preset at 512 tokens.
  const auto config = parse_config(*preset_config("300m"), "300m");
  ASSERT_TRUE(config.ok());
  const double h = 2048, i = 8192, v = 32000, kv = 512;
  EXPECT_EQ(flops_per_token(*config, 512),
            6 * (4 * (2 * h * h + 2 * h * kv + 3 * h * i) + h * v) + 6 * 4 * h * 512);
}

}  // namespace
}  // namespace amxt::model
