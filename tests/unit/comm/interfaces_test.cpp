#include "comm/interfaces.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace amxt::comm::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Address at(const std::string& ip) { return (*resolve(ip, 29500))[0]; }

TEST(Interfaces, TheLoopbackInterfaceIsThere) {
  const auto all = interfaces();
  ASSERT_TRUE(all) << all.error().message();
  const auto found = std::find_if(all->begin(), all->end(),
                                  [](const Interface& each) { return each.name == "lo"; });
  ASSERT_NE(found, all->end());
  EXPECT_TRUE(found->is_loopback);
  EXPECT_TRUE(found->is_up);
  ASSERT_FALSE(found->addresses.empty());
  EXPECT_EQ(found->addresses.front().ip(), "127.0.0.1");
  EXPECT_EQ(found->addresses.front().text, "127.0.0.1:0");
}

TEST(Interfaces, EachIsThereOnceAndTellsNoLinkLocalAddress) {
  const auto all = interfaces();
  ASSERT_TRUE(all) << all.error().message();
  std::vector<std::string> names;
  for (const Interface& interface : *all) {
    EXPECT_EQ(std::count(names.begin(), names.end(), interface.name), 0) << interface.name;
    names.push_back(interface.name);
    bool was_ipv6 = false;
    for (const Address& address : interface.addresses) {
      EXPECT_FALSE(address.ip().starts_with("fe80:")) << interface.name;
      EXPECT_FALSE(was_ipv6 && address.family() == AF_INET) << "IPv6 before IPv4";
      was_ipv6 = address.family() == AF_INET6;
    }
  }
}

TEST(Interfaces, AnInterfaceThatIsNotThereIsNamedWithThoseThatAre) {
  EXPECT_EQ(interface_named("lo")->name, "lo");
  const auto none = interface_named("eth\n0");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code(), Code::kNotFound);
  EXPECT_THAT(none.error().message(),
              AllOf(HasSubstr("AMXTRAIN_SOCKET_IFNAME='eth\\x0a0'"), HasSubstr("lo")));
}

TEST(Interfaces, LoopbackIsTold) {
  for (const char* ip : {"127.0.0.1", "127.0.1.1", "127.255.255.254", "::1", "::ffff:127.0.1.1"}) {
    EXPECT_TRUE(is_loopback(at(ip))) << ip;
  }
  for (const char* ip : {"10.0.0.1", "128.0.0.1", "126.255.255.255", "0.0.0.0", "::", "fd00::1",
                         "::ffff:10.0.0.1"}) {
    EXPECT_FALSE(is_loopback(at(ip))) << ip;
  }
}

TEST(Interfaces, TheRouteToAnAddressOfThisMachineComesFromItself) {
  EXPECT_EQ(address_towards(at("127.0.0.1"))->text, "127.0.0.1:0");
  const auto all = interfaces();
  ASSERT_TRUE(all) << all.error().message();
  for (const Interface& interface : *all) {
    for (const Address& own : interface.addresses) {
      if (!interface.is_up || own.family() != AF_INET) continue;
      const auto towards = address_towards(own);
      ASSERT_TRUE(towards) << towards.error().message();
      EXPECT_EQ(towards->ip(), own.ip());
    }
  }
}

TEST(Interfaces, WithoutARouteTheHostIsNamed) {
  const auto none = address_towards(at("255.255.255.255"));  // datagrams to all need a permission
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message(), HasSubstr("no route to 255.255.255.255"));
}

TEST(Interfaces, AnInterfaceThatIsGivenComesBeforeTheRoute) {
  EXPECT_EQ(own_address("lo", at("10.0.0.1"))->ip(), "127.0.0.1");
  EXPECT_EQ(own_address("", at("127.0.0.1"))->ip(), "127.0.0.1");
  EXPECT_FALSE(own_address("none", at("127.0.0.1")));
}

}  // namespace
}  // namespace amxt::comm::test
