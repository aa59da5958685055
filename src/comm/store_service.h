// StoreService: what a c10d TCPStore says, without its sockets: the bytes of any number of connections in, the bytes to them out.
//
// It trusts nobody: keys, values, requests, what is stored and what is held for connections are bounded; who says something else is
// dropped, and above the bound on what is held it is the connection that holds most. With a secret, who does not prove it is refused.
// The queues of torch's store (operations 14 to 16) are not served: no part of torch uses them by itself. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "comm/secret.h"
#include "comm/tcp_store_protocol.h"

namespace amxt::comm {

class StoreService {
 public:
  struct Options {
    size_t max_stored_bytes = size_t{64} << 20;
    size_t max_held_bytes = size_t{64} << 20;  // requests in part and replies, of all connections
    Secret secret;                             // none: everybody is served
  };

  class Connection {
   public:
    std::string_view replies() const { return out_; }
    // For what it said; nothing more is said to it.
    bool is_dropped() const { return dropped_ || (is_refused() && out_.empty()); }
    // It did not prove the secret; once it has been told so it is dropped.
    bool is_refused() const { return state_ == State::kRefused; }
    // It wanted a secret to be proven that is not here.
    bool has_asked_for_secret() const { return has_asked_for_secret_; }
    // Nothing is begun and nothing is to be taken: it may stay silent, or go, at any time.
    bool is_idle() const { return state_ == State::kServed && in_.empty() && out_.empty(); }
    // It has asked for something that only members of a job ask for: more than a greeting.
    bool is_in_use() const { return in_use_; }

   private:
    friend class StoreService;
    enum class State { kGreeting, kProving, kAnswering, kServed, kRefused };
    enum class Wait { kNone, kKeys, kBarrier };

    State state_ = State::kGreeting;
    std::string in_, out_;
    Challenge clients_{}, servers_{};
    Wait wait_ = Wait::kNone;
    std::vector<std::string> awaited_;  // kKeys: all of them; kBarrier: its key
    int64_t world_ = 0;                 // kBarrier
    size_t held_ = 0;
    bool dropped_ = false, in_use_ = false, has_asked_for_secret_ = false;
  };

  explicit StoreService(const Options& options) : options_(options) {}

  // References stay good until close().
  Connection& open();
  void close(Connection& connection);

  // Serves what is whole. May add replies for other connections, or drop them.
  void receive(Connection& connection, std::string_view bytes);
  // So many bytes of the replies were passed on; serves what waited for it.
  void taken(Connection& connection, size_t bytes);

  const std::list<Connection>& connections() const { return connections_; }
  size_t stored_bytes() const { return stored_bytes_; }
  size_t held_bytes() const { return held_bytes_; }

 private:
  class Request;

  void serve(Connection& connection);
  bool serve_one(Connection& connection, Request& request);
  bool greet(Connection& connection, Request& request);
  bool prove(Connection& connection, Request& request);
  bool judge(Connection& connection, Request& request);
  void answer(Connection& connection, Request& request);
  void set(Request& request);
  void append(Request& request);
  void multi_set(Request& request);
  void get(Request& request, std::string* out);
  void multi_get(Request& request, std::string* out);
  void compare_set(Request& request, std::string* out);
  void add(Request& request, std::string* out);
  void wait(Connection& connection, Request& request);
  void barrier(Connection& connection, Request& request);
  void remove(Request& request, std::string* out);
  void list_keys(Request& request, std::string* out);

  std::string_view value_of(std::string_view key) const;
  bool sum(Request& request, std::string_view key, int64_t amount, int64_t* result);
  void store(Request& request, std::string_view key, std::string_view value);
  bool has_come(const Connection& connection) const;
  void wake_up();
  void drop(Connection& connection);
  void settle(Connection& connection);

  const Options options_;
  std::list<Connection> connections_;
  std::unordered_map<std::string, std::string> values_;
  size_t stored_bytes_ = 0, held_bytes_ = 0;
};

}  // namespace amxt::comm
