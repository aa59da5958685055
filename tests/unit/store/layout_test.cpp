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

class LayoutTest : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  // In the order of bf16 weights of this model.
  const model::ModelConfig config_ = config_of(std::get<0>(GetParam()));
  const int owners_ = std::get<1>(GetParam());
  const Layout layout_{config_, owners_, Layout::order_for(config_, true)};
};

TEST_P(LayoutTest, EveryElementHasOneOwnerAndOnePlace) {
  const Layout& layout = layout_;
  const int owners = owners_;
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
    const model::TensorSpec& spec = layout.specs()[tensor];
    for (int64_t element = 0; element < spec.elements(); element += 7) {
      const Place place = layout.locate(static_cast<int64_t>(tensor), element / spec.columns,
                                        element % spec.columns);
      EXPECT_TRUE(shared.insert(place.shared_offset).second);
      EXPECT_TRUE(own.insert({place.owner, place.private_offset}).second);
      EXPECT_LT(place.shared_offset, layout.shared_elements());
      EXPECT_LT(place.private_offset, layout.private_elements(place.owner));
    }
  }
}

TEST_P(LayoutTest, DealsTogetherAreAllRanges) {
  const Layout& layout = layout_;
  for (int owner = 0; owner < owners_; ++owner) {
    size_t count = 0;
    for (int64_t deal = 0; deal < layout.deals(); ++deal)
      count += layout.ranges(owner, deal).size();
    EXPECT_EQ(count, layout.ranges(owner, -1).size());
  }
}

TEST_P(LayoutTest, QkvAndGateUpAreOneMatrixEach) {
  const Layout& layout = layout_;
  const model::ModelConfig& config = config_;
  using model::Role;
  const auto offset = [&](Role role) { return layout.shared_offset(layout.find(role, 0)); };
  EXPECT_EQ(offset(Role::kKey), offset(Role::kQuery) + config.query_size() * config.hidden_size);
  EXPECT_EQ(offset(Role::kValue), offset(Role::kKey) + config.kv_size() * config.hidden_size);
  EXPECT_EQ(offset(Role::kUp), offset(Role::kGate) + config.intermediate_size * config.hidden_size);
  EXPECT_EQ(offset(Role::kQuery) % 64, 0);
}

INSTANTIATE_TEST_SUITE_P(Worlds, LayoutTest,
                         testing::Combine(testing::Values("llama3_1", "odd", "llama_bias", "qwen3",
                                                          "even_llama", "even_qwen3"),
                                          testing::Values(1, 2, 3, 4, 7, 8)));

// A panel is where it would be row-major, so that whoever handles whole panels need not know.
TEST(Layout, PanelsOfBothOrdersAreInOnePlace) {
  for (const char* name : {"even_llama", "even_qwen3"}) {
    const model::ModelConfig config = config_of(name);
    for (const int owners : {1, 3, 8}) {
      const Layout plain(config, owners), blocked(config, owners, Layout::Order::kBlocked);
      int64_t places = 0, permuted = 0;
      for (size_t i = 0; i < plain.specs().size(); ++i) {
        const auto tensor = static_cast<int64_t>(i);
        // Vectors, and an embedding that no product reads.
        const bool stays =
            plain.spec(tensor).vector || (tensor == plain.embedding() && !plain.tied());
        EXPECT_EQ(blocked.is_blocked(tensor), !stays) << plain.spec(tensor).name;
        EXPECT_FALSE(plain.is_blocked(tensor));
        const int64_t before = plain.shared_offset(tensor), now = blocked.shared_offset(tensor);
        for (int64_t row = 0; row < plain.spec(tensor).rows; row += kPanelRows) {
          const Place from = plain.locate(tensor, row, 0), to = blocked.locate(tensor, row, 0);
          EXPECT_EQ(from.owner, to.owner);
          EXPECT_EQ(from.shared_offset - before, to.shared_offset - now);
          ++places;
        }
        if (!stays) {
          permuted += blocked.locate(tensor, 1, 0).shared_offset - now == 2;
          EXPECT_EQ(blocked.stored_elements(tensor, 33), 64 * plain.spec(tensor).columns);
        }
      }
      EXPECT_GT(places, 20);
      EXPECT_GT(permuted, 10);
      EXPECT_GE(blocked.shared_elements(), plain.shared_elements());
    }
  }
}

TEST(Layout, SaysWhyWeightsAreRowMajor) {
  std::string why;
  EXPECT_EQ(Layout::order_for(config_of("even_llama"), true, &why), Layout::Order::kBlocked);
  EXPECT_EQ(why, "");
  EXPECT_EQ(Layout::order_for(config_of("even_llama"), false, &why), Layout::Order::kRowMajor);
  EXPECT_EQ(why, "the weights are fp32");
  EXPECT_EQ(Layout::order_for(config_of("llama3_1"), true, &why), Layout::Order::kRowMajor);
  EXPECT_EQ(why, "the intermediate_size, 56, is no multiple of 32");
  EXPECT_EQ(Layout::order_for(config_of("odd"), true, &why), Layout::Order::kRowMajor);
  EXPECT_EQ(why, "the hidden_size, 80, is no multiple of 32");
}

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
