#include "comm/tcp_store_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "comm/tcp_store_client.h"
#include "comm/tcp_store_protocol.h"
#include "unit/comm/rank_threads.h"
#include "unit/comm/store_bytes.h"

namespace amxt::comm::test {
namespace {

using namespace std::string_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

Deadline soon() { return Deadline::after(20 * kSecond); }

class TcpStoreServerTest : public testing::Test {
 protected:
  void start(const TcpStoreServer::Options& options = {}) {
    auto server = TcpStoreServer::start(host_, kPort, options);
    ASSERT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
  }

  Descriptor connect() {
    const auto addresses = resolve(host_, kPort);
    auto socket = connect_tcp((*addresses)[0], soon());
    EXPECT_TRUE(socket) << socket.error().message();
    return std::move(*socket);
  }

  Descriptor validated() {
    Descriptor socket = connect();
    say(socket, kHello);
    return socket;
  }

  std::unique_ptr<TcpStoreClient> client() {
    auto client = TcpStoreClient::connect(host_, kPort, soon());
    EXPECT_TRUE(client) << client.error().message();
    return std::move(*client);
  }

  static void say(const Descriptor& socket, const std::string& bytes) {
    EXPECT_TRUE(send_all(socket.get(), bytes, soon()));
  }

  static void hear(const Descriptor& socket, const std::string& bytes) {
    std::string got(bytes.size(), '?');
    const auto status = receive_all(socket.get(), got.data(), got.size(), soon());
    EXPECT_TRUE(status) << status.error().message();
    EXPECT_EQ(got, bytes);
  }

  static void hear_end(const Descriptor& socket) {
    char byte;
    const auto status = receive_all(socket.get(), &byte, 1, soon());
    ASSERT_FALSE(status) << "the server answers instead of closing";
    EXPECT_EQ(status.error().code(), Code::kIo) << status.error().message();
  }

  static constexpr int kPort = 29500;
  const std::string host_ = own_loopback();
  std::unique_ptr<TcpStoreServer> server_;
};

TEST_F(TcpStoreServerTest, TheGoldenExchange) {
  start();
  const Descriptor socket = validated();
  say(socket, "\x0d\x92\x10\0\0"s);
  hear(socket, "\x92\x10\0\0"s);
  say(socket, "\x01" + text("/amxt/a") + text("hello"));
  say(socket, "\x03" + text("/amxt/a"));
  hear(socket, text("hello"));
  say(socket, "\x04" + text("/amxt/n") + u64(5));
  hear(socket, u64(5));
  say(socket, "\x03" + text("/amxt/n"));
  hear(socket, text("5"));
  say(socket, "\x05" + u64(2) + text("/amxt/a") + text("/amxt/zz"));
  hear(socket, "\x01");
  say(socket, "\x05" + u64(2) + text("/amxt/a") + text("/amxt/n"));
  hear(socket, "\0"s);
  say(socket, "\x02" + text("/amxt/c") + text("") + text("v1"));
  hear(socket, text("v1"));
  say(socket, "\x02" + text("/amxt/c") + text("bad") + text("v2"));
  hear(socket, text("v1"));
  say(socket, "\x02" + text("/amxt/c") + text("v1") + text("v2"));
  hear(socket, text("v2"));
  say(socket, "\x02" + text("/amxt/d") + text("bad") + text("v2"));
  hear(socket, text("bad"));
  say(socket, "\x06" + u64(1) + text("/amxt/a"));
  hear(socket, "\0"s);
  say(socket, "\x07");
  hear(socket, u64(3));
  say(socket, "\x08" + text("/amxt/a"));
  hear(socket, u64(1));
  say(socket, "\x08" + text("/amxt/a"));
  hear(socket, u64(0));
  say(socket, "\x03" + text("/amxt/a"));
  hear(socket, text(""));
  EXPECT_EQ(server_->dropped(), 0);
}

TEST_F(TcpStoreServerTest, AWaitIsAnsweredWhenItsLastKeyAppears) {
  start();
  const Descriptor waiting = validated(), setting = validated();
  say(waiting, "\x06" + u64(2) + text("/a") + text("/b"));
  say(setting, "\x01" + text("/a") + text("x"));
  say(setting, "\x0d" + "ping"s);
  hear(setting, "ping");
  char byte;
  EXPECT_EQ(recv(waiting.get(), &byte, 1, MSG_DONTWAIT), -1) << "answered with one key missing";
  say(setting, "\x04" + text("/b") + u64(1));
  hear(waiting, "\0"s);
}

TEST_F(TcpStoreServerTest, AWaitIsCancelled) {
  start();
  const Descriptor socket = validated();
  say(socket, "\x06" + u64(1) + text("/never"));
  say(socket, "\x0c");
  hear(socket, "\x01");
  say(socket, "\x07");
  hear(socket, u64(0));
}

TEST_F(TcpStoreServerTest, RequestsMayComeInPiecesAndInRows) {
  start();
  const Descriptor socket = connect();
  const std::string requests =
      kHello + "\x01" + text("/k") + text("value") + "\x03" + text("/k") + "\x07";
  for (const char byte : requests) say(socket, std::string(1, byte));
  hear(socket, text("value") + u64(1));
  say(socket, "\x07\x07\x07");
  hear(socket, u64(1) + u64(1) + u64(1));
}

TEST_F(TcpStoreServerTest, ValuesUpTo8MiBPass) {
  start();
  const auto store = client();
  const std::string key(8 << 10, 'k'), value(8 << 20, 'v');
  ASSERT_TRUE(store->set(key, value, soon()));
  EXPECT_EQ(*store->get(key, soon()), value);
}

TEST_F(TcpStoreServerTest, StrangersAreDropped) {
  start();
  const std::pair<const char*, std::string> cases[] = {
      {"HTTP", "GET / HTTP/1.1\r\n\r\n"},
      {"no validation", "\x0dping"},
      {"another magic number", "\x00\x01\x02\x03\x04"s},
      {"an unknown operation", kHello + "\x63"},
      {"a queue operation", kHello + "\x0e" + text("/q") + text("v")},
      {"validation twice", kHello + kHello},
      {"a key of 2^63 bytes", kHello + "\x01" + u64(uint64_t{1} << 63)},
      {"a key of 8 KiB and a byte", kHello + "\x03" + u64((8 << 10) + 1)},
      {"a value of 8 MiB and a byte", kHello + "\x01" + text("/k") + u64((8 << 20) + 1)},
      {"a wait for no key", kHello + "\x06" + u64(0)},
      {"a check of 2^64-1 keys", kHello + "\x05" + u64(UINT64_MAX)},
      {"adding to text",
       kHello + "\x01" + text("/t") + text("five") + "\x04" + text("/t") + u64(1)},
      {"a sum beyond 64 bits",
       kHello + "\x01" + text("/s") + text("9223372036854775807") + "\x04" + text("/s") + u64(1)},
      {"a request in the middle of a wait", kHello + "\x06" + u64(1) + text("/never") + "\x07"},
  };
  int64_t dropped = 0;
  for (const auto& [name, bytes] : cases) {
    SCOPED_TRACE(name);
    const Descriptor socket = connect();
    say(socket, bytes);
    hear_end(socket);
    EXPECT_EQ(server_->dropped(), ++dropped);
  }
  EXPECT_EQ(*client()->add("/still", 1, soon()), 1);
}

TEST_F(TcpStoreServerTest, WhoStopsInTheMiddleIsDropped) {
  TcpStoreServer::Options options;
  options.stall_timeout_ns = kSecond / 2;
  start(options);
  const Descriptor silent = connect();
  const Descriptor half = validated();
  say(half, "\x01" + u64(100) + "/hal");
  hear_end(silent);
  hear_end(half);
  EXPECT_EQ(server_->dropped(), 2);
}

TEST_F(TcpStoreServerTest, WhoWaitsOrIsIdleIsKept) {
  TcpStoreServer::Options options;
  options.stall_timeout_ns = kSecond / 2;
  start(options);
  const Descriptor idle = validated(), waiting = validated();
  say(waiting, "\x06" + u64(1) + text("/later"));
  const Descriptor silent = connect();
  hear_end(silent);  // so much time has passed
  say(idle, "\x01" + text("/later") + text(""));
  hear(waiting, "\0"s);
}

TEST_F(TcpStoreServerTest, WhoDoesNotTakeItsAnswersIsDropped) {
  TcpStoreServer::Options options;
  options.stall_timeout_ns = kSecond / 2;
  start(options);
  const auto store = client();
  ASSERT_TRUE(store->set("/large", std::string(1 << 20, 'v'), soon()));
  ASSERT_EQ(*store->key_count(soon()), 1);  // it is there before anyone asks
  const Descriptor greedy = validated();
  std::string requests;
  for (int i = 0; i < 100; ++i) requests += "\x03" + text("/large");
  say(greedy, requests);
  const Deadline end = soon();
  while (server_->dropped() == 0 && !end.passed()) std::this_thread::yield();
  EXPECT_EQ(server_->dropped(), 1);
}

TEST_F(TcpStoreServerTest, TooManyConnectionsAreTurnedAway) {
  TcpStoreServer::Options options;
  options.max_connections = 3;
  start(options);
  std::vector<Descriptor> kept;
  for (int i = 0; i < 3; ++i) {
    kept.push_back(validated());
    say(kept.back(), "\x07");
    hear(kept.back(), u64(0));
  }
  hear_end(connect());
  kept.pop_back();
  const auto after = client();
  EXPECT_TRUE(after->set("/k", "v", soon()));
}

TEST_F(TcpStoreServerTest, AStrangerMakesWayForAMember) {
  TcpStoreServer::Options options;
  options.max_connections = 3;
  start(options);
  const auto member = client();
  ASSERT_EQ(*member->add("/n", 1, soon()), 1);
  const Descriptor silent = connect(), greeted = validated();
  const auto second = client();
  hear_end(silent);  // the older of the two strangers
  EXPECT_EQ(*second->add("/n", 1, soon()), 2);
  const auto third = client();
  hear_end(greeted);
  EXPECT_EQ(*third->add("/n", 1, soon()), 3);
  EXPECT_EQ(*member->add("/n", 1, soon()), 4);
  EXPECT_EQ(server_->dropped(), 2);
}

// In kB, of this process.
int64_t resident_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::stoll(line.substr(6));
  }
  return -1;
}

TEST_F(TcpStoreServerTest, TwoThousandStrangersDisturbNobody) {
  rlimit files{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  files.rlim_cur = files.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  if (files.rlim_max < 4096) GTEST_SKIP() << "skipped: fewer than 4096 open files are allowed";
  start();
  const auto before = client();
  ASSERT_EQ(*before->add("/n", 1, soon()), 1);
  const int64_t resident = resident_memory();
  std::vector<Descriptor> strangers;
  for (int i = 0; i < 2000; ++i) {
    strangers.push_back(connect());
    // Silent ones, greeted ones, and halves of a large request.
    if (i % 3 > 0) (void)send_all(strangers.back().get(), kHello, soon());
    if (i % 3 > 1) {
      const std::string half = "\x01" + text("/k") + u64(8 << 20) + std::string(40000, 'v');
      (void)send_all(strangers.back().get(), half, soon());
    }
    if (i % 100 == 0) {
      EXPECT_EQ(*before->add("/n", 1, soon()), 2 + i / 100);
    }
  }
  const auto after = client();
  EXPECT_EQ(*after->add("/n", 1, soon()), 22);
  EXPECT_EQ(*before->add("/n", 1, soon()), 23);
  EXPECT_GE(server_->dropped(), 2000 - 512);
#ifdef AMXT_SANITIZED
  constexpr int64_t kMost = 400 << 10;  // the sanitizer keeps what was freed
#else
  constexpr int64_t kMost = 100 << 10;
#endif
  EXPECT_LT(resident_memory() - resident, kMost) << "kB";
}

// A byte every now and then keeps no connection: a request has its time, whatever comes of it.
TEST_F(TcpStoreServerTest, WhoSpeaksByteByByteIsDropped) {
  TcpStoreServer::Options options;
  options.stall_timeout_ns = kSecond / 2;
  start(options);
  const Descriptor slow = validated();
  const Deadline end = soon();
  say(slow, "\x01" + u64(1000));
  while (server_->dropped() == 0 && !end.passed()) {
    (void)send(slow.get(), "k", 1, MSG_NOSIGNAL);
    poll(nullptr, 0, 20);
  }
  EXPECT_EQ(server_->dropped(), 1);
}

TEST_F(TcpStoreServerTest, WhatIsStoredIsBounded) {
  TcpStoreServer::Options options;
  options.max_stored_bytes = 3000;
  start(options);
  const Descriptor socket = validated();
  for (int i = 0; i < 5; ++i) say(socket, "\x01" + text("/same") + text(std::string(2000, 'v')));
  say(socket, "\x07");
  hear(socket, u64(1));
  say(socket, "\x01" + text("/other") + text(std::string(2000, 'v')));
  hear_end(socket);
  const auto store = client();
  EXPECT_TRUE(*store->remove("/same", soon()));
  EXPECT_TRUE(store->set("/other", std::string(2000, 'v'), soon()));
  EXPECT_EQ(*store->key_count(soon()), 1);
}

TEST_F(TcpStoreServerTest, RandomBytesHarmNobody) {
  start();
  const auto store = client();
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 300; ++round) {
    const Descriptor socket = connect();
    std::string bytes = round % 2 == 0 ? kHello : "";
    const size_t count = random() % 200;
    for (size_t i = 0; i < count; ++i) {
      const bool small = random() % 3 != 0;  // small numbers make lengths that get further
      bytes += static_cast<char>(small ? random() % 16 : random());
    }
    (void)send_all(socket.get(), bytes, soon());
    EXPECT_EQ(*store->add("/rounds", 1, soon()), round + 1);
  }
}

TEST_F(TcpStoreServerTest, ATakenPortIsNamed) {
  start();
  const auto second = TcpStoreServer::start(host_, kPort);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), Code::kExists);
  EXPECT_THAT(second.error().message(),
              AllOf(HasSubstr(host_ + ":29500"), HasSubstr("taken"), HasSubstr("MASTER_PORT")));
}

TEST_F(TcpStoreServerTest, AnAddressOfAnotherMachineIsNamed) {
  const auto server = TcpStoreServer::start("192.0.2.1", kPort);
  ASSERT_FALSE(server);
  EXPECT_THAT(server.error().message(),
              AllOf(HasSubstr("192.0.2.1:29500"), HasSubstr("MASTER_ADDR"),
                    HasSubstr("no address of this machine, where rank 0 is")));
}

TEST_F(TcpStoreServerTest, ItListensAtItsAddressOnly) {
  start();
  const auto elsewhere =
      TcpStoreClient::connect(own_loopback(), kPort, Deadline::after(kSecond / 20));
  ASSERT_FALSE(elsewhere);
  EXPECT_THAT(elsewhere.error().message(), HasSubstr("nothing listens"));
}

TEST_F(TcpStoreServerTest, LocalhostIsServedOnItsEveryAddress) {
  const int port = 20000 + getpid() % 12000;  // below those that connections are given
  auto server = TcpStoreServer::start("localhost", port);
  ASSERT_TRUE(server) << server.error().message();
  const auto store = TcpStoreClient::connect("localhost", port, soon());
  ASSERT_TRUE(store) << store.error().message();
  EXPECT_TRUE((*store)->set("/k", "v", soon()));
}

TEST_F(TcpStoreServerTest, ThePortIsFreeAtOnceAfterwards) {
  for (int i = 0; i < 20; ++i) {
    start();
    EXPECT_EQ(*client()->add("/n", 1, soon()), 1)
        << "the values of an earlier server are still there";
    server_.reset();
  }
}

// Torch's own client, where a python that has torch is named.
TEST_F(TcpStoreServerTest, TorchsClient) {
  const char* python = std::getenv("AMXTRAIN_TEST_TORCH");
  if (python == nullptr) GTEST_SKIP() << "AMXTRAIN_TEST_TORCH names no python with torch";
  start();
  const std::string program =
      "import torch.distributed as d, datetime\n"
      "s = d.TCPStore('" +
      host_ +
      "', 29500, is_master=False, timeout=datetime.timedelta(seconds=20))\n"
      "s.set('a', 'hello'); assert s.get('a') == b'hello'\n"
      "assert s.add('n', 5) == 5 and s.add('n', -7) == -2 and s.get('n') == b'-2'\n"
      "assert s.check(['a']) and not s.check(['a', 'zz'])\n"
      "assert s.compare_set('c', '', 'v1') == b'v1' and s.compare_set('c', 'bad', 'v2') == b'v1'\n"
      "assert s.delete_key('a') and not s.delete_key('a')\n"
      "try: s.wait(['never'], datetime.timedelta(milliseconds=200)); assert False\n"
      "except d.DistStoreError: pass\n"
      "s.wait(['c', 'n']); assert s.num_keys() >= 2\n"
      "s.append('p', 'x'); s.append('p', 'y'); s.multi_set(['q', 'r'], ['1', '2'])\n"
      "assert s.multi_get(['r', 'p']) == [b'2', b'xy'] and 'q' in s.list_keys()\n"
      "s.barrier('b', 1)\n"
      // A whole world of one over it, as its own launcher would make it.
      "w = d.TCPStore('" +
      host_ +
      "', 29500, 2, is_master=False, wait_for_workers=True)\n"
      "d.init_process_group('gloo', store=d.PrefixStore('pg', w), rank=0, world_size=1)\n"
      "d.barrier(); d.destroy_process_group()\n";
  EXPECT_EQ(std::system((std::string(python) + " -c \"" + program + "\"").c_str()), 0);
  EXPECT_EQ(server_->dropped(), 0);
}

}  // namespace
}  // namespace amxt::comm::test
