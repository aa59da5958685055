// Introductions: a rank's connections until they prove that they are a job's. It listens, connects to those whose entries it is told, and
// gives out who has proven itself (handshake.h).
//
// Who was connected to or connects and proves nothing is a stranger: dropped and counted, at most kMaxUnidentified at a time, each until
// its deadline. Not thread-safe, never blocks.
#pragma once

#include <poll.h>

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "comm/control_message.h"
#include "comm/handshake.h"
#include "comm/link.h"
#include "comm/rendezvous_entry.h"
#include "comm/socket.h"

namespace amxt::comm {

class Introductions {
 public:
  explicit Introductions(Handshake::Self self) : self_(std::move(self)) {}

  const Identity& own() const { return self_.identity; }
  const Secret& secret() const { return self_.secret; }
  // What peers are told from now on; empty in a job of one machine.

  // For this machine, at the name of this rank's nonce.
  Status listen();
  // For other machines, at a port of that address and of no other.
  Status listen_at(const Address& address);
  bool listens_at_address() const { return static_cast<bool>(tcp_listener_); }
  const Address& address() const { return tcp_address_; }
  // Nobody comes or is gone to any more; who has not proven itself yet is dropped.
  void close();

  // By the unix socket where it is on this machine, else at its address.
  void connect_to(Entry entry, bool by_unix);

  // One round: try() to connect, poll for what add_to() gives, then serve() if something came, then settle().
  void try_to_connect();
  void add_to(std::vector<pollfd>* entries) const;
  void serve();
  // Who proved itself goes to `met(identity, link)`.
  template <typename Met>
  void settle(Met met);
  // Of someone who is a rank and does not fit, or what such a one says.
  Status take_failure() { return std::exchange(failure_, Status()); }

  // To all that may count this rank as met, or are to hear why they are not.
  void tell_all(const Message& message);

  int64_t dropped() const { return dropped_; }
  // Of those who are not met: what is known of why, each behind "; ".
  std::string why_not_met(const std::vector<int>& missing) const;

 private:
  // Somebody to connect to.
  struct Target {
    Entry entry;
    bool by_unix = true;
    int64_t not_before_ns = 0;
  };

  bool connect_by_unix(const Target& target);
  bool connect_by_tcp(const Target& target);
  void check_entry(const Entry& entry);
  void failed_to_reach(const Entry& entry, int error);
  void accept_all(const Descriptor& listener, Link::Kind kind);
  void make_room();
  static bool is_over(const Handshake& handshake);
  void settle_unmet(Handshake& handshake);
  void fail(Error error);

  Handshake::Self self_;
  Descriptor listener_, tcp_listener_;
  Address tcp_address_;
  std::list<Target> targets_;
  std::map<int, std::string> unreached_;  // why, by rank
  std::list<Handshake> handshakes_;
  std::vector<std::unique_ptr<Link>> refused_;
  int64_t dropped_ = 0;
  Status failure_;
};

template <typename Met>
void Introductions::settle(Met met) {
  for (auto handshake = handshakes_.begin(); handshake != handshakes_.end();) {
    if (!is_over(*handshake)) {
      ++handshake;
      continue;
    }
    if (handshake->state() == Handshake::State::kMet) {
      met(handshake->peer(), handshake->take_link());
    } else {
      settle_unmet(*handshake);
    }
    handshake = handshakes_.erase(handshake);
  }
}

}  // namespace amxt::comm
