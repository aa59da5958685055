#include "comm/socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <string>
#include <thread>

#include "unit/comm/rank_threads.h"

namespace amxt::comm::test {
namespace {

using ::testing::HasSubstr;

struct Pair {
  Pair() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    one = Descriptor(ends[0]);
    other = Descriptor(ends[1]);
  }
  Descriptor one, other;
};

TEST(Socket, ADescriptorIsClosedWithItsOwner) {
  Pair pair;
  const int fd = pair.one.get();
  Descriptor moved = std::move(pair.one);
  EXPECT_FALSE(pair.one);
  EXPECT_EQ(moved.get(), fd);
  moved.reset();
  char byte;
  EXPECT_EQ(recv(pair.other.get(), &byte, 1, 0), 0);
}

TEST(Socket, NumbersAndNamesResolve) {
  EXPECT_EQ((*resolve("127.0.0.1", 80))[0].text, "127.0.0.1:80");
  EXPECT_EQ((*resolve("::1", 80))[0].text, "[::1]:80");
  EXPECT_EQ((*resolve("127.0.0.1", 80))[0].ip(), "127.0.0.1");
  EXPECT_EQ((*resolve("::1", 80))[0].ip(), "::1");
  EXPECT_EQ((*resolve("127.0.0.1", 80))[0].at_port(81).text, "127.0.0.1:81");
  EXPECT_EQ((*resolve("::1", 80))[0].at_port(65535).text, "[::1]:65535");
  EXPECT_FALSE(resolve("localhost", 80)->empty());
  const auto none = resolve("bad\nname", 80);
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message(), HasSubstr("'bad\\x0aname' (MASTER_ADDR) is not resolved"));
}

TEST(Socket, AResolverHasUntilTheDeadline) {
  const auto late = resolve("a.name.to.ask.for.invalid", 80, Deadline::after(0));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code(), Code::kNotFound);
  EXPECT_THAT(late.error().message(),
              HasSubstr("'a.name.to.ask.for.invalid' (MASTER_ADDR) is not resolved"));
}

TEST(Socket, MoreThanTheBuffersHoldPassesWhole) {
  Pair pair;
  const std::string sent(4 << 20, 's');
  std::thread sender(
      [&] { EXPECT_TRUE(send_all(pair.one.get(), sent, Deadline::after(20 * kSecond))); });
  std::string got(sent.size(), '?');
  EXPECT_TRUE(receive_all(pair.other.get(), got.data(), got.size(), Deadline::after(20 * kSecond)));
  sender.join();
  EXPECT_EQ(got, sent);
}

TEST(Socket, EndsAtTheDeadline) {
  Pair pair;
  char byte;
  EXPECT_EQ(receive_all(pair.one.get(), &byte, 1, Deadline::after(kSecond / 50)).error().code(),
            Code::kTimeout);
  EXPECT_EQ(send_all(pair.one.get(), std::string(16 << 20, 'x'), Deadline::after(kSecond / 50))
                .error()
                .code(),
            Code::kTimeout);
}

TEST(Socket, AGonePeerIsAnErrorAndNoSignal) {
  Pair pair;
  pair.other.reset();
  char byte;
  EXPECT_EQ(receive_all(pair.one.get(), &byte, 1, Deadline::never()).error().code(), Code::kIo);
  EXPECT_EQ(send_all(pair.one.get(), "x", Deadline::never()).error().sys_errno(), EPIPE);
}

// With nobody listening on a port of the kernel's own choice, a connect may end up at itself.
TEST(Socket, NeverConnectsToItself) {
  const Descriptor probe(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  socklen_t length = sizeof address;
  ASSERT_EQ(getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  // A socket that is bound to the port and connects to it meets itself for certain.
  ASSERT_EQ(connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_TRUE(meets_itself(probe.get()));
  const Descriptor listener(socket(AF_INET, SOCK_STREAM, 0));
  address.sin_port = 0;
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(listener.get(), 1), 0);
  ASSERT_EQ(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  const auto other =
      connect_tcp((*resolve("127.0.0.1", ntohs(address.sin_port)))[0], Deadline::after(kSecond));
  ASSERT_TRUE(other) << other.error().message();
  EXPECT_FALSE(meets_itself(other->get()));
}

}  // namespace
}  // namespace amxt::comm::test
