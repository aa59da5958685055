// ModelConfig: what a Hugging Face config.json says of the graph, in the spellings of transformers 4 and 5.
//
// Every key of the file is either read here, known to change nothing, or refused: a key that is known to change the graph in a
// way that is not implemented is an error naming it; a key that nobody knows is a warning when it is null, false, 0 or empty and
// an error when it is not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace amxt::model {

enum class RopeType { kDefault, kLinear, kLlama3 };

struct Rope {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  int64_t original_max_position_embeddings = 8192;   // llama3
};

struct ModelConfig {
  std::string model_type;  // llama, mistral, qwen2, qwen3
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  int64_t sliding_window = 0;  // 0: none; else sequences must not be longer (mistral)
  double rms_norm_eps = 1e-6;
  Rope rope;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;     // q, k and v
  bool output_bias = false;  // o
  bool mlp_bias = false;     // gate, up, down
  bool qk_norm = false;      // RMSNorm over head_dim of q and k, before the rotation
  double initializer_range = 0.02;
  std::vector<int64_t> eos_token_ids;  // may be empty
  std::vector<std::string> warnings;   // one line each, naming the key
  std::string text;                    // the file as read, for export

  int64_t query_size() const { return heads * head_dim; }
  int64_t kv_size() const { return kv_heads * head_dim; }
};

// `file` is for messages.
Result<ModelConfig> parse_config(std::string_view text, std::string_view file);
Result<ModelConfig> read_config(const std::string& directory);
// Text of a built-in config.json: "1b", "8b", "300m", "60m", "tiny"; kNotFound lists them.
Result<std::string> preset_config(std::string_view name);

// [head_dim / 2] in fp32, scaled as the rope type says.
std::vector<float> rope_inverse_frequencies(const ModelConfig& config);
// cosine, sine: [positions, head_dim / 2] in fp32, as transformers computes them (inverse frequencies in fp32).
void rope_tables(const ModelConfig& config, int64_t positions, float* cosine, float* sine);

}  // namespace amxt::model
