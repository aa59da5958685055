#include "comm/interfaces.h"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/text.h"

namespace amxt::comm {
namespace {

const in6_addr& ipv6_of(const Address& address) {
  return reinterpret_cast<const sockaddr_in6*>(address.get())->sin6_addr;
}

bool is_link_local(const Address& address) {
  return address.family() == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&ipv6_of(address));
}

}  // namespace

Result<std::vector<Interface>> interfaces() {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return system_error("getifaddrs", errno);
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> list(first, freeifaddrs);
  std::vector<Interface> all;
  for (const ifaddrs* entry = first; entry != nullptr; entry = entry->ifa_next) {
    auto found = std::find_if(all.begin(), all.end(), [&](const Interface& interface) {
      return interface.name == entry->ifa_name;
    });
    if (found == all.end()) {
      found = all.insert(all.end(), Interface());
      found->name = entry->ifa_name;
      found->is_up = (entry->ifa_flags & IFF_UP) != 0;
      found->is_loopback = (entry->ifa_flags & IFF_LOOPBACK) != 0;
    }
    const sockaddr* const address = entry->ifa_addr;
    if (address == nullptr) continue;
    if (address->sa_family != AF_INET && address->sa_family != AF_INET6) continue;
    Address own = address_from(address);
    if (!is_link_local(own)) found->addresses.push_back(std::move(own));
  }
  for (Interface& interface : all) {
    std::stable_partition(interface.addresses.begin(), interface.addresses.end(),
                          [](const Address& address) { return address.family() == AF_INET; });
  }
  return all;
}

Result<Interface> interface_named(std::string_view name, std::string_view variable) {
  AMXT_ASSIGN(std::vector<Interface> all, interfaces());
  std::string names;
  for (Interface& interface : all) {
    if (interface.addresses.empty()) continue;
    if (interface.name == name) return std::move(interface);
    names += (names.empty() ? "" : ", ") + interface.name;
  }
  return Error(Code::kNotFound,
               fmt::format("{}={}: no interface of that name has an address; those that have one: "
                           "{}",
                           variable, quote(name), names.empty() ? "none" : names));
}

bool is_wildcard(const Address& address) {
  if (address.family() == AF_INET6) return IN6_IS_ADDR_UNSPECIFIED(&ipv6_of(address)) != 0;
  const auto* const name = reinterpret_cast<const sockaddr_in*>(address.get());
  return address.family() == AF_INET && name->sin_addr.s_addr == 0;
}

bool is_loopback(const Address& address) {
  constexpr unsigned char kMapped[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127};
  if (address.family() == AF_INET6) {
    const in6_addr& ip = ipv6_of(address);
    return IN6_IS_ADDR_LOOPBACK(&ip) || std::memcmp(&ip, kMapped, sizeof kMapped) == 0;
  }
  const auto* const name = reinterpret_cast<const sockaddr_in*>(address.get());
  return address.family() == AF_INET && ntohl(name->sin_addr.s_addr) >> 24 == 127;
}

Result<Address> address_towards(const Address& host) {
  const auto failed = [&](const char* call) {
    return system_error(fmt::format("no route to {}: {}", host.ip(), call), errno);
  };
  // A datagram socket that is connected has chosen its route; any port but 0 will do.
  const Descriptor socket(::socket(host.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return failed("socket");
  const Address there = host.at_port(9);
  if (::connect(socket.get(), there.get(), there.length) != 0) return failed("connect");
  sockaddr_storage own{};
  socklen_t length = sizeof own;
  if (getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &length) != 0) {
    return failed("getsockname");
  }
  return address_from(reinterpret_cast<const sockaddr*>(&own)).at_port(0);
}

Result<Address> own_address(std::string_view interface, const Address& host) {
  if (interface.empty()) return address_towards(host);
  AMXT_ASSIGN(const Interface named, interface_named(interface));
  const auto same =
      std::find_if(named.addresses.begin(), named.addresses.end(),
                   [&](const Address& address) { return address.family() == host.family(); });
  return same != named.addresses.end() ? *same : named.addresses.front();
}

}  // namespace amxt::comm
