#include "comm/tcp_store_server.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <list>
#include <optional>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include "base/deadline.h"
#include "base/text.h"
#include "comm/quiet_thread.h"
#include "comm/tcp_store_protocol.h"

namespace amxt::comm {
namespace {

constexpr size_t kReadBytes = 64 << 10;
// The longest request is a compare_set; whoever sends more before it is whole is cut off.
constexpr size_t kMaxRequestBytes = 2 * kMaxStoreValueBytes + kMaxStoreKeyBytes + 64;
// With this much to take first, a connection's next requests wait.
constexpr size_t kPendingReplyBytes = 64 << 10;

// Reads a request from the front of what has arrived.
class Reader {
 public:
  enum class State { kWhole, kPartial, kBad };

  explicit Reader(std::string_view bytes) : left_(bytes), all_(bytes.size()) {}

  template <typename Integer>
  Integer integer() {
    Integer value{};
    if (!take(sizeof value)) return value;
    std::memcpy(&value, taken_.data(), sizeof value);
    return value;
  }
  std::string_view string(size_t limit) {
    const auto length = integer<uint64_t>();
    if (state_ != State::kWhole) return {};
    if (length > limit) {
      state_ = State::kBad;
      return {};
    }
    return take(length) ? taken_ : std::string_view();
  }
  std::string_view key() { return string(kMaxStoreKeyBytes); }
  std::string_view value() { return string(kMaxStoreValueBytes); }
  std::vector<std::string> keys() {
    std::vector<std::string> keys;
    const auto count = integer<uint64_t>();
    if (count > kMaxStoreKeys || (count == 0 && state_ == State::kWhole)) state_ = State::kBad;
    for (uint64_t i = 0; i < count && state_ == State::kWhole; ++i) keys.emplace_back(key());
    return keys;
  }
  void bad() { state_ = State::kBad; }
  bool whole() const { return state_ == State::kWhole; }
  State state() const { return state_; }
  size_t used() const { return all_ - left_.size(); }

 private:
  bool take(size_t count) {
    if (state_ != State::kWhole) return false;
    if (left_.size() < count) {
      state_ = State::kPartial;
      return false;
    }
    taken_ = left_.substr(0, count);
    left_.remove_prefix(count);
    return true;
  }

  std::string_view left_, taken_;
  size_t all_;
  State state_ = State::kWhole;
};

struct Connection {
  Descriptor socket;
  std::string in, out;
  bool validated = false;
  std::vector<std::string> awaited;  // keys of the wait that is not answered yet
  Deadline stalled = Deadline::never();
  bool dead = false;
  bool orderly = false;  // closed by the peer between requests
};

}  // namespace

class TcpStoreServer::Loop {
 public:
  Loop(std::vector<Descriptor> listeners, int stop, const Options& options,
       std::atomic<int64_t>* dropped)
      : listeners_(std::move(listeners)), stop_(stop), options_(options), dropped_(dropped) {}

  void run() {
    for (;;) {
      const std::vector<pollfd> ready = poll_all();
      if (ready.empty()) continue;
      if (ready[0].revents != 0) return;
      size_t next = 1;
      for (const Descriptor& listener : listeners_) {
        if (ready[next++].revents != 0) accept_from(listener.get());
      }
      // accept_from() has put new connections at the end; they were not polled yet.
      for (auto connection = connections_.begin(); next < ready.size(); ++connection, ++next) {
        const short events = ready[next].revents;
        if (events & POLLOUT) {
          proceed(*connection);
        } else if (events != 0) {
          read_from(*connection);
        }
      }
      remove_dead();
    }
  }

 private:
  std::vector<pollfd> poll_all() {
    std::vector<pollfd> entries{{stop_, POLLIN, 0}};
    Deadline next = Deadline::never();
    for (const Descriptor& listener : listeners_) entries.push_back({listener.get(), POLLIN, 0});
    for (const Connection& connection : connections_) {
      const short event = connection.out.empty() ? POLLIN : POLLOUT;
      entries.push_back({connection.socket.get(), event, 0});
      next = next.earlier(connection.stalled);
    }
    const int count = poll(entries.data(), entries.size(), next.poll_ms());
    if (count < 0) return {};
    return entries;
  }

  void accept_from(int listener) {
    for (;;) {
      Descriptor socket(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket) {
        // Out of descriptors: the connection stays in the backlog and poll would spin.
        if (errno == EMFILE || errno == ENFILE) poll(nullptr, 0, 20);
        return;
      }
      if (connections_.size() >= options_.max_connections) {
        dropped_->fetch_add(1, std::memory_order_relaxed);
        continue;
      }
      const int on = 1;
      setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      Connection& connection = connections_.emplace_back();
      connection.socket = std::move(socket);
      connection.stalled = Deadline::after(options_.stall_timeout_ns);
    }
  }

  void read_from(Connection& connection) {
    char bytes[kReadBytes];
    const ssize_t got = recv(connection.socket.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      connection.dead = true;
      connection.orderly = connection.validated && connection.in.empty();
      return;
    }
    connection.in.append(bytes, static_cast<size_t>(got));
    proceed(connection);
  }

  // Serves and answers as far as the peer sends and takes.
  void proceed(Connection& connection) {
    size_t left = 0;
    do {
      left = connection.in.size();
      serve(connection);
      flush(connection);
    } while (!connection.dead && connection.out.empty() && connection.in.size() < left);
    update_stall(connection);
  }

  // All whole requests that have arrived.
  void serve(Connection& connection) {
    size_t used = 0;
    while (!connection.dead && used < connection.in.size() &&
           connection.out.size() < kPendingReplyBytes) {
      Reader reader(std::string_view(connection.in).substr(used));
      const size_t before = connection.out.size();
      if (!serve_one(connection, reader)) {
        connection.out.resize(before);
        if (reader.state() == Reader::State::kBad) connection.dead = true;
        break;
      }
      used += reader.used();
    }
    connection.in.erase(0, used);
    if (connection.in.size() > kMaxRequestBytes) connection.dead = true;
  }

  // False when the request is not whole yet or not a request.
  bool serve_one(Connection& connection, Reader& reader) {
    const auto operation = static_cast<StoreOperation>(reader.integer<uint8_t>());
    if (!connection.validated) {
      if (operation != StoreOperation::kValidate) reader.bad();
      const auto magic = reader.integer<uint32_t>();
      if (reader.whole() && magic != kStoreMagic) reader.bad();
      connection.validated = reader.whole();
      return reader.whole();
    }
    // Until a wait is answered only its end may be asked for.
    if (!connection.awaited.empty() && operation != StoreOperation::kCancelWait) reader.bad();
    switch (operation) {
      case StoreOperation::kSet:
        set(reader);
        break;
      case StoreOperation::kCompareSet:
        compare_set(reader, &connection.out);
        break;
      case StoreOperation::kGet:
        get(reader, &connection.out);
        break;
      case StoreOperation::kAdd:
        add(reader, &connection.out);
        break;
      case StoreOperation::kCheck: {
        const auto keys = reader.keys();
        append_integer(&connection.out, all_there(keys) ? kStoreReady : kStoreNotReady);
        break;
      }
      case StoreOperation::kWait:
        wait(reader, connection);
        break;
      case StoreOperation::kKeyCount:
        append_integer<int64_t>(&connection.out, static_cast<int64_t>(values_.size()));
        break;
      case StoreOperation::kDelete:
        remove(reader, &connection.out);
        break;
      case StoreOperation::kCancelWait:
        connection.awaited.clear();
        append_integer(&connection.out, kStoreWaitCancelled);
        break;
      case StoreOperation::kPing:
        append_integer(&connection.out, reader.integer<uint32_t>());
        break;
      default:
        reader.bad();
    }
    return reader.whole();
  }

  void set(Reader& reader) {
    const std::string_view key = reader.key();
    const std::string_view value = reader.value();
    if (reader.whole()) store(reader, key, value);
  }

  void compare_set(Reader& reader, std::string* out) {
    const std::string_view key = reader.key();
    const std::string_view expected = reader.value();
    const std::string_view desired = reader.value();
    if (!reader.whole()) return;
    const auto found = values_.find(std::string(key));
    const bool missing = found == values_.end();
    if (missing ? expected.empty() : found->second == expected) {
      append_string(out, desired);
      store(reader, key, desired);
    } else {
      // As torch's store does: a missing key with an expectation is answered with the expectation.
      append_string(out, missing ? expected : std::string_view(found->second));
    }
  }

  void get(Reader& reader, std::string* out) {
    const std::string_view key = reader.key();
    if (!reader.whole()) return;
    const auto found = values_.find(std::string(key));
    append_string(out,
                  found == values_.end() ? std::string_view() : std::string_view(found->second));
  }

  void add(Reader& reader, std::string* out) {
    const std::string_view key = reader.key();
    const auto amount = reader.integer<int64_t>();
    if (!reader.whole()) return;
    int64_t sum = 0;
    const auto found = values_.find(std::string(key));
    if (found != values_.end()) {
      const std::string& text = found->second;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), sum);
      if (error != std::errc() || end != text.data() + text.size()) return reader.bad();
    }
    if (__builtin_add_overflow(sum, amount, &sum)) return reader.bad();
    append_integer(out, sum);
    store(reader, key, std::to_string(sum));
  }

  void wait(Reader& reader, Connection& connection) {
    std::vector<std::string> keys = reader.keys();
    if (!reader.whole()) return;
    if (all_there(keys)) {
      append_integer(&connection.out, kStoreStopWaiting);
    } else {
      connection.awaited = std::move(keys);
    }
  }

  void remove(Reader& reader, std::string* out) {
    const std::string_view key = reader.key();
    if (!reader.whole()) return;
    const auto found = values_.find(std::string(key));
    append_integer<int64_t>(out, found != values_.end() ? 1 : 0);
    if (found == values_.end()) return;
    stored_bytes_ -= cost(found->first, found->second);
    values_.erase(found);
  }

  static size_t cost(std::string_view key, std::string_view value) {
    return key.size() + value.size() + 128;  // the entry itself
  }

  // A request that would pass the bound on memory is refused like a malformed one.
  void store(Reader& reader, std::string_view key, std::string_view value) {
    const auto found = values_.find(std::string(key));
    const size_t old = found == values_.end() ? 0 : cost(key, found->second);
    if (stored_bytes_ - old + cost(key, value) > options_.max_stored_bytes) return reader.bad();
    stored_bytes_ += cost(key, value) - old;
    values_[std::string(key)] = value;
    for (Connection& connection : connections_) {
      if (connection.awaited.empty() || !all_there(connection.awaited)) continue;
      connection.awaited.clear();
      append_integer(&connection.out, kStoreStopWaiting);
      flush(connection);
      update_stall(connection);
    }
  }

  bool all_there(const std::vector<std::string>& keys) const {
    return std::all_of(keys.begin(), keys.end(),
                       [&](const std::string& key) { return values_.contains(key); });
  }

  void flush(Connection& connection) {
    while (!connection.out.empty() && !connection.dead) {
      const ssize_t sent = send(connection.socket.get(), connection.out.data(),
                                connection.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno == EAGAIN) return;
      if (sent < 0) {
        connection.dead = true;
        return;
      }
      connection.out.erase(0, static_cast<size_t>(sent));
      connection.stalled = Deadline::never();
    }
  }

  // A validated connection between requests may be silent for ever; any other has until its deadline, which moves only when it takes an answer.
  void update_stall(Connection& connection) {
    const bool waits_for_peer =
        !connection.validated || !connection.in.empty() || !connection.out.empty();
    if (!waits_for_peer) {
      connection.stalled = Deadline::never();
    } else if (connection.stalled.is_never()) {
      connection.stalled = Deadline::after(options_.stall_timeout_ns);
    }
  }

  void remove_dead() {
    connections_.remove_if([&](Connection& connection) {
      if (!connection.dead && !connection.stalled.passed()) return false;
      if (!connection.orderly) dropped_->fetch_add(1, std::memory_order_relaxed);
      return true;
    });
  }

  const std::vector<Descriptor> listeners_;
  const int stop_;
  const Options options_;
  std::atomic<int64_t>* const dropped_;
  std::list<Connection> connections_;
  std::unordered_map<std::string, std::string> values_;
  size_t stored_bytes_ = 0;
};

namespace {

Result<Descriptor> listen_at(const Address& address) {
  Descriptor socket(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return system_error("socket", errno);
  const int on = 1;
  setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.family() == AF_INET6) {
    setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  }
  if (bind(socket.get(), address.get(), address.length) != 0) return system_error("bind", errno);
  if (listen(socket.get(), 256) != 0) return system_error("listen", errno);
  return socket;
}

// Every address that the name stands for and that this machine has.
Result<std::vector<Descriptor>> listen_at_all(const std::string& host, int port) {
  AMXT_ASSIGN(const std::vector<Address> addresses, resolve(host, port));
  std::vector<Descriptor> listeners;
  std::optional<Error> first;
  for (const Address& address : addresses) {
    auto listener = listen_at(address);
    if (listener) {
      listeners.push_back(std::move(*listener));
      continue;
    }
    const int error = listener.error().sys_errno();
    if (error == EADDRINUSE) {
      return Error(Code::kExists,
                   fmt::format("rank 0 cannot serve the store at {}: the port is taken by another "
                               "program (MASTER_PORT)",
                               address.text),
                   error);
    }
    if (!first) {
      first = std::move(listener).error().in(
          fmt::format("rank 0 cannot serve the store at {} (MASTER_ADDR)", address.text));
    }
  }
  if (listeners.empty()) return *std::move(first);
  return listeners;
}

}  // namespace

Result<std::unique_ptr<TcpStoreServer>> TcpStoreServer::start(const std::string& host, int port) {
  return start(host, port, Options{});
}

Result<std::unique_ptr<TcpStoreServer>> TcpStoreServer::start(const std::string& host, int port,
                                                              const Options& options) {
  AMXT_ASSIGN(std::vector<Descriptor> listeners, listen_at_all(host, port));
  std::unique_ptr<TcpStoreServer> server(new TcpStoreServer());
  server->stop_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!server->stop_) return system_error("eventfd", errno);
  server->loop_ =
      std::make_unique<Loop>(std::move(listeners), server->stop_.get(), options, &server->dropped_);
  AMXT_ASSIGN(server->thread_,
              start_quiet_thread("amxt-store", [loop = server->loop_.get()] { loop->run(); }));
  return server;
}

TcpStoreServer::~TcpStoreServer() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

}  // namespace amxt::comm
