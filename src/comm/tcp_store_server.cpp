#include "comm/tcp_store_server.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <list>
#include <optional>
#include <string_view>
#include <utility>

#include "base/deadline.h"
#include "base/text.h"
#include "comm/quiet_thread.h"
#include "comm/store_service.h"

namespace amxt::comm {
namespace {

constexpr size_t kReadBytes = 64 << 10;

struct Peer {
  Descriptor socket;
  std::string ip;
  StoreService::Connection* connection = nullptr;
  Deadline stalled = Deadline::never();
  bool gone = false;  // closed by the other side, or by an error
  bool has_asked = false;
};

}  // namespace

class TcpStoreServer::Loop {
 public:
  Loop(std::vector<Descriptor> listeners, int stop, const Options& options, Counts* counts)
      : listeners_(std::move(listeners)),
        stop_(stop),
        options_(options),
        counts_(counts),
        service_({options.max_stored_bytes, options.max_held_bytes, options.secret}) {}

  void run() {
    for (;;) {
      const std::vector<pollfd> ready = poll_all();
      if (ready.empty()) continue;
      if (ready[0].revents != 0) return;
      size_t next = 1 + listeners_.size();
      for (Peer& peer : peers_) {
        const short events = ready[next++].revents;
        if (events & POLLOUT) {
          flush(peer);
        } else if (events != 0) {
          read_from(peer);
        }
      }
      for (Peer& peer : peers_) update_stall(peer);
      remove_dropped();
      next = 1;
      for (const Descriptor& listener : listeners_) {
        if (ready[next++].revents != 0) accept_from(listener.get());
      }
    }
  }

 private:
  std::vector<pollfd> poll_all() {
    std::vector<pollfd> entries{{stop_, POLLIN, 0}};
    Deadline next = Deadline::never();
    for (const Descriptor& listener : listeners_) entries.push_back({listener.get(), POLLIN, 0});
    for (const Peer& peer : peers_) {
      const short event = peer.connection->replies().empty() ? POLLIN : POLLOUT;
      entries.push_back({peer.socket.get(), event, 0});
      next = next.earlier(peer.stalled);
    }
    const int count = poll(entries.data(), entries.size(), next.poll_ms());
    if (count < 0) return {};
    return entries;
  }

  void accept_from(int listener) {
    for (;;) {
      sockaddr_storage from{};
      socklen_t length = sizeof from;
      auto* const name = reinterpret_cast<sockaddr*>(&from);
      Descriptor socket(accept4(listener, name, &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!socket && (errno == EMFILE || errno == ENFILE)) {
        // The connection stays in the backlog, and poll would spin.
        if (!make_room()) poll(nullptr, 0, 20);
        return;
      }
      if (!socket) return;
      if (peers_.size() >= options_.max_connections && !make_room()) {
        counts_->dropped.fetch_add(1, std::memory_order_relaxed);
        continue;
      }
      const int on = 1;
      setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      Peer& peer = peers_.emplace_back();
      peer.socket = std::move(socket);
      peer.ip = address_from(name).ip();
      peer.connection = &service_.open();
      peer.stalled = Deadline::after(options_.stall_timeout_ns);
    }
  }

  // The oldest connection that has asked for nothing yet makes way: a stranger's rather than a member's.
  bool make_room() {
    const auto oldest = std::find_if(peers_.begin(), peers_.end(), [](const Peer& peer) {
      return !peer.connection->is_in_use();
    });
    if (oldest == peers_.end()) return false;
    counts_->dropped.fetch_add(1, std::memory_order_relaxed);
    service_.close(*oldest->connection);
    peers_.erase(oldest);
    return true;
  }

  void read_from(Peer& peer) {
    char bytes[kReadBytes];
    const ssize_t got = recv(peer.socket.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      peer.gone = true;
      return;
    }
    service_.receive(*peer.connection, {bytes, static_cast<size_t>(got)});
    flush(peer);
    if (peer.connection->has_asked_for_secret() && !std::exchange(peer.has_asked, true)) {
      counts_->asked_for_secret.fetch_add(1, std::memory_order_relaxed);
    }
  }

  void flush(Peer& peer) {
    while (!peer.connection->replies().empty() && !peer.gone) {
      const std::string_view replies = peer.connection->replies();
      const ssize_t sent =
          send(peer.socket.get(), replies.data(), replies.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno == EAGAIN) return;
      if (sent < 0) {
        peer.gone = true;
        return;
      }
      service_.taken(*peer.connection, static_cast<size_t>(sent));
      peer.stalled = Deadline::never();
    }
  }

  // A connection that is served and between requests may be silent for ever; any other has until its deadline, which moves only when it
  // takes an answer.
  void update_stall(Peer& peer) {
    if (peer.connection->is_idle()) {
      peer.stalled = Deadline::never();
    } else if (peer.stalled.is_never()) {
      peer.stalled = Deadline::after(options_.stall_timeout_ns);
    }
  }

  void remove_dropped() {
    peers_.remove_if([&](const Peer& peer) {
      const bool orderly = peer.gone && peer.connection->is_idle();
      if (!peer.gone && !peer.connection->is_dropped() && !peer.stalled.passed()) return false;
      if (!orderly) counts_->dropped.fetch_add(1, std::memory_order_relaxed);
      if (peer.connection->is_refused()) count_refused(peer);
      service_.close(*peer.connection);
      return true;
    });
  }

  void count_refused(const Peer& peer) {
    const std::lock_guard lock(counts_->mutex);
    ++counts_->refused.count;
    counts_->refused.last_ip = peer.ip;
  }

  const std::vector<Descriptor> listeners_;
  const int stop_;
  const Options options_;
  Counts* const counts_;
  StoreService service_;
  std::list<Peer> peers_;  // the oldest first
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

Result<std::vector<Descriptor>> listen_at_all(const std::vector<Address>& addresses) {
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
    if (first) continue;
    const bool is_elsewhere = error == EADDRNOTAVAIL;
    first = std::move(listener).error().in(
        fmt::format("rank 0 cannot serve the store at {} (MASTER_ADDR){}", address.text,
                    is_elsewhere ? ", which is no address of this machine, where rank 0 is" : ""));
  }
  if (listeners.empty()) return *std::move(first);
  return listeners;
}

}  // namespace

Result<std::unique_ptr<TcpStoreServer>> TcpStoreServer::start(const std::string& host, int port) {
  return start(host, port, Options());
}

Result<std::unique_ptr<TcpStoreServer>> TcpStoreServer::start(const std::string& host, int port,
                                                              const Options& options) {
  AMXT_ASSIGN(const std::vector<Address> addresses, resolve(host, port));
  return start(addresses, options);
}

Result<std::unique_ptr<TcpStoreServer>> TcpStoreServer::start(const std::vector<Address>& addresses,
                                                              const Options& options) {
  AMXT_ASSIGN(std::vector<Descriptor> listeners, listen_at_all(addresses));
  std::unique_ptr<TcpStoreServer> server(new TcpStoreServer());
  server->stop_ = Descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!server->stop_) return system_error("eventfd", errno);
  server->loop_ =
      std::make_unique<Loop>(std::move(listeners), server->stop_.get(), options, &server->counts_);
  AMXT_ASSIGN(server->thread_,
              start_quiet_thread("amxt-store", [loop = server->loop_.get()] { loop->run(); }));
  return server;
}

TcpStoreServer::Refused TcpStoreServer::refused() const {
  const std::lock_guard lock(counts_.mutex);
  return counts_.refused;
}

TcpStoreServer::~TcpStoreServer() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

}  // namespace amxt::comm
