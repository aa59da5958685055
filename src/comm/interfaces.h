// Interfaces: the network interfaces of this machine (of this network namespace), their addresses, and which one leads to a host.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "comm/socket.h"

namespace amxt::comm {

struct Interface {
  std::string name;
  bool is_up = false;
  bool is_loopback = false;
  // IPv4 before IPv6, port 0. Link-local addresses of IPv6 are left out: they mean nothing on another machine.
  std::vector<Address> addresses;
};

// All of them, in the kernel's order.
Result<std::vector<Interface>> interfaces();

// kNotFound, with the names that there are, when there is none of that name or it has no address. `variable` is what names it.
Result<Interface> interface_named(std::string_view name,
                                  std::string_view variable = "AMXTRAIN_SOCKET_IFNAME");

// 0.0.0.0 or ::, every address of a machine when listened at.
bool is_wildcard(const Address& address);

// 127.0.0.0/8 or ::1, also when written as IPv6: reached from this machine alone.
bool is_loopback(const Address& address);

// The address of this machine, port 0, that a connection to `host` would come from. Nothing is sent.
Result<Address> address_towards(const Address& host);

// The address that other machines reach this one at: of the interface with that name (AMXTRAIN_SOCKET_IFNAME) where one is given, the
// family of `host` first; else the one towards `host`.
Result<Address> own_address(std::string_view interface, const Address& host);

}  // namespace amxt::comm
