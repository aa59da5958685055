// Cutting a model into safetensors files as Hugging Face names and sizes them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "io/safetensors.h"
#include "model/tensors.h"

namespace amxt::model {

struct Shard {
  std::string
      file;  // "model.safetensors" when there is one, else "model-00001-of-00003.safetensors"
  std::vector<size_t> tensors;  // indices into the specs, in their order
  int64_t bytes = 0;            // of the tensors
};

struct ShardPlan {
  std::vector<Shard> shards;
  int64_t total_bytes = 0;  // of the tensors
  std::string index_text;   // model.safetensors.index.json; empty when one file holds all
};

// In the order of `specs`, each shard filled up to `shard_bytes`; a tensor larger than that has a shard of its own.
ShardPlan plan_shards(std::span<const TensorSpec> specs, DType dtype, int64_t shard_bytes);

// What a writer of `shard` is created with.
std::vector<io::TensorPlan> tensor_plans(const Shard& shard, std::span<const TensorSpec> specs,
                                         DType dtype);

}  // namespace amxt::model
