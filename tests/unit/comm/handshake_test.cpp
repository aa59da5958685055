#include "comm/handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>

#include "base/deadline.h"

namespace amxt::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using State = Handshake::State;

Handshake::Self self_of(int rank, const std::string& secret = {}) {
  LaunchInfo launch;
  launch.rank = launch.local_rank = rank;
  launch.world_size = launch.local_world_size = 4;
  Handshake::Self self;
  auto identity = own_identity(launch, GroupOptions{});
  EXPECT_TRUE(identity);
  self.identity = *identity;
  self.identity.pid = 100 + rank;  // both are this process
  set_word(self.identity.host, "host-" + std::to_string(rank));
  if (!secret.empty()) self.secret = Secret(secret);
  auto proof = Handshake::make_proof(self.identity.nonce);
  EXPECT_TRUE(proof);
  self.proof = std::move(*proof);
  return self;
}

Entry entry_of(const Handshake::Self& self) {
  Entry entry;
  entry.rank = self.identity.rank;
  entry.world_size = self.identity.world_size;
  entry.pid = self.identity.pid;
  entry.nonce = self.identity.nonce;
  return entry;
}

// Two that meet over one connection: one that connects (rank 3) and one that is connected to (rank 1).
class Two {
 public:
  Two(Handshake::Self one, Handshake::Self other, Link::Kind kind)
      : client_self(std::move(one)), server_self(std::move(other)) {
    int ends[2] = {-1, -1};
    const int type = kind == Link::Kind::kStream ? SOCK_STREAM : SOCK_SEQPACKET;
    EXPECT_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    server =
        std::make_unique<Handshake>(server_self, std::make_unique<Link>(Descriptor(ends[1]), kind),
                                    std::nullopt, false, Deadline::never());
    client =
        std::make_unique<Handshake>(client_self, std::make_unique<Link>(Descriptor(ends[0]), kind),
                                    entry_of(server_self), false, Deadline::never());
  }
  void talk() {
    for (int i = 0; i < 4; ++i) {
      server->step();
      client->step();
    }
  }
  Handshake::Self client_self, server_self;
  std::unique_ptr<Handshake> client, server;
};

class HandshakeKinds : public testing::TestWithParam<Link::Kind> {};
INSTANTIATE_TEST_SUITE_P(Of, HandshakeKinds,
                         testing::Values(Link::Kind::kPackets, Link::Kind::kStream),
                         [](const auto& kind) {
                           return kind.param == Link::Kind::kStream ? "Stream" : "Packets";
                         });

TEST_P(HandshakeKinds, TwoRanksOfOneJobMeet) {
  Two two(self_of(3), self_of(1), GetParam());
  two.talk();
  ASSERT_EQ(two.client->state(), State::kMet);
  ASSERT_EQ(two.server->state(), State::kMet);
  EXPECT_EQ(two.client->peer().rank, 1);
  EXPECT_EQ(two.server->peer().rank, 3);
  EXPECT_EQ(two.server->peer().nonce, two.client_self.identity.nonce);
}

TEST_P(HandshakeKinds, ItIsMetOnlyWhenItHasProvenItself) {
  Two two(self_of(3), self_of(1), GetParam());
  two.server->step();
  EXPECT_EQ(two.server->state(), State::kGoing);
  two.client->step();
  EXPECT_EQ(two.client->state(), State::kMet);
  EXPECT_EQ(two.server->state(), State::kGoing);
  two.server->step();
  EXPECT_EQ(two.server->state(), State::kMet);
}

TEST_P(HandshakeKinds, WhoWantsSomebodyElseIsAStranger) {
  Two two(self_of(3), self_of(1), GetParam());
  two.server_self.identity.nonce.words[0] ^= 1;  // not whom the entry names
  two.talk();
  EXPECT_EQ(two.server->state(), State::kStranger);
}

// The right welcome, but for the nonce of who sends it: another process has the address now.
TEST_P(HandshakeKinds, WhoWelcomesWithAnotherNonceIsAStranger) {
  for (const bool changed : {true, false}) {
    Two two(self_of(3), self_of(1), GetParam());
    two.server->step();
    Message welcome;
    ASSERT_EQ(two.client->link().receive(&welcome), Received::kMessage);
    ASSERT_EQ(welcome.kind, MessageKind::kWelcome);
    Nonce nonce = two.server_self.identity.nonce;
    const std::string bytes(reinterpret_cast<const char*>(&nonce), sizeof nonce);
    const size_t at = welcome.payload.find(bytes);
    ASSERT_NE(at, welcome.payload.npos);
    if (changed) nonce.words[1] ^= 1;
    welcome.payload.replace(at, sizeof nonce, reinterpret_cast<const char*>(&nonce), sizeof nonce);
    auto proof = Handshake::make_proof(nonce);
    ASSERT_TRUE(proof);
    const int passed = GetParam() == Link::Kind::kPackets ? proof->get() : -1;
    ASSERT_TRUE(two.server->link().send(welcome, passed));
    two.client->step();
    EXPECT_EQ(two.client->state(), changed ? State::kStranger : State::kMet);
  }
}

TEST_P(HandshakeKinds, NoiseIsAStranger) {
  for (const bool header : {false, true}) {
    Two two(self_of(3), self_of(1), GetParam());
    const std::string bytes = header ? encode(Message{}) : std::string(500, '\x7F');
    int ends[2] = {-1, -1};
    const int type = GetParam() == Link::Kind::kStream ? SOCK_STREAM : SOCK_SEQPACKET;
    ASSERT_EQ(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, ends), 0);
    const Descriptor stranger(ends[0]);
    Handshake handshake(two.server_self, std::make_unique<Link>(Descriptor(ends[1]), GetParam()),
                        std::nullopt, false, Deadline::never());
    ASSERT_GT(write(stranger.get(), bytes.data(), bytes.size()), 0);
    handshake.step();
    EXPECT_EQ(handshake.state(), State::kStranger);
  }
}

// What differs, on both sides in the same words.
void expect_difference(const std::function<void(Identity*)>& change, const std::string& text,
                       Link::Kind kind) {
  Handshake::Self one = self_of(3);
  change(&one.identity);
  Two two(std::move(one), self_of(1), kind);
  two.talk();
  ASSERT_EQ(two.client->state(), State::kFailed);
  ASSERT_EQ(two.server->state(), State::kFailed);
  const Error ones = two.client->take_error(), others = two.server->take_error();
  EXPECT_EQ(ones.code(), Code::kMismatch);
  EXPECT_EQ(ones.message(), others.message());
  EXPECT_THAT(ones.message(), HasSubstr(text));
}

TEST_P(HandshakeKinds, ADifferentWorldSizeIsNamed) {
  expect_difference([](Identity* i) { i->world_size = 5; },
                    "rank 1 (pid 101 on host host-1) was started with a world size of 4, rank 3 "
                    "(pid 103 on host host-3) with 5",
                    GetParam());
}
TEST_P(HandshakeKinds, ADifferentBuildIsNamed) {
  expect_difference([](Identity* i) { set_word(i->build, "9.9.9-other"); }, "with '9.9.9-other'",
                    GetParam());
}
TEST_P(HandshakeKinds, ADifferentConfigurationIsNamed) {
  expect_difference([](Identity* i) { set_word(i->configuration, "isa avx2"); },
                    "configuration '', rank 3 (pid 103 on host host-3) with 'isa avx2'",
                    GetParam());
}
TEST_P(HandshakeKinds, ADifferentPermissionIsNamed) {
  expect_difference([](Identity* i) { i->allows_unauthenticated_data = 1; },
                    "allow_unauthenticated_data 0", GetParam());
}
TEST_P(HandshakeKinds, ARankOutsideTheWorldIsNamed) {
  Handshake::Self one = self_of(3);
  one.identity.rank = 4;
  Two two(std::move(one), self_of(1), GetParam());
  two.talk();
  ASSERT_EQ(two.server->state(), State::kFailed);
  EXPECT_EQ(two.server->take_error().message(),
            "rank 4 (pid 103 on host host-3) is outside a world of 4 ranks");
}
TEST_P(HandshakeKinds, TheSameRankIsNamedWithBothPlaces) {
  expect_difference([](Identity* i) { i->rank = 1; },
                    "rank 1 is there twice: pid 101 on host host-1 and pid 103 on host host-3",
                    GetParam());
}

TEST(HandshakeOverPackets, WithoutADescriptorItIsNotThisMachine) {
  Handshake::Self one = self_of(3);
  one.proof.reset();
  Two two(std::move(one), self_of(1), Link::Kind::kPackets);
  two.talk();
  EXPECT_EQ(two.server->state(), State::kStranger);
}

TEST(HandshakeOverPackets, ADescriptorOfSomethingElseProvesNothing) {
  Handshake::Self one = self_of(3);
  auto other = Handshake::make_proof({{1, 2}});
  ASSERT_TRUE(other);
  one.proof = std::move(*other);
  Two two(std::move(one), self_of(1), Link::Kind::kPackets);
  two.talk();
  EXPECT_EQ(two.server->state(), State::kStranger);
}

const std::string kSecret = "a secret of some length";

TEST(HandshakeOverTcp, RanksThatShareASecretMeet) {
  Two two(self_of(3, kSecret), self_of(1, kSecret), Link::Kind::kStream);
  two.talk();
  EXPECT_EQ(two.client->state(), State::kMet);
  EXPECT_EQ(two.server->state(), State::kMet);
}

TEST(HandshakeOverTcp, DifferentSecretsAreNamedOnBothSidesAndNotShown) {
  Two two(self_of(3, kSecret), self_of(1, "another secret of a length"), Link::Kind::kStream);
  two.talk();
  ASSERT_EQ(two.client->state(), State::kFailed);
  ASSERT_EQ(two.server->state(), State::kFailed);
  const std::string text = two.client->take_error().message();
  EXPECT_EQ(text, two.server->take_error().message());
  EXPECT_EQ(text,
            "rank 1 (pid 101 on host host-1) and rank 3 (pid 103 on host host-3) hold different "
            "secrets (AMXTRAIN_SECRET_FILE)");
}

TEST(HandshakeOverTcp, AMissingSecretIsNamedOnBothSides) {
  for (const bool client_has : {true, false}) {
    Two two(client_has ? self_of(3, kSecret) : self_of(3),
            client_has ? self_of(1) : self_of(1, kSecret), Link::Kind::kStream);
    two.talk();
    ASSERT_EQ(two.client->state(), State::kFailed);
    ASSERT_EQ(two.server->state(), State::kFailed);
    EXPECT_THAT(
        two.client->take_error().message(),
        AllOf(HasSubstr("has a secret (AMXTRAIN_SECRET_FILE), rank"), HasSubstr("has none")));
  }
}

// Where nonces went to those who know the secret alone, whoever has one and not the secret has overheard it.
TEST(HandshakeOverTcp, AnEavesdropperIsAStranger) {
  for (const std::string& eavesdroppers :
       {std::string(), std::string("another secret of a length")}) {
    for (const bool it_connects : {true, false}) {
      SCOPED_TRACE(it_connects ? "it connects" : "it is connected to");
      Handshake::Self rank = self_of(it_connects ? 1 : 3, kSecret);
      rank.nonces_are_secret = true;
      Handshake::Self stranger = self_of(it_connects ? 3 : 1, eavesdroppers);
      Two two(std::move(it_connects ? stranger : rank), std::move(it_connects ? rank : stranger),
              Link::Kind::kStream);
      two.talk();
      EXPECT_EQ((it_connects ? two.server : two.client)->state(), State::kStranger);
    }
  }
}

// A peer without the secret that claims to have one cannot make itself heard.
TEST(HandshakeOverTcp, AnAbortBeforeTheProofCountsForNothing) {
  Two two(self_of(3, kSecret), self_of(1, kSecret), Link::Kind::kStream);
  two.server->step();
  Message lie;
  lie.kind = MessageKind::kAbort;
  lie.code = static_cast<int32_t>(Code::kCommAborted);
  lie.set_text("the end is near");
  ASSERT_TRUE(two.client->link().send(lie));
  two.server->step();
  EXPECT_EQ(two.server->state(), State::kStranger);
}

// One that does not care what the other side answers.
TEST(HandshakeOverTcp, AWrongProofIsRefused) {
  for (const size_t bytes : {kAnswerBytes, size_t{0}, kAnswerBytes - 1}) {
    Two two(self_of(3, kSecret), self_of(1, kSecret), Link::Kind::kStream);
    two.server->step();
    Message proof;
    proof.kind = MessageKind::kProof;
    proof.payload.assign(bytes, '\0');
    ASSERT_TRUE(two.client->link().send(proof));
    two.server->step();
    EXPECT_EQ(two.server->state(), bytes == kAnswerBytes ? State::kFailed : State::kStranger);
  }
}

TEST(HandshakeOverTcp, NobodyThereIsToldWithTheReason) {
  const Handshake::Self self = self_of(3), peer = self_of(1);
  Address bound;
  auto listener = listen_tcp(resolve("127.0.0.1", 0)->front(), &bound);
  ASSERT_TRUE(listener);
  listener->reset();
  auto socket = start_connect_tcp(bound);
  if (!socket) return;  // refused at once
  Handshake handshake(self, std::make_unique<Link>(std::move(*socket), Link::Kind::kStream),
                      entry_of(peer), true, Deadline::never());
  const Deadline end = Deadline::after(5'000'000'000);
  while (!handshake.is_over() && !end.passed()) handshake.step();
  EXPECT_EQ(handshake.state(), State::kStranger);
  EXPECT_EQ(handshake.connect_errno(), ECONNREFUSED);
}

}  // namespace
}  // namespace amxt::comm
