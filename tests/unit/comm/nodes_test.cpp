#include "comm/nodes.h"

#include <gtest/gtest.h>

#include <vector>

namespace amxt::comm {
namespace {

using Matrix = std::vector<std::vector<bool>>;

// Those of one letter are near to each other.
Matrix near_by(const std::string& letters) {
  Matrix near(letters.size(), std::vector<bool>(letters.size()));
  for (size_t a = 0; a < letters.size(); ++a) {
    for (size_t b = 0; b < letters.size(); ++b) near[a][b] = letters[a] == letters[b];
  }
  return near;
}

TEST(Nodes, AreNumberedByTheirLowestRanks) {
  EXPECT_EQ(join_near_ranks(near_by("bbaa")), (std::vector<int>{0, 0, 1, 1}));
  EXPECT_EQ(join_near_ranks(near_by("xyxzyyz")), (std::vector<int>{0, 1, 0, 2, 1, 1, 2}));
  EXPECT_EQ(join_near_ranks(near_by("a")), std::vector<int>{0});
}

TEST(Nodes, OnlyWhatBothSayCounts) {
  Matrix near = near_by("aa");
  near[0][1] = false;
  EXPECT_EQ(join_near_ranks(near), (std::vector<int>{0, 1}));
}

TEST(Nodes, ARankJoinsOnlyWhereAllAreNear) {
  Matrix near = near_by("aaa");
  near[1][2] = near[2][1] = false;
  EXPECT_EQ(join_near_ranks(near), (std::vector<int>{0, 0, 1}));
}

TEST(Nodes, LocalRanksFollowTheOrderOfRanks) {
  const Nodes nodes = Nodes::of({0, 1, 0, 2, 1, 1, 2});
  EXPECT_EQ(nodes.count(), 3);
  EXPECT_EQ(nodes.on(1), (std::vector<int>{1, 4, 5}));
  EXPECT_EQ(nodes.leader(2), 3);
  EXPECT_EQ(nodes.local_of(5), 2);
  EXPECT_EQ(nodes.local_size(0), 2);
  EXPECT_EQ(nodes.node_of(6), 2);
}

}  // namespace
}  // namespace amxt::comm
