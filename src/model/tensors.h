// The tensors of a model by their Hugging Face names, in the one order that layout, checkpoints and exports use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace amxt::model {

// What a tensor is to the graph. The order within a layer is the order in memory: q, k, v adjacent, gate and up adjacent, so that
// each group is one matrix [rows, hidden].
enum class Role : int32_t {
  kEmbedding,  // model.embed_tokens.weight [V, D]; also the head when tied
  kInputNorm,  // input_layernorm.weight [D]
  kQuery,
  kKey,
  kValue,  // self_attn.{q,k,v}_proj.weight
  kQueryBias,
  kKeyBias,
  kValueBias,
  kQueryNorm,
  kKeyNorm,  // self_attn.{q,k}_norm.weight [C]
  kOutput,
  kOutputBias,  // self_attn.o_proj
  kPostNorm,    // post_attention_layernorm.weight [D]
  kGate,
  kUp,
  kGateBias,
  kUpBias,  // mlp
  kDown,
  kDownBias,
  kFinalNorm,  // model.norm.weight [D]
  kHead,       // lm_head.weight [V, D], absent when tied
};

constexpr int64_t kEmbeddingUnit = -1;  // unit of kEmbedding
// Units 0 .. layers-1 are decoder layers; unit `layers` is final norm and head.

struct TensorSpec {
  std::string name;
  Role role;
  int64_t unit;  // layer, kEmbeddingUnit, or `layers` for final norm and head
  int64_t rows;  // 1 for a vector
  int64_t columns;
  bool vector;  // shape in files is [columns]

  int64_t elements() const { return rows * columns; }
};

// Embedding first, layers in order, final norm, head.
std::vector<TensorSpec> tensor_specs(const ModelConfig& config);
int64_t parameter_count(const ModelConfig& config);
// Weights that take part in matrix products per token (the head counts, the embedding does not unless tied); for FLOPs.
int64_t matmul_parameter_count(const ModelConfig& config);
// Forward and backward of one token: 6 x matmul weights + causal attention 6 x layers x query_size x sequence_length.
double flops_per_token(const ModelConfig& config, int64_t sequence_length);

}  // namespace amxt::model
