// Handshake: two processes on a new connection prove to each other that they are ranks of one attempt of one job.
//
// The one that connected says hello, naming the nonce of whom it wants; the other one welcomes it with its own nonce; the first one ends
// with its proof. Over a unix socket both pass a descriptor along, whose content the other reads: that makes them ranks of one machine.
// Over TCP both challenge each other where there is a secret (secret.h). Nothing that a peer says counts before: whoever does not know the
// nonce is a stranger, to be dropped; who knows it and differs (compare()) is an error. Who knows it and not the secret is a stranger where
// nonces are given out for the secret alone, by rank 0's store; from torchrun's store anybody has them, and then it is an error.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "comm/identity.h"
#include "comm/link.h"
#include "comm/rendezvous_entry.h"
#include "comm/secret.h"

namespace amxt::comm {

class Handshake {
 public:
  // The same for all handshakes of a process.
  struct Self {
    Identity identity;
    Secret secret;
    bool nonces_are_secret = false;  // whoever knows one has proven the secret before
    Descriptor proof;                // a memory file that holds the identity's nonce
  };
  static Result<Descriptor> make_proof(const Nonce& nonce);

  enum class State { kConnecting, kGoing, kMet, kStranger, kFailed };

  // With an entry: this process connects, or has connected, to whom it names. Without: it was connected to.
  Handshake(const Self& self, std::unique_ptr<Link> link, std::optional<Entry> entry,
            bool connecting, Deadline deadline);

  State state() const { return state_; }
  bool is_over() const { return state_ != State::kConnecting && state_ != State::kGoing; }
  const std::optional<Entry>& entry() const { return entry_; }
  Link& link() { return *link_; }
  const Link& link() const { return *link_; }
  Deadline deadline() const { return deadline_; }
  short events() const;  // to poll for

  // Reads and answers what has come.
  void step();
  // kConnecting that came to nothing: why.
  int connect_errno() const { return connect_errno_; }

  // kMet: who it is; kFailed: what it said that it is.
  const Identity& peer() const { return peer_; }
  Error take_error() { return std::move(failure_).error(); }
  std::unique_ptr<Link> take_link() { return std::move(link_); }

 private:
  void greet();
  void hear_answer(const Message& message, const Descriptor& passed);
  void hear_hello(const Message& message, const Descriptor& passed);
  void hear_proof(const Message& message);
  void fail(Error error);
  void fail_without_secret(Error error);
  Answer answer(Role role) const;
  Error wrong_secret() const;
  Status check_secret_is_there(bool theirs) const;
  bool asks_for_secret() const { return link_->is_stream() && self_->secret; }

  const Self* self_;
  std::unique_ptr<Link> link_;
  std::optional<Entry> entry_;
  Deadline deadline_;
  State state_;
  bool knows_peer_ = false;
  Identity peer_;
  Challenge own_challenge_{}, peers_challenge_{};
  Status failure_;
  int connect_errno_ = 0;
};

// What an abort says: the root cause as its finder put it.
Error root_cause(const Message& message);

}  // namespace amxt::comm
