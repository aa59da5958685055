// The c10d TCPStore protocol, as torch 2.x speaks it. All integers are little-endian; a string is its length in 8 bytes, then its
// bytes; replies come in the order of requests. A connection begins with kValidate and the magic number in one segment.
//
//   kValidate   u32 magic                      -> nothing
//   kSet        key, value                     -> nothing
//   kCompareSet key, expected, desired         -> string: what the key holds then
//   kGet        key                            -> string: the value, empty when missing
//   kAdd        key, i64                       -> i64: the sum, stored as decimal text
//   kCheck      u64 n, n keys                  -> u8: 0 all are there, 1 one is missing
//   kWait       u64 n, n keys                  -> u8: 0, when all are there
//   kKeyCount                                  -> i64
//   kDelete     key                            -> i64: 1, or 0 when it was missing
//   kAppend     key, value                     -> nothing
//   kMultiGet   u64 n, n keys                  -> n strings, empty where missing
//   kMultiSet   u64 n, n times key and value   -> nothing
//   kCancelWait                                -> u8: 1
//   kPing       u32                            -> u32: the same
//   kListKeys                                  -> i64 n, n strings
//   kBarrier    key, i64 world                 -> u8: 0, when it was asked that often with that key
//
// A client with a secret (secret.h) makes the second request one that is ours alone; what follows is as above:
//
//   kProve      32 bytes: the client's challenge -> 32 bytes: the server's; zeros when it has no secret: nothing more is proven
//               32 bytes: the client's answer    -> 32 bytes: the server's; zeros, and the end, when the client's is wrong
//
// A server with a secret answers nothing before, but for a kPing, which gets kStoreAsksForSecret for its echo, and the end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace amxt::comm {

enum class StoreOperation : uint8_t {
  kValidate = 0,
  kSet = 1,
  kCompareSet = 2,
  kGet = 3,
  kAdd = 4,
  kCheck = 5,
  kWait = 6,
  kKeyCount = 7,
  kDelete = 8,
  kAppend = 9,
  kMultiGet = 10,
  kMultiSet = 11,
  kCancelWait = 12,
  kPing = 13,
  kListKeys = 17,
  kBarrier = 18,
  kProve = 0xA5,
};

// What the two sides of kProve prove the knowledge of the secret for.
inline constexpr std::string_view kStorePurpose = "amxtrain store 1";

inline constexpr uint32_t kStoreMagic = 0x3C85F7CE;
inline constexpr uint32_t kStoreAsksForSecret = 0xA5C0DE5E;
inline constexpr size_t kMaxStoreKeyBytes = 8 << 10;
inline constexpr size_t kMaxStoreValueBytes = 8 << 20;
inline constexpr size_t kMaxStoreKeys = 1024;  // in one request

inline constexpr uint8_t kStoreReady = 0, kStoreNotReady = 1;  // replies to kCheck
// To kWait and kBarrier, to kCancelWait.
inline constexpr uint8_t kStoreStopWaiting = 0, kStoreWaitCancelled = 1;

template <typename Integer>
void append_integer(std::string* out, Integer value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out->append(bytes, sizeof value);
}

inline void append_string(std::string* out, std::string_view text) {
  append_integer<uint64_t>(out, text.size());
  out->append(text);
}

inline std::string store_request(StoreOperation operation) {
  return std::string(1, static_cast<char>(operation));
}

}  // namespace amxt::comm
