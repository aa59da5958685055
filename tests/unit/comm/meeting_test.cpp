#include "comm/meeting.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace amxt::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string packed(const std::vector<std::string>& payloads) { return pack_payloads(payloads); }

TEST(Payloads, AreReadAsTheyWerePacked) {
  const std::vector<std::string> payloads = {"", "a", std::string("\0b", 2), std::string(70, 'x')};
  EXPECT_EQ(unpack_payloads(packed(payloads), 4), payloads);
  EXPECT_EQ(packed({"", "", ""}), "");
  EXPECT_EQ(unpack_payloads("", 3), (std::vector<std::string>(3)));
}

TEST(Payloads, AnythingElseIsNone) {
  const std::string good = packed({"one", "two"});
  for (size_t length = 1; length < good.size(); ++length)
    EXPECT_FALSE(unpack_payloads(good.substr(0, length), 2)) << length;
  EXPECT_FALSE(unpack_payloads(good + "x", 2));
  EXPECT_FALSE(unpack_payloads(good, 1));
  EXPECT_FALSE(unpack_payloads(good, 3));
  EXPECT_FALSE(unpack_payloads(std::string(4, '\xFF') + "x", 1));
  const std::string over = packed({std::string(ControlSegment::kMaxPayload + 1, 'x')});
  EXPECT_FALSE(unpack_payloads(over, 1));
}

// Ranks 0 and 2 on node 0, 1 and 3 on node 1.
class MeetingOfTwoNodes : public testing::Test {
 protected:
  Status arrive(int rank, uint64_t number, Collective collective = Collective::kBarrier,
                const std::string& payloads = {}) {
    return meeting_.arrive(rank, collective, number, payloads);
  }
  const Nodes nodes_ = Nodes::of({0, 1, 0, 1});
  std::vector<std::pair<uint64_t, std::string>> opened_;
  Meeting meeting_{nodes_, [](int rank) { return fmt::format("rank {}", rank); },
                   [this](uint64_t number, const std::string& payloads) {
                     opened_.emplace_back(number, payloads);
                   }};
};

TEST_F(MeetingOfTwoNodes, OpensWhenAllNodesAreThere) {
  ASSERT_TRUE(arrive(3, 1));
  EXPECT_TRUE(opened_.empty());
  ASSERT_TRUE(arrive(0, 1));
  ASSERT_EQ(opened_.size(), 1u);
  EXPECT_EQ(opened_[0].first, 1u);
  ASSERT_TRUE(arrive(2, 2));
  ASSERT_TRUE(arrive(1, 2));
  EXPECT_EQ(opened_.size(), 2u);
  EXPECT_EQ(meeting_.close(), 2u);
}

TEST_F(MeetingOfTwoNodes, GivesEveryonesPayloadByRank) {
  ASSERT_TRUE(arrive(3, 1, Collective::kExchange, packed({"one", "three"})));
  ASSERT_TRUE(arrive(2, 1, Collective::kExchange, packed({"zero", "two"})));
  ASSERT_EQ(opened_.size(), 1u);
  EXPECT_EQ(unpack_payloads(opened_[0].second, 4),
            (std::vector<std::string>{"zero", "one", "two", "three"}));
}

TEST_F(MeetingOfTwoNodes, NothingOpensBehindTheClose) {
  ASSERT_TRUE(arrive(0, 1));
  EXPECT_EQ(meeting_.close(), 0u);
  EXPECT_TRUE(arrive(1, 1));
  EXPECT_TRUE(opened_.empty());
  EXPECT_FALSE(meeting_.give_up(1, 1, "a barrier", Code::kCommTimeout));
}

TEST_F(MeetingOfTwoNodes, DifferentCollectivesAreNamedLowerRankLast) {
  ASSERT_TRUE(arrive(2, 1, Collective::kBarrier));
  const auto status = arrive(1, 1, Collective::kExchange);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kCommProtocol);
  EXPECT_EQ(status.error().rank(), 2);
  EXPECT_EQ(status.error().message(), "rank 2 is in barrier while rank 1 is in exchange");
  EXPECT_TRUE(opened_.empty());
}

TEST_F(MeetingOfTwoNodes, AnArrivalThatMakesNoSenseIsNamed) {
  EXPECT_EQ(arrive(1, 2).error().code(), Code::kCommProtocol);
  EXPECT_EQ(arrive(1, 1, Collective::kExchange, "x").error().code(), Code::kCommProtocol);
  ASSERT_TRUE(arrive(1, 1));
  const auto again = arrive(3, 1);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().rank(), 3);
}

TEST_F(MeetingOfTwoNodes, WhoGivesUpNamesThoseThatAreNotThere) {
  ASSERT_TRUE(arrive(0, 1));
  meeting_.waits(3, 1);
  const auto error = meeting_.give_up(3, 1, "a barrier", Code::kCommTimeout);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), Code::kCommTimeout);
  EXPECT_EQ(error->rank(), 1);
  EXPECT_EQ(error->message(), "rank 1 did not arrive at a barrier within the deadline of rank 3");
}

TEST_F(MeetingOfTwoNodes, AWaitForAFormerCollectiveIsNoneForThisOne) {
  for (const int rank : {0, 1, 2, 3}) meeting_.waits(rank, 1);
  ASSERT_TRUE(arrive(0, 1));
  ASSERT_TRUE(arrive(1, 1));
  const auto error = meeting_.give_up(0, 2, "an exchange", Code::kCommTimeout);
  ASSERT_TRUE(error);
  EXPECT_THAT(error->message(), HasSubstr("rank 1, rank 2, rank 3 did not arrive at an exchange"));
}

TEST_F(MeetingOfTwoNodes, WhatHasOpenedCannotBeGivenUp) {
  ASSERT_TRUE(arrive(0, 1));
  ASSERT_TRUE(arrive(1, 1));
  EXPECT_FALSE(meeting_.give_up(1, 1, "a barrier", Code::kCancelled));
  const auto error = meeting_.give_up(1, 2, "a barrier", Code::kCancelled);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), Code::kCommAborted);
  EXPECT_THAT(error->message(), HasSubstr("rank 1 cancelled its wait"));
}

}  // namespace
}  // namespace amxt::comm
