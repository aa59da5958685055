#include "model/directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace amxt::model {
namespace {

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, OpensWithEveryTensorFound) {
  auto model = ModelDirectory::open(std::string(AMXT_TEST_GOLDEN_DIR) + "/" + GetParam());
  ASSERT_TRUE(model.ok()) << model.error().message();
  EXPECT_THAT(model->warnings(), testing::IsEmpty());
  for (size_t i = 0; i < model->specs().size(); ++i) {
    ASSERT_NE(model->location(i).entry, nullptr) << model->specs()[i].name;
    EXPECT_EQ(model->location(i).entry->elements(), model->specs()[i].elements());
  }
}

INSTANTIATE_TEST_SUITE_P(All, Golden,
                         testing::Values("llama2", "llama3_1", "llama3_2", "llama_bias",
                                         "llama_head_dim", "llama_linear", "mistral", "odd",
                                         "qwen2", "qwen3", "smollm2"),
                         [](const auto& golden) { return std::string(golden.param); });

}  // namespace
}  // namespace amxt::model
