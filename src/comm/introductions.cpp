#include "comm/introductions.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <optional>
#include <utility>

#include "base/deadline.h"
#include "comm/unix_socket.h"

namespace amxt::comm {
namespace {

constexpr int64_t kHelloTimeoutNs = 5'000'000'000;
constexpr int64_t kConnectTimeoutNs = 5'000'000'000;
constexpr int64_t kRetryNs = 1'000'000'000;
// Connections of either direction that have not proven who they are.
constexpr size_t kMaxUnidentified = 256;

}  // namespace

Status Introductions::listen() {
  AMXT_ASSIGN(listener_, listen_abstract(socket_name(own().nonce)));
  return {};
}

Status Introductions::listen_at(const Address& address) {
  AMXT_ASSIGN(tcp_listener_, listen_tcp(address, &tcp_address_));
  set_word(self_.identity.address, tcp_address_.ip());
  return {};
}

void Introductions::close() {
  listener_.reset();
  tcp_listener_.reset();
  for (const Handshake& handshake : handshakes_) dropped_ += handshake.entry() ? 0 : 1;
  handshakes_.clear();
}

void Introductions::connect_to(Entry entry, bool by_unix) {
  targets_.push_back({std::move(entry), by_unix, 0});
}

void Introductions::try_to_connect() {
  for (auto target = targets_.begin(); target != targets_.end();) {
    if (handshakes_.size() >= kMaxUnidentified) return;
    const bool done = monotonic_ns() >= target->not_before_ns &&
                      (target->by_unix ? connect_by_unix(*target) : connect_by_tcp(*target));
    target = done ? targets_.erase(target) : std::next(target);
  }
}

// False when it is worth another try.
bool Introductions::connect_by_unix(const Target& target) {
  auto socket = connect_abstract(socket_name(target.entry.nonce));
  if (!socket && socket.error().code() == Code::kTimeout) return false;  // its backlog is full
  if (!socket || !peer_credentials(socket->get()).same_user) {
    // For good: it listened before its entry was written. Two machines can look like one, when they are copies.
    if (!target.entry.address.empty()) targets_.push_back({target.entry, false, 0});
    return true;
  }
  handshakes_.emplace_back(self_, std::make_unique<Link>(std::move(*socket), Link::Kind::kPackets),
                           target.entry, false, Deadline::never());
  check_entry(target.entry);
  return true;
}

// Who answers at its unix socket lives: what its entry says is true, even if it can't be talked to.
void Introductions::check_entry(const Entry& entry) {
  Identity peer = own();
  peer.rank = entry.rank;
  peer.world_size = entry.world_size;
  peer.pid = entry.pid;
  set_word(peer.build, entry.build);
  set_word(peer.host, entry.host);
  if (auto same = compare(own(), peer); !same) return fail(std::move(same).error());
  if (entry.protocol != kProtocolVersion) {
    fail(difference(own(), peer, "protocol", std::to_string(kProtocolVersion),
                    std::to_string(entry.protocol)));
  }
}

bool Introductions::connect_by_tcp(const Target& target) {
  const auto address = parse_address(target.entry.address);
  if (!address) return true;
  auto socket = start_connect_tcp(*address);
  if (!socket) {
    failed_to_reach(target.entry, socket.error().sys_errno());
    return true;
  }
  handshakes_.emplace_back(self_, std::make_unique<Link>(std::move(*socket), Link::Kind::kStream),
                           target.entry, true, Deadline::after(kConnectTimeoutNs));
  return true;
}

// A refusal is for good, as it listened before its entry was written; a network may come back.
void Introductions::failed_to_reach(const Entry& entry, int error) {
  unreached_[entry.rank] =
      fmt::format("rank {} (pid {} on host {}) is not reached at {}: {}", entry.rank, entry.pid,
                  entry.host, entry.address, std::strerror(error));
  if (error != ECONNREFUSED) targets_.push_back({entry, false, monotonic_ns() + kRetryNs});
}

void Introductions::add_to(std::vector<pollfd>* entries) const {
  if (listener_) entries->push_back({listener_.get(), POLLIN, 0});
  if (tcp_listener_) entries->push_back({tcp_listener_.get(), POLLIN, 0});
  for (const Handshake& handshake : handshakes_)
    entries->push_back({handshake.link().socket(), handshake.events(), 0});
}

void Introductions::serve() {
  for (Handshake& handshake : handshakes_) handshake.step();
  accept_all(listener_, Link::Kind::kPackets);
  accept_all(tcp_listener_, Link::Kind::kStream);
}

void Introductions::accept_all(const Descriptor& listener, Link::Kind kind) {
  while (listener) {
    Descriptor socket(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket) return;
    if (kind == Link::Kind::kPackets && !peer_credentials(socket.get()).same_user) continue;
    make_room();
    if (kind == Link::Kind::kStream) set_no_delay(socket);
    handshakes_.emplace_back(self_, std::make_unique<Link>(std::move(socket), kind), std::nullopt,
                             false, Deadline::after(kHelloTimeoutNs));
    handshakes_.back().step();
  }
}

// Whoever floods the listener must not keep the ranks out, who prove themselves at once.
void Introductions::make_room() {
  if (handshakes_.size() < kMaxUnidentified) return;
  const auto oldest = std::find_if(handshakes_.begin(), handshakes_.end(),
                                   [](const Handshake& h) { return !h.entry(); });
  if (oldest == handshakes_.end()) return;
  handshakes_.erase(oldest);
  ++dropped_;
}

bool Introductions::is_over(const Handshake& handshake) {
  const bool has_time = handshake.entry() && handshake.state() != Handshake::State::kConnecting;
  return handshake.is_over() || (!has_time && handshake.deadline().passed());
}

void Introductions::settle_unmet(Handshake& handshake) {
  using State = Handshake::State;
  const auto& entry = handshake.entry();
  if (handshake.state() == State::kFailed) {
    fail(handshake.take_error());
    refused_.push_back(handshake.take_link());  // it hears why
  } else if (!entry) {
    ++dropped_;
  } else if (!handshake.link().is_stream()) {
    if (!entry->address.empty()) targets_.push_back({*entry, false, 0});
  } else if (handshake.state() == State::kConnecting) {
    failed_to_reach(*entry, ETIMEDOUT);
  } else if (handshake.connect_errno() != 0) {
    failed_to_reach(*entry, handshake.connect_errno());
  } else {
    targets_.push_back({*entry, false, monotonic_ns() + kRetryNs});  // somebody else has the port
  }
}

void Introductions::tell_all(const Message& message) {
  for (Handshake& handshake : handshakes_) handshake.link().send(message);
  for (const std::unique_ptr<Link>& link : refused_) link->send(message);
}

std::string Introductions::why_not_met(const std::vector<int>& missing) const {
  std::string text;
  for (const Handshake& handshake : handshakes_) {
    if (!handshake.entry() || handshake.state() != Handshake::State::kGoing) continue;
    text += fmt::format("; rank {} (pid {}) is there and does not answer", handshake.entry()->rank,
                        handshake.entry()->pid);
  }
  for (const int rank : missing) {
    const auto why = unreached_.find(rank);
    if (why != unreached_.end()) text += "; " + why->second;
  }
  return text;
}

void Introductions::fail(Error error) {
  if (failure_.ok()) failure_ = std::move(error);
}

}  // namespace amxt::comm
