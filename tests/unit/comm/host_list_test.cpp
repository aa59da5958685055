#include "comm/host_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace amxt::comm::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

std::vector<std::string> hosts(const std::string& list) {
  auto expanded = expand_host_list(list);
  EXPECT_TRUE(expanded) << expanded.error().message();
  return expanded ? *std::move(expanded) : std::vector<std::string>();
}

TEST(HostList, NamesAndRanges) {
  EXPECT_THAT(hosts("n1"), ElementsAre("n1"));
  EXPECT_THAT(hosts("n1,m2"), ElementsAre("n1", "m2"));
  EXPECT_THAT(hosts("n[1-2]"), ElementsAre("n1", "n2"));
  EXPECT_THAT(hosts("n[10,20-22],m1"), ElementsAre("n10", "n20", "n21", "n22", "m1"));
  EXPECT_THAT(hosts("m1,n[3,1]"), ElementsAre("m1", "n3", "n1")) << "the list's order counts";
  EXPECT_THAT(hosts("node-a.rack_1.example"), ElementsAre("node-a.rack_1.example"));
  EXPECT_THAT(hosts("n[7-7]"), ElementsAre("n7"));
}

TEST(HostList, ZerosInFrontStay) {
  EXPECT_THAT(hosts("n[08-10]"), ElementsAre("n08", "n09", "n10"));
  EXPECT_THAT(hosts("n[098-101]"), ElementsAre("n098", "n099", "n100", "n101"));
  EXPECT_THAT(hosts("n[01,2,003]"), ElementsAre("n01", "n2", "n003"));
  EXPECT_THAT(hosts("n[9-10]"), ElementsAre("n9", "n10"));
  EXPECT_THAT(hosts("n[00]"), ElementsAre("n00"));
}

TEST(HostList, SeveralBracketsAndTextBehind) {
  EXPECT_THAT(hosts("rack[0-1]n[01-02]"),
              ElementsAre("rack0n01", "rack0n02", "rack1n01", "rack1n02"));
  EXPECT_THAT(hosts("n[1-2]-ib0,m"), ElementsAre("n1-ib0", "n2-ib0", "m"));
  EXPECT_THAT(hosts("[1-2]"), ElementsAre("1", "2"));
}

TEST(HostList, WhatIsNoListIsNamed) {
  for (const char* list : {"",
                           ",",
                           "n1,",
                           ",n1",
                           "n1,,n2",
                           "n[",
                           "n[]",
                           "n]",
                           "n[1",
                           "n[1-",
                           "n[1-]",
                           "n[-1]",
                           "n[2-1]",
                           "n[1,]",
                           "n[,1]",
                           "n[1-2-3]",
                           "n[a]",
                           "n[1 ]",
                           "n 1",
                           "n\n",
                           "n[1]]",
                           "n[[1]]",
                           "n[1-2](x2)",
                           "n[0x1]",
                           "n[9999999999]",
                           "n[1-18446744073709551616]"}) {
    const auto refused = expand_host_list(list);
    ASSERT_FALSE(refused) << list;
    EXPECT_EQ(refused.error().code(), Code::kFormat) << list;
    EXPECT_THAT(refused.error().message(), HasSubstr("is no list of hosts"));
    EXPECT_EQ(refused.error().message().find('\n'), std::string::npos);
  }
  EXPECT_FALSE(expand_host_list(std::string("n\0m", 3)));
  EXPECT_FALSE(expand_host_list(std::string(256, 'n')));
  EXPECT_TRUE(expand_host_list(std::string(255, 'n')));
}

TEST(HostList, IsBounded) {
  EXPECT_THAT(hosts("n[1-65536]"), SizeIs(65536));
  EXPECT_THAT(hosts("n[0-255]x[0-255]"), SizeIs(65536));
  for (const char* list : {"n[1-65537]", "n[0-999999999]", "n[1-65536],m", "n[0-255]x[0-255]y[0-1]",
                           "n[0-65535]x[0-65535]x[0-65535]x[0-65535]", "n[1-40000,1-40000]"}) {
    const auto refused = expand_host_list(list);
    ASSERT_FALSE(refused) << list;
    EXPECT_EQ(refused.error().code(), Code::kLimit) << list;
  }
}

TEST(HostList, AnyTextGivesNamesOrAnError) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::string alphabet = "n1-09[],.";
  for (int round = 0; round < 20000; ++round) {
    std::string list;
    for (size_t i = random() % 12; i > 0; --i) list += alphabet[random() % alphabet.size()];
    const auto expanded = expand_host_list(list);
    if (!expanded) continue;
    ASSERT_FALSE(expanded->empty()) << list;
    for (const std::string& host : *expanded) {
      ASSERT_FALSE(host.empty()) << list;
      ASSERT_EQ(host.find_first_of("[],"), std::string::npos) << list;
    }
  }
}

}  // namespace
}  // namespace amxt::comm::test
