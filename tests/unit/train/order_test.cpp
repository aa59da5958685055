#include "train/order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace amxt::train {
namespace {

std::vector<int64_t> epoch_of(int64_t samples, uint64_t seed, int64_t epoch) {
  const SampleOrder order(samples, seed);
  std::vector<int64_t> all(static_cast<size_t>(samples));
  for (int64_t i = 0; i < samples; ++i) {
    all[static_cast<size_t>(i)] = order.sample(epoch * samples + i);
  }
  return all;
}

TEST(SampleOrder, TakesEachSampleOnceAnEpoch) {
  for (const int64_t samples : {1, 2, 3, 4, 5, 16, 17, 1000, 4096, 4097}) {
    for (const uint64_t seed : {uint64_t{0}, uint64_t{42}, ~uint64_t{0}}) {
      for (const int64_t epoch : {0, 1, 7}) {
        std::vector<int64_t> seen = epoch_of(samples, seed, epoch);
        std::sort(seen.begin(), seen.end());
        std::vector<int64_t> expected(static_cast<size_t>(samples));
        std::iota(expected.begin(), expected.end(), 0);
        EXPECT_EQ(seen, expected) << samples << " samples, seed " << seed << ", epoch " << epoch;
      }
    }
  }
}

TEST(SampleOrder, DiffersByEpochAndBySeed) {
  EXPECT_NE(epoch_of(1000, 42, 0), epoch_of(1000, 42, 1));
  EXPECT_NE(epoch_of(1000, 42, 1), epoch_of(1000, 42, 2));
  EXPECT_NE(epoch_of(1000, 42, 0), epoch_of(1000, 43, 0));
  // An epoch of one seed is no epoch of the next.
  EXPECT_NE(epoch_of(1000, 42, 1), epoch_of(1000, 43, 0));
}

TEST(SampleOrder, MovesNearlyEverySample) {
  const std::vector<int64_t> order = epoch_of(4096, 42, 0);
  int64_t fixed = 0;
  int64_t neighbours = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    fixed += order[i] == static_cast<int64_t>(i);
    if (i > 0) neighbours += std::abs(order[i] - order[i - 1]) == 1;
  }
  // A random permutation has one fixed point and two pairs of neighbours on average.
  EXPECT_LT(fixed, 12);
  EXPECT_LT(neighbours, 16);
}

TEST(SampleOrder, SpreadsTheFirstSampleEvenlyOverSeeds) {
  std::vector<int> first(10);
  for (uint64_t seed = 0; seed < 10000; ++seed) {
    ++first[static_cast<size_t>(SampleOrder(10, seed).sample(0))];
  }
  for (const int count : first) EXPECT_NEAR(count, 1000, 160);
}

TEST(SampleOrder, CountsEpochsAndRunsThemBackToBack) {
  const SampleOrder order(10, 42);
  EXPECT_EQ(order.epoch(0), 0);
  EXPECT_EQ(order.epoch(9), 0);
  EXPECT_EQ(order.epoch(10), 1);
  EXPECT_EQ(order.sample(13), epoch_of(10, 42, 1)[3]);
}

TEST(SampleOrder, ReachesFarIndicesAndLargeSets) {
  const int64_t samples = (int64_t{1} << 62) + 12345;
  const int64_t sample = SampleOrder(samples, 1).sample(samples - 1);
  EXPECT_GE(sample, 0);
  EXPECT_LT(sample, samples);
}

// These are the algorithm "feistel-1": a checkpoint of any version resumes in this order.
TEST(SampleOrder, IsTheOrderThatCheckpointsWereMadeWith) {
  EXPECT_STREQ(kOrderName, "feistel-1");
  const auto expect = [](int64_t samples, uint64_t seed, int64_t from,
                         const std::vector<int64_t>& golden) {
    const SampleOrder order(samples, seed);
    for (size_t i = 0; i < golden.size(); ++i) {
      EXPECT_EQ(order.sample(from + static_cast<int64_t>(i)), golden[i])
          << samples << " samples, seed " << seed << ", index " << from + static_cast<int64_t>(i);
    }
  };
  expect(1, 42u, 0, {0, 0, 0});
  expect(2, 42u, 0, {0, 1, 0, 1, 0, 1});
  expect(3, 42u, 0, {2, 1, 0, 0, 2, 1, 0, 1, 2});
  expect(17, 42u, 0, {15, 14, 4, 10, 6, 12, 5, 7, 9, 2, 11, 1, 3, 16, 0, 13, 8});
  expect(1000, 42u, 0, {382, 145, 226, 893, 552, 422, 131, 209, 420, 396, 573, 454});
  expect(1000, 7u, 1000, {760, 466, 132, 637, 863, 819, 698, 220, 61, 687, 503, 458});
  expect(4096, 18446744073709551615u, 8190,
         {2092, 3029, 2781, 1389, 2218, 3257, 3952, 78, 14, 3737});
  expect(1099511627777, 42u, 0, {37359538977, 244404556004, 543023746940, 1053129988282});
}

}  // namespace
}  // namespace amxt::train
