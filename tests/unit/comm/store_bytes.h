// Requests to a store, byte by byte.
#pragma once

#include <cstdint>
#include <string>

#include "comm/tcp_store_protocol.h"

namespace amxt::comm::test {

// A client's greeting, as torch's own test of the protocol expects it.
inline const std::string kHello("\x00\xce\xf7\x85\x3c", 5);

inline std::string u64(uint64_t value) {
  std::string bytes;
  append_integer(&bytes, value);
  return bytes;
}

inline std::string text(const std::string& value) { return u64(value.size()) + value; }

}  // namespace amxt::comm::test
