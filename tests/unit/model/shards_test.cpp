#include "model/shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "io/index.h"

namespace amxt::model {
namespace {

using testing::ElementsAre;

// Of 4, 4, 100 and 2 elements.
std::vector<TensorSpec> specs() {
  return {{"z", Role::kEmbedding, -1, 2, 2, false},
          {"b", Role::kQuery, 0, 2, 2, false},
          {"large", Role::kKey, 0, 10, 10, false},
          {"n", Role::kFinalNorm, 1, 1, 2, true}};
}

TEST(ShardPlan, OneFileWhenAllFits) {
  const auto all = specs();
  const ShardPlan plan = plan_shards(all, DType::kBF16, 220);
  ASSERT_EQ(plan.shards.size(), 1u);
  EXPECT_EQ(plan.shards[0].file, "model.safetensors");
  EXPECT_THAT(plan.shards[0].tensors, ElementsAre(0u, 1u, 2u, 3u));
  EXPECT_EQ(plan.total_bytes, 220);
  EXPECT_EQ(plan.index_text, "");
}

TEST(ShardPlan, FillsShardsInOrderAndGivesALargeTensorItsOwn) {
  const auto all = specs();
  const ShardPlan plan = plan_shards(all, DType::kF32, 32);
  ASSERT_EQ(plan.shards.size(), 3u);
  EXPECT_THAT(plan.shards[0].tensors, ElementsAre(0u, 1u));
  EXPECT_THAT(plan.shards[1].tensors, ElementsAre(2u));
  EXPECT_THAT(plan.shards[2].tensors, ElementsAre(3u));
  EXPECT_EQ(plan.shards[0].file, "model-00001-of-00003.safetensors");
  EXPECT_EQ(plan.shards[2].file, "model-00003-of-00003.safetensors");
  EXPECT_EQ(plan.shards[1].bytes, 400);
}

TEST(ShardPlan, IndexIsReadBackByItsReader) {
  const auto all = specs();
  const ShardPlan plan = plan_shards(all, DType::kBF16, 16);
  const auto index = io::parse_index(plan.index_text, "index");
  ASSERT_TRUE(index.ok()) << index.error().message();
  EXPECT_EQ(index->total_size, 220u);
  EXPECT_EQ(index->files[index->weight_map.at("large")], "model-00002-of-00003.safetensors");
  EXPECT_EQ(index->files[index->weight_map.at("z")], "model-00001-of-00003.safetensors");
  EXPECT_EQ(Json::parse(plan.index_text)["metadata"]["total_parameters"], 110);
}

TEST(ShardPlan, TensorsAreWrittenInTheirFileShapes) {
  const auto all = specs();
  const ShardPlan plan = plan_shards(all, DType::kF32, 1000);
  const auto tensors = tensor_plans(plan.shards[0], all, DType::kF32);
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_THAT(tensors[2].shape, ElementsAre(10, 10));
  EXPECT_THAT(tensors[3].shape, ElementsAre(2)) << "a vector has one dimension";
  EXPECT_EQ(tensors[3].dtype, DType::kF32);
}

}  // namespace
}  // namespace amxt::model
