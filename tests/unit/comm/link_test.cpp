#include "comm/link.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>
#include <string>
#include <thread>

#include "base/deadline.h"

namespace amxt::comm {
namespace {

// Two ends of one connection. A stream of unix sockets is as good as TCP for what is tested here.
struct Ends {
  explicit Ends(Link::Kind kind) {
    int ends[2] = {-1, -1};
    const int type = kind == Link::Kind::kStream ? SOCK_STREAM : SOCK_SEQPACKET;
    EXPECT_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    one = std::make_unique<Link>(Descriptor(ends[0]), kind);
    other = std::make_unique<Link>(Descriptor(ends[1]), kind);
  }
  std::unique_ptr<Link> one, other;
};

Message text_message(std::string text, uint64_t sequence = 0) {
  Message message;
  message.kind = MessageKind::kPost;
  message.sequence = sequence;
  message.payload = std::move(text);
  return message;
}

class LinkKinds : public testing::TestWithParam<Link::Kind> {
 protected:
  LinkKinds() : ends_(GetParam()) {}
  // The next message; waits for it.
  Received receive(Message* message, Descriptor* passed = nullptr) {
    for (;;) {
      const Received received = ends_.other->receive(message, passed);
      if (received != Received::kNothing) return received;
      pollfd entry{ends_.other->socket(), POLLIN, 0};
      if (poll(&entry, 1, 10'000) <= 0) return received;
    }
  }
  Ends ends_;
};

INSTANTIATE_TEST_SUITE_P(Of, LinkKinds, testing::Values(Link::Kind::kPackets, Link::Kind::kStream),
                         [](const auto& kind) {
                           return kind.param == Link::Kind::kStream ? "Stream" : "Packets";
                         });

TEST_P(LinkKinds, MessagesArriveInOrder) {
  for (uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(ends_.one->send(text_message("text", i)));
  Message got;
  for (uint64_t i = 0; i < 5; ++i) {
    ASSERT_EQ(receive(&got), Received::kMessage);
    EXPECT_EQ(got.kind, MessageKind::kPost);
    EXPECT_EQ(got.sequence, i);
    EXPECT_EQ(got.payload, "text");
  }
  EXPECT_EQ(ends_.other->receive(&got), Received::kNothing);
  EXPECT_GT(ends_.other->heard_ns(), 0);
}

TEST_P(LinkKinds, WhatTheKernelDoesNotTakeIsSentLater) {
  const uint64_t count = 2000;
  for (uint64_t i = 0; i < count; ++i)
    ASSERT_TRUE(ends_.one->send(text_message(std::string(1000, 'x'), i)));
  EXPECT_TRUE(ends_.one->has_queued());
  EXPECT_FALSE(ends_.one->is_delivered());
  Message got;
  for (uint64_t i = 0; i < count;) {
    if (ends_.other->receive(&got) != Received::kMessage) {
      ASSERT_TRUE(ends_.one->has_queued()) << "message " << i << " is lost";
      ASSERT_TRUE(ends_.one->flush());
      continue;
    }
    ASSERT_EQ(got.sequence, i++);
  }
  EXPECT_FALSE(ends_.one->has_queued());
}

TEST_P(LinkKinds, APeerThatNeverReadsFillsTheQueueAndNoMore) {
  const std::string payload(1000, 'x');
  size_t sent = 0;
  while (ends_.one->send(text_message(payload)) && sent < 2 * Link::kMaxQueued) {
    sent += payload.size();
  }
  EXPECT_TRUE(ends_.one->is_overfull());
  EXPECT_LT(sent, Link::kMaxQueued + (size_t{2} << 20));
}

TEST_P(LinkKinds, TheEndComesBehindTheLastWords) {
  ASSERT_TRUE(ends_.other->send(text_message("never read: shows as a reset")));
  ASSERT_TRUE(ends_.one->send(text_message("last words")));
  ends_.one.reset();
  Message got;
  ASSERT_EQ(receive(&got), Received::kMessage);
  EXPECT_EQ(got.payload, "last words");
  EXPECT_EQ(receive(&got), Received::kClosed);
  EXPECT_EQ(receive(&got), Received::kClosed);
  EXPECT_FALSE(ends_.other->send(text_message("too late")));
}

TEST_P(LinkKinds, AnythingElseIsGarbage) {
  ASSERT_GT(write(ends_.one->socket(), std::string(100, 'x').data(), 100), 0);
  Message got;
  EXPECT_EQ(receive(&got), Received::kGarbage);
}

TEST(Link, AStrangersLengthIsBounded) {
  Ends ends(Link::Kind::kStream);
  ASSERT_TRUE(ends.one->send(text_message(std::string(kMaxSmallPayload, 'x'))));
  Message got;
  ASSERT_EQ(ends.other->receive(&got), Received::kMessage);
  ASSERT_TRUE(ends.one->send(text_message(std::string(kMaxSmallPayload + 1, 'x'))));
  EXPECT_EQ(ends.other->receive(&got), Received::kGarbage);
}

TEST(Link, AProvenPeersMayBeLong) {
  Ends ends(Link::Kind::kStream);
  const std::string payload(3 << 20, 'x');
  ends.other->trust(payload.size());
  std::thread sender([&] {
    EXPECT_TRUE(ends.one->send(text_message(payload)));
    while (ends.one->has_queued()) EXPECT_TRUE(ends.one->flush());
  });
  Message got;
  while (ends.other->receive(&got) == Received::kNothing) std::this_thread::yield();
  sender.join();
  EXPECT_EQ(got.payload, payload);
}

TEST(Link, AMessageInPiecesIsOneMessage) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  Ends ends(Link::Kind::kStream);
  std::string bytes;
  for (uint64_t i = 0; i < 50; ++i)
    bytes += encode(text_message(std::string(random() % 300, 'x'), i));
  uint64_t next = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t piece = std::min<size_t>(1 + random() % 97, bytes.size() - at);
    ASSERT_EQ(write(ends.one->socket(), bytes.data() + at, piece), static_cast<ssize_t>(piece));
    at += piece;
    Message got;
    while (ends.other->receive(&got) == Received::kMessage) EXPECT_EQ(got.sequence, next++);
  }
  EXPECT_EQ(next, 50u);
}

TEST(Link, APacketThatIsTooLongIsGarbage) {
  Ends ends(Link::Kind::kPackets);
  const std::string packet = encode(text_message(std::string(kMaxSmallPayload + 1, 'x')));
  ASSERT_GT(write(ends.one->socket(), packet.data(), packet.size()), 0);
  Message got;
  EXPECT_EQ(ends.other->receive(&got), Received::kGarbage);
}

TEST(Link, ADescriptorComesAlongEvenWhenItsOwnerHasClosedIt) {
  Ends ends(Link::Kind::kPackets);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  Descriptor reading(pipe_ends[0]), writing(pipe_ends[1]);
  while (!ends.one->has_queued()) ends.one->send(text_message("in front"));
  ASSERT_TRUE(ends.one->send(text_message("with it"), writing.get()));
  writing.reset();
  Message got;
  Descriptor passed;
  while (got.payload != "with it") {
    ASSERT_NE(ends.other->receive(&got, &passed), Received::kClosed);
    ends.one->flush();
  }
  ASSERT_TRUE(passed);
  ASSERT_EQ(write(passed.get(), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(read(reading.get(), &byte, 1), 1);
}

TEST(Link, ADescriptorThatNobodyWantsIsClosed) {
  Ends ends(Link::Kind::kPackets);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  Descriptor reading(pipe_ends[0]), writing(pipe_ends[1]);
  ASSERT_TRUE(ends.one->send(Message{}, writing.get()));
  writing.reset();
  Message got;
  ASSERT_EQ(ends.other->receive(&got), Received::kMessage);
  char byte = 0;
  EXPECT_EQ(read(reading.get(), &byte, 1), 0) << "somebody still holds the writing end";
}

}  // namespace
}  // namespace amxt::comm
