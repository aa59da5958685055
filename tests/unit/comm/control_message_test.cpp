#include "comm/control_message.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

namespace amxt::comm {
namespace {

struct Pair {
  Pair() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    one = Descriptor(ends[0]);
    other = Descriptor(ends[1]);
  }
  Descriptor one, other;
};

std::string unique_name(const char* what) {
  return "amxtrain-test-" + std::to_string(getpid()) + what;
}

TEST(ControlMessage, ArrivesAsItWasSent) {
  Pair pair;
  Message sent;
  sent.kind = MessageKind::kAbort;
  sent.code = 102;
  sent.about_rank = 3;
  sent.sender.rank = 1;
  sent.set_text("the disk is full");
  ASSERT_TRUE(send_message(pair.one.get(), sent));
  Message got;
  ASSERT_EQ(receive_message(pair.other.get(), &got), Received::kMessage);
  EXPECT_EQ(got.kind, MessageKind::kAbort);
  EXPECT_EQ(got.code, 102);
  EXPECT_EQ(got.about_rank, 3);
  EXPECT_EQ(got.sender.rank, 1);
  EXPECT_EQ(got.get_text(), "the disk is full");
  EXPECT_EQ(receive_message(pair.other.get(), &got), Received::kNothing);
}

TEST(ControlMessage, TextIsCutAndStaysOneLine) {
  Message message;
  message.set_text("a\nb\tc");
  EXPECT_EQ(message.get_text(), "a b c");
  message.set_text(std::string(5000, 'x'));
  EXPECT_EQ(message.get_text(), std::string(sizeof message.text - 1, 'x'));
}

TEST(ControlMessage, ADescriptorComesAlong) {
  Pair pair;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  Descriptor reading(ends[0]), writing(ends[1]);
  ASSERT_TRUE(send_message(pair.one.get(), Message{}, writing.get()));
  writing.reset();
  Message message;
  Descriptor passed;
  ASSERT_EQ(receive_message(pair.other.get(), &message, &passed), Received::kMessage);
  ASSERT_TRUE(passed);
  ASSERT_EQ(write(passed.get(), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(read(reading.get(), &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
}

TEST(ControlMessage, ADescriptorThatNobodyWantsIsClosed) {
  Pair pair;
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  Descriptor reading(ends[0]), writing(ends[1]);
  ASSERT_TRUE(send_message(pair.one.get(), Message{}, writing.get()));
  writing.reset();
  Message message;
  ASSERT_EQ(receive_message(pair.other.get(), &message), Received::kMessage);
  char byte = 0;
  EXPECT_EQ(read(reading.get(), &byte, 1), 0) << "somebody still holds the writing end";
}

TEST(ControlMessage, AnythingElseIsGarbage) {
  Pair pair;
  Message message;
  ASSERT_EQ(send(pair.one.get(), "hello", 5, 0), 5);
  EXPECT_EQ(receive_message(pair.other.get(), &message), Received::kGarbage);
  const std::string long_packet(sizeof(Message) + 1, '\0');
  ASSERT_GT(send(pair.one.get(), long_packet.data(), long_packet.size(), 0), 0);
  EXPECT_EQ(receive_message(pair.other.get(), &message), Received::kGarbage);
  Message other_layout;
  other_layout.magic ^= 1;
  ASSERT_TRUE(send_message(pair.one.get(), other_layout));
  EXPECT_EQ(receive_message(pair.other.get(), &message), Received::kGarbage);
}

TEST(ControlMessage, LastWordsAreHeardBeforeTheEnd) {
  Pair pair;
  ASSERT_TRUE(send_message(pair.other.get(), Message{}));  // never read: shows as a reset
  Message words;
  words.kind = MessageKind::kAbort;
  ASSERT_TRUE(send_message(pair.one.get(), words));
  pair.one.reset();
  Message message;
  ASSERT_EQ(receive_message(pair.other.get(), &message), Received::kMessage);
  EXPECT_EQ(message.kind, MessageKind::kAbort);
  EXPECT_EQ(receive_message(pair.other.get(), &message), Received::kClosed);
  EXPECT_FALSE(send_message(pair.other.get(), words));
}

TEST(ControlMessage, NobodyListeningIsToldAtOnce) {
  const auto socket = connect_abstract(unique_name("nobody"));
  ASSERT_FALSE(socket);
  EXPECT_EQ(socket.error().code(), Code::kNotFound);
}

TEST(ControlMessage, AFullBacklogIsWorthAnotherTry) {
  const auto listener = listen_abstract(unique_name("full"));
  ASSERT_TRUE(listener);
  ASSERT_EQ(listen(listener->get(), 0), 0);
  const auto first = connect_abstract(unique_name("full"));
  ASSERT_TRUE(first);
  const auto second = connect_abstract(unique_name("full"));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), Code::kTimeout);
}

TEST(ControlMessage, APeersProcessAndUserAreKnown) {
  const auto listener = listen_abstract(unique_name("who"));
  ASSERT_TRUE(listener);
  const auto socket = connect_abstract(unique_name("who"));
  ASSERT_TRUE(socket);
  const PeerCredentials credentials = peer_credentials(socket->get());
  EXPECT_EQ(credentials.pid, getpid());
  EXPECT_TRUE(credentials.same_user);
}

}  // namespace
}  // namespace amxt::comm
