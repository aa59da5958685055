#include "store/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "model/config.h"

namespace amxt::store {
namespace {

model::ModelConfig config_of(const std::string& name) {
  return model::read_config(std::string(AMXT_TEST_GOLDEN_DIR) + "/" + name).value();
}

class LayoutTest : public testing::TestWithParam<std::tuple<std::string, int>> {};

TEST_P(LayoutTest, EveryElementHasOneOwnerAndOnePlace) {
  const auto [name, owners] = GetParam();
  const model::ModelConfig config = config_of(name);
  const Layout layout(config, owners);
  // Rows: each of each tensor in exactly one range.
  for (size_t tensor = 0; tensor < layout.specs().size(); ++tensor) {
    std::vector<int> owned(static_cast<size_t>(layout.specs()[tensor].rows));
    for (int owner = 0; owner < owners; ++owner) {
      for (const OwnedRange& range : layout.ranges(owner, -1)) {
        if (range.tensor != static_cast<int64_t>(tensor)) continue;
        EXPECT_EQ(range.row_begin % kPanelRows, 0);
        for (int64_t row = range.row_begin; row < range.row_end; ++row)
          ++owned[static_cast<size_t>(row)];
      }
    }
    EXPECT_EQ(owned, std::vector<int>(owned.size(), 1)) << layout.specs()[tensor].name;
  }
  // Places: no two elements share one.
  std::set<int64_t> shared;
  std::set<std::pair<int, int64_t>> own;
  for (size_t tensor = 0; tensor < layout.specs().size(); ++tensor) {
    for (int64_t row = 0; row < layout.specs()[tensor].rows; row += 7) {
      const Place place = layout.locate(static_cast<int64_t>(tensor), row, 0);
      EXPECT_TRUE(shared.insert(place.shared_offset).second);
      EXPECT_TRUE(own.insert({place.owner, place.private_offset}).second);
      EXPECT_LT(place.shared_offset, layout.shared_elements());
      EXPECT_LT(place.private_offset, layout.private_elements(place.owner));
    }
  }
}

TEST_P(LayoutTest, DealsTogetherAreAllRanges) {
  const auto [name, owners] = GetParam();
  const Layout layout(config_of(name), owners);
  for (int owner = 0; owner < owners; ++owner) {
    size_t count = 0;
    for (int64_t deal = 0; deal < layout.deals(); ++deal)
      count += layout.ranges(owner, deal).size();
    EXPECT_EQ(count, layout.ranges(owner, -1).size());
  }
}

TEST_P(LayoutTest, QkvAndGateUpAreOneMatrixEach) {
  const auto [name, owners] = GetParam();
  const model::ModelConfig config = config_of(name);
  const Layout layout(config, owners);
  using model::Role;
  const auto offset = [&](Role role) { return layout.shared_offset(layout.find(role, 0)); };
  EXPECT_EQ(offset(Role::kKey), offset(Role::kQuery) + config.query_size() * config.hidden_size);
  EXPECT_EQ(offset(Role::kValue), offset(Role::kKey) + config.kv_size() * config.hidden_size);
  EXPECT_EQ(offset(Role::kUp), offset(Role::kGate) + config.intermediate_size * config.hidden_size);
  EXPECT_EQ(offset(Role::kQuery) % 64, 0);
}

INSTANTIATE_TEST_SUITE_P(Worlds, LayoutTest,
                         testing::Combine(testing::Values("llama3_1", "odd", "llama_bias", "qwen3"),
                                          testing::Values(1, 2, 3, 4, 7, 8)));

TEST(LayoutTest, ALargeModelIsDealtOutEvenly) {
  const model::ModelConfig config =
      model::parse_config(model::preset_config("1b").value(), "config.json").value();
  for (int owners : {2, 4, 8}) {
    const Layout layout(config, owners);
    for (int owner = 0; owner < owners; ++owner) {
      const double share = static_cast<double>(layout.private_elements(owner)) * owners /
                           static_cast<double>(model::parameter_count(config));
      EXPECT_NEAR(share, 1.0, 0.02) << "owner " << owner << " of " << owners;
    }
  }
}

}  // namespace
}  // namespace amxt::store
