#include "comm/handshake.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <utility>

#include "comm/memory_file.h"

namespace amxt::comm {
namespace {

struct Hello {
  Identity sender;
  Nonce target;
  Challenge challenge;
  uint64_t has_secret = 0;  // as wide as leaves no gap
};

struct Welcome {
  Identity sender;
  Nonce target;
  Challenge challenge;
  uint64_t has_secret = 0;  // as wide as leaves no gap
  Answer answer{};
};

struct Proof {
  Answer answer{};
};

static_assert(sizeof(Welcome) <= kMaxSmallPayload);

bool proves(const Descriptor& passed, const Nonce& nonce) {
  Nonce content;
  return passed && pread(passed.get(), &content, sizeof content, 0) == sizeof content &&
         content == nonce;
}

}  // namespace

Result<Descriptor> Handshake::make_proof(const Nonce& nonce) {
  AMXT_ASSIGN(Descriptor file, make_memory_file("amxtrain-proof", sizeof nonce));
  if (pwrite(file.get(), &nonce, sizeof nonce, 0) != sizeof nonce) {
    return Error(Code::kIo, "a memory file of a few bytes can't be written");
  }
  return file;
}

Handshake::Handshake(const Self& self, std::unique_ptr<Link> link, std::optional<Entry> entry,
                     bool connecting, Deadline deadline)
    : self_(&self),
      link_(std::move(link)),
      entry_(std::move(entry)),
      deadline_(deadline),
      state_(connecting ? State::kConnecting : State::kGoing) {
  auto challenge = make_challenge();
  if (!challenge) {
    fail(std::move(challenge).error());
    return;
  }
  own_challenge_ = *challenge;
  if (state_ == State::kGoing && entry_) greet();
}

short Handshake::events() const { return state_ == State::kConnecting ? POLLOUT : POLLIN; }

void Handshake::step() {
  if (state_ == State::kConnecting) {
    pollfd entry{link_->socket(), POLLOUT, 0};
    if (poll(&entry, 1, 0) <= 0) return;
    if (auto connected = end_connect_tcp(link_->socket()); !connected) {
      connect_errno_ = connected.error().sys_errno();
      state_ = State::kStranger;
      return;
    }
    state_ = State::kGoing;
    greet();
  }
  while (state_ == State::kGoing) {
    Message message;
    Descriptor passed;
    switch (link_->receive(&message, &passed)) {
      case Received::kNothing:
        return;
      case Received::kClosed:
      case Received::kGarbage:
        state_ = State::kStranger;
        return;
      case Received::kMessage:
        break;
    }
    if (entry_) {
      hear_answer(message, passed);
    } else if (!knows_peer_) {
      hear_hello(message, passed);
    } else {
      hear_proof(message);
    }
  }
}

void Handshake::greet() {
  Hello hello;
  hello.sender = self_->identity;
  hello.target = entry_->nonce;
  hello.challenge = own_challenge_;
  hello.has_secret = self_->secret ? 1 : 0;
  Message message;
  message.kind = MessageKind::kHello;
  message.set(hello);
  link_->send(message, link_->is_stream() ? -1 : self_->proof.get());
}

void Handshake::hear_hello(const Message& message, const Descriptor& passed) {
  state_ = State::kStranger;  // unless it turns out otherwise
  Hello hello;
  if (message.kind != MessageKind::kHello || !message.get(&hello)) return;
  if (hello.target != self_->identity.nonce) return;
  if (!link_->is_stream() && !proves(passed, hello.sender.nonce)) return;
  peer_ = hello.sender;
  peers_challenge_ = hello.challenge;
  knows_peer_ = true;
  state_ = State::kGoing;

  Welcome welcome;
  welcome.sender = self_->identity;
  welcome.target = peer_.nonce;
  welcome.challenge = own_challenge_;
  welcome.has_secret = self_->secret ? 1 : 0;
  if (asks_for_secret()) welcome.answer = answer(Role::kServer);
  Message reply;
  reply.kind = MessageKind::kWelcome;
  reply.set(welcome);
  link_->send(reply, link_->is_stream() ? -1 : self_->proof.get());

  if (auto there = check_secret_is_there(hello.has_secret != 0); !there) {
    return fail_without_secret(std::move(there).error());
  }
  if (auto same = compare(self_->identity, peer_); !same) fail(std::move(same).error());
}

void Handshake::hear_answer(const Message& message, const Descriptor& passed) {
  state_ = State::kStranger;
  // The name of a unix socket is its nonce; at a TCP address anybody may answer.
  if (message.kind == MessageKind::kAbort && !link_->is_stream()) return fail(root_cause(message));
  Welcome welcome;
  if (message.kind != MessageKind::kWelcome || !message.get(&welcome)) return;
  if (welcome.sender.nonce != entry_->nonce || welcome.target != self_->identity.nonce) return;
  if (!link_->is_stream() && !proves(passed, welcome.sender.nonce)) return;
  peer_ = welcome.sender;
  peers_challenge_ = welcome.challenge;
  knows_peer_ = true;

  if (auto there = check_secret_is_there(welcome.has_secret != 0); !there) {
    return fail_without_secret(std::move(there).error());
  }
  Proof proof;
  if (asks_for_secret()) {
    if (!is_same(welcome.answer, answer(Role::kServer))) {
      Message refusal;
      refusal.kind = MessageKind::kRefuse;
      link_->send(refusal);
      return fail_without_secret(wrong_secret());
    }
    proof.answer = answer(Role::kClient);
  }
  if (auto same = compare(self_->identity, peer_); !same) return fail(std::move(same).error());
  Message reply;
  reply.kind = MessageKind::kProof;
  reply.set(proof);
  link_->send(reply);
  state_ = State::kMet;
}

void Handshake::hear_proof(const Message& message) {
  state_ = State::kStranger;
  if (message.kind == MessageKind::kRefuse && asks_for_secret())
    return fail_without_secret(wrong_secret());
  if (message.kind == MessageKind::kAbort && !asks_for_secret()) return fail(root_cause(message));
  Proof proof;
  if (message.kind != MessageKind::kProof || !message.get(&proof)) return;
  if (asks_for_secret() && !is_same(proof.answer, answer(Role::kClient))) {
    return fail_without_secret(wrong_secret());
  }
  state_ = State::kMet;
}

void Handshake::fail(Error error) {
  failure_ = std::move(error);
  state_ = State::kFailed;
}

// Of an eavesdropper, then: it ends nothing.
void Handshake::fail_without_secret(Error error) {
  if (self_->secret && self_->nonces_are_secret) {
    state_ = State::kStranger;
  } else {
    fail(std::move(error));
  }
}

Answer Handshake::answer(Role role) const {
  const bool client = entry_.has_value();
  const Nonce nonces[] = {client ? self_->identity.nonce : peer_.nonce,
                          client ? peer_.nonce : self_->identity.nonce};
  const std::string purpose =
      "control" + std::string(reinterpret_cast<const char*>(nonces), sizeof nonces);
  return answer_challenge(self_->secret, role, client ? own_challenge_ : peers_challenge_,
                          client ? peers_challenge_ : own_challenge_, purpose);
}

Error Handshake::wrong_secret() const {
  const Identity& self = self_->identity;
  const bool first = self.rank < peer_.rank;
  return Error(Code::kMismatch,
               fmt::format("{} and {} hold different secrets (AMXTRAIN_SECRET_FILE)",
                           rank_text(first ? self : peer_), rank_text(first ? peer_ : self)))
      .with_rank(peer_.rank);
}

Status Handshake::check_secret_is_there(bool theirs) const {
  if (!link_->is_stream() || theirs == static_cast<bool>(self_->secret)) return {};
  const Identity& with = theirs ? peer_ : self_->identity;
  const Identity& without = theirs ? self_->identity : peer_;
  return Error(Code::kMismatch, fmt::format("{} has a secret (AMXTRAIN_SECRET_FILE), {} has none",
                                            rank_text(with), rank_text(without)))
      .with_rank(without.rank);
}

Error root_cause(const Message& message) {
  return Error(static_cast<Code>(message.code), message.get_text()).with_rank(message.about_rank);
}

}  // namespace amxt::comm
