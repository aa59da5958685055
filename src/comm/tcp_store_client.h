// TcpStoreClient: one connection to a c10d TCPStore, torchrun's or our own server.
//
// Not thread-safe. Invariant: one request at a time; after an error other than a timed-out wait the connection is closed and every
// later call says so. Errors name the address.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/secret.h"
#include "comm/socket.h"

namespace amxt::comm {

class TcpStoreClient {
 public:
  struct Options {
    int64_t ping_timeout_ns =
        5'000'000'000;  // a store that accepts and is silent this long is none
    int64_t reply_timeout_ns = 30'000'000'000;  // of any request but a wait
    Secret secret;  // none: a plain store; else one that proves it and is proven it
  };
  // Where the store is, asked again before every attempt; kNotFound is worth another one.
  using FindAddresses = std::function<Result<std::vector<Address>>(Deadline deadline)>;

  // Tries again, with growing pauses, until the deadline. Errors: nothing listens (kTimeout), accepts and never answers (kTimeout),
  // answers something else (kCommProtocol), an unknown host (kNotFound), another secret here or none (kMismatch),
  // none there (kUnsupported); these at once.
  static Result<std::unique_ptr<TcpStoreClient>> connect(const FindAddresses& find_addresses,
                                                         Deadline deadline, const Options& options);
  static Result<std::unique_ptr<TcpStoreClient>> connect(const std::string& host, int port,
                                                         Deadline deadline);
  static Result<std::unique_ptr<TcpStoreClient>> connect(const std::string& host, int port,
                                                         Deadline deadline, const Options& options);

  Status set(std::string_view key, std::string_view value, Deadline deadline);
  // Waits for the key, then reads it. kTimeout (the connection stays usable) when it does not appear.
  Result<std::string> get(std::string_view key, Deadline deadline);
  // The value if it is there now.
  Result<std::optional<std::string>> find(std::string_view key, Deadline deadline);
  Status wait(std::span<const std::string> keys, Deadline deadline);
  Result<bool> check(std::span<const std::string> keys, Deadline deadline);
  Result<int64_t> add(std::string_view key, int64_t amount, Deadline deadline);
  // Stores `desired` when the key holds `expected` (or is missing and `expected` is empty); what the key holds then.
  Result<std::string> compare_set(std::string_view key, std::string_view expected,
                                  std::string_view desired, Deadline deadline);
  Result<bool> remove(std::string_view key, Deadline deadline);
  Result<int64_t> key_count(Deadline deadline);

  const std::string& address() const { return address_; }

 private:
  TcpStoreClient(Descriptor socket, std::string address, const Options& options)
      : socket_(std::move(socket)), address_(std::move(address)), options_(options) {}

  static Result<std::unique_ptr<TcpStoreClient>> try_connect(const Address& address,
                                                             Deadline deadline,
                                                             const Options& options);
  Status greet(Deadline deadline);
  Status prove(Deadline deadline);
  Status ping(Deadline deadline);
  Status send(std::string_view request, Deadline deadline);
  Status receive(char* bytes, size_t count, Deadline deadline);
  template <typename Integer>
  Result<Integer> receive_integer(Deadline deadline);
  Result<std::string> receive_string(Deadline deadline);
  Status cancel_wait();
  // The connection is not in step any more: closes it and passes the error on, with the address.
  Error broken(Error error);
  Deadline reply_by(Deadline deadline) const {
    return deadline.earlier(Deadline::after(options_.reply_timeout_ns));
  }

  Descriptor socket_;
  std::string address_;
  Options options_;
};

}  // namespace amxt::comm
