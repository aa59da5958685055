// TcpStoreServer: a c10d TCPStore of our own, for jobs whose launcher runs none: the sockets of a StoreService. One thread; it listens at
// the addresses that it is given and nowhere else.
//
// It trusts nobody: connections are bounded and strangers make way for members, a connection that says something else, stops in the middle
// of a request or does not take its answers is dropped and counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "comm/secret.h"
#include "comm/socket.h"

namespace amxt::comm {

class TcpStoreServer {
 public:
  struct Options {
    int64_t stall_timeout_ns =
        10'000'000'000;  // to validate, to end a request once begun, to take an answer
    size_t max_connections = 512;
    size_t max_stored_bytes = size_t{64} << 20;
    size_t max_held_bytes = size_t{64} << 20;  // requests in part and replies, of all connections
    Secret secret;                             // none: everybody is served
  };

  // At those of the addresses that this machine has, at least one; kExists naming address and port when the port is taken.
  static Result<std::unique_ptr<TcpStoreServer>> start(const std::vector<Address>& addresses,
                                                       const Options& options);
  // At every address of a host name.
  static Result<std::unique_ptr<TcpStoreServer>> start(const std::string& host, int port);
  static Result<std::unique_ptr<TcpStoreServer>> start(const std::string& host, int port,
                                                       const Options& options);
  ~TcpStoreServer();
  TcpStoreServer(const TcpStoreServer&) = delete;
  TcpStoreServer& operator=(const TcpStoreServer&) = delete;

  // Connections dropped so far for what they sent or did not.
  int64_t dropped() const { return counts_.dropped.load(std::memory_order_relaxed); }
  // Those of them that did not prove the secret: strangers, or ranks with another one or none.
  struct Refused {
    int64_t count = 0;
    std::string last_ip;
  };
  Refused refused() const;
  // Connections that wanted a secret proven that is not here, and were told so.
  int64_t asked_for_secret() const {
    return counts_.asked_for_secret.load(std::memory_order_relaxed);
  }

 private:
  class Loop;
  struct Counts {
    std::atomic<int64_t> dropped{0}, asked_for_secret{0};
    mutable std::mutex mutex;
    Refused refused;
  };
  TcpStoreServer() = default;

  Counts counts_;
  Descriptor stop_;
  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

}  // namespace amxt::comm
