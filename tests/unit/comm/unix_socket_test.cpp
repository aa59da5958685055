#include "comm/unix_socket.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

namespace amxt::comm {
namespace {

std::string unique_name(const char* what) {
  return "amxtrain-test-" + std::to_string(getpid()) + what;
}

TEST(UnixSocket, NobodyListeningIsToldAtOnce) {
  const auto socket = connect_abstract(unique_name("nobody"));
  ASSERT_FALSE(socket);
  EXPECT_EQ(socket.error().code(), Code::kNotFound);
}

TEST(UnixSocket, AFullBacklogIsWorthAnotherTry) {
  const auto listener = listen_abstract(unique_name("full"));
  ASSERT_TRUE(listener);
  ASSERT_EQ(listen(listener->get(), 0), 0);
  const auto first = connect_abstract(unique_name("full"));
  ASSERT_TRUE(first);
  const auto second = connect_abstract(unique_name("full"));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), Code::kTimeout);
}

TEST(UnixSocket, APeersProcessAndUserAreKnown) {
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
