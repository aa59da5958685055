#include "model/tensors.h"

#include <fmt/format.h>

namespace amxt::model {
namespace {

// Appends the tensors of one unit in memory order.
class SpecList {
 public:
  explicit SpecList(std::vector<TensorSpec>* specs) : specs_(*specs) {}

  void in(std::string prefix, int64_t unit) {
    prefix_ = std::move(prefix);
    unit_ = unit;
  }
  void matrix(const char* name, Role role, int64_t rows, int64_t columns) {
    specs_.push_back({prefix_ + name, role, unit_, rows, columns, false});
  }
  void vector(const char* name, Role role, int64_t columns) {
    specs_.push_back({prefix_ + name, role, unit_, 1, columns, true});
  }

 private:
  std::vector<TensorSpec>& specs_;
  std::string prefix_;
  int64_t unit_ = 0;
};

void add_layer(const ModelConfig& c, SpecList& list) {
  list.vector("input_layernorm.weight", Role::kInputNorm, c.hidden_size);
  list.matrix("self_attn.q_proj.weight", Role::kQuery, c.query_size(), c.hidden_size);
  list.matrix("self_attn.k_proj.weight", Role::kKey, c.kv_size(), c.hidden_size);
  list.matrix("self_attn.v_proj.weight", Role::kValue, c.kv_size(), c.hidden_size);
  if (c.qkv_bias) {
    list.vector("self_attn.q_proj.bias", Role::kQueryBias, c.query_size());
    list.vector("self_attn.k_proj.bias", Role::kKeyBias, c.kv_size());
    list.vector("self_attn.v_proj.bias", Role::kValueBias, c.kv_size());
  }
  if (c.qk_norm) {
    list.vector("self_attn.q_norm.weight", Role::kQueryNorm, c.head_dim);
    list.vector("self_attn.k_norm.weight", Role::kKeyNorm, c.head_dim);
  }
  list.matrix("self_attn.o_proj.weight", Role::kOutput, c.hidden_size, c.query_size());
  if (c.output_bias) list.vector("self_attn.o_proj.bias", Role::kOutputBias, c.hidden_size);
  list.vector("post_attention_layernorm.weight", Role::kPostNorm, c.hidden_size);
  list.matrix("mlp.gate_proj.weight", Role::kGate, c.intermediate_size, c.hidden_size);
  list.matrix("mlp.up_proj.weight", Role::kUp, c.intermediate_size, c.hidden_size);
  if (c.mlp_bias) {
    list.vector("mlp.gate_proj.bias", Role::kGateBias, c.intermediate_size);
    list.vector("mlp.up_proj.bias", Role::kUpBias, c.intermediate_size);
  }
  list.matrix("mlp.down_proj.weight", Role::kDown, c.hidden_size, c.intermediate_size);
  if (c.mlp_bias) list.vector("mlp.down_proj.bias", Role::kDownBias, c.hidden_size);
}

}  // namespace

std::vector<TensorSpec> tensor_specs(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  SpecList list(&specs);
  list.in("model.", kEmbeddingUnit);
  list.matrix("embed_tokens.weight", Role::kEmbedding, config.vocab_size, config.hidden_size);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    list.in(fmt::format("model.layers.{}.", layer), layer);
    add_layer(config, list);
  }
  list.in("model.", config.layers);
  list.vector("norm.weight", Role::kFinalNorm, config.hidden_size);
  list.in("", config.layers);
  if (!config.tie_word_embeddings)
    list.matrix("lm_head.weight", Role::kHead, config.vocab_size, config.hidden_size);
  return specs;
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const TensorSpec& spec : tensor_specs(config)) count += spec.elements();
  return count;
}

int64_t matmul_parameter_count(const ModelConfig& config) {
  const int64_t attention = config.hidden_size * (2 * config.query_size() + 2 * config.kv_size());
  const int64_t mlp = 3 * config.hidden_size * config.intermediate_size;
  return config.layers * (attention + mlp) + config.vocab_size * config.hidden_size;
}

double flops_per_token(const ModelConfig& config, int64_t sequence_length) {
  const double attention = static_cast<double>(config.layers) *
                           static_cast<double>(config.query_size()) *
                           static_cast<double>(sequence_length);
  return 6 * static_cast<double>(matmul_parameter_count(config)) + 6 * attention;
}

}  // namespace amxt::model
