#include "model/shards.h"

#include <fmt/format.h>

#include <map>

#include "base/json.h"
#include "io/index.h"

namespace amxt::model {
namespace {

std::string index_text(std::span<const TensorSpec> specs, const ShardPlan& plan) {
  std::map<std::string, std::string> weight_map;
  int64_t parameters = 0;
  for (const Shard& shard : plan.shards) {
    for (const size_t tensor : shard.tensors) {
      weight_map[specs[tensor].name] = shard.file;
      parameters += specs[tensor].elements();
    }
  }
  const Json index{
      {"metadata", {{"total_parameters", parameters}, {"total_size", plan.total_bytes}}},
      {"weight_map", weight_map}};
  return index.dump(2) + "\n";
}

}  // namespace

ShardPlan plan_shards(std::span<const TensorSpec> specs, DType dtype, int64_t shard_bytes) {
  ShardPlan plan;
  for (size_t i = 0; i < specs.size(); ++i) {
    const int64_t bytes = specs[i].elements() * dtype_bytes(dtype);
    if (plan.shards.empty() || plan.shards.back().bytes + bytes > shard_bytes)
      plan.shards.emplace_back();
    plan.shards.back().tensors.push_back(i);
    plan.shards.back().bytes += bytes;
    plan.total_bytes += bytes;
  }
  if (plan.shards.size() == 1) {
    plan.shards[0].file = io::kSingleFile;
    return plan;
  }
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    plan.shards[i].file =
        fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, plan.shards.size());
  }
  plan.index_text = index_text(specs, plan);
  return plan;
}

std::vector<io::TensorPlan> tensor_plans(const Shard& shard, std::span<const TensorSpec> specs,
                                         DType dtype) {
  std::vector<io::TensorPlan> plans;
  for (const size_t i : shard.tensors) {
    const TensorSpec& spec = specs[i];
    plans.push_back({spec.name, dtype,
                     spec.vector ? std::vector<int64_t>{spec.columns}
                                 : std::vector<int64_t>{spec.rows, spec.columns}});
  }
  return plans;
}

}  // namespace amxt::model
