#include "comm/tcp_store_client.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <thread>

#include "comm/socket.h"
#include "comm/tcp_store_protocol.h"
#include "unit/comm/rank_threads.h"
#include "unit/comm/recorded_exchange.h"
#include "unit/comm/store_bytes.h"

namespace amxt::comm::test {
namespace {

using namespace std::string_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

Deadline soon() { return Deadline::after(20 * kSecond); }

std::string own_pid_bytes() {
  std::string bytes;
  append_integer(&bytes, static_cast<uint32_t>(getpid()));
  return bytes;
}

// A listening socket whose first connection is played by a script.
class ScriptedStore {
 public:
  explicit ScriptedStore(std::function<void(int)> script, int connections = 1)
      : address_(own_loopback()), socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, address_.c_str(), &address.sin_addr);
    EXPECT_EQ(bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(socket_.get(), 8), 0);
    socklen_t length = sizeof address;
    getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this, connections, script = std::move(script)] {
      for (int i = 0; i < connections; ++i) {
        const Descriptor connection(accept(socket_.get(), nullptr, nullptr));
        if (!connection) return;
        script(connection.get());
      }
    });
  }
  ~ScriptedStore() {
    shutdown(socket_.get(), SHUT_RDWR);  // ends an accept that nobody answers
    thread_.join();
  }
  const std::string& host() const { return address_; }
  int port() const { return port_; }

 private:
  std::string address_;
  Descriptor socket_;
  int port_ = 0;
  std::thread thread_;
};

std::string read_exactly(int fd, size_t count) {
  std::string bytes(count, '\0');
  const auto status = receive_all(fd, bytes.data(), count, soon());
  if (!status) return "<" + status.error().message() + ">";
  return bytes;
}

// One segment as it came: at most that many bytes of a single read.
std::string read_once(int fd, size_t most) {
  std::string bytes(most, '\0');
  const ssize_t got = recv(fd, bytes.data(), most, 0);
  bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return bytes;
}

void expect(int fd, const std::string& bytes) { EXPECT_EQ(read_exactly(fd, bytes.size()), bytes); }
void answer(int fd, const std::string& bytes) { EXPECT_TRUE(send_all(fd, bytes, soon())); }

void greet(int fd) {
  EXPECT_EQ(read_once(fd, 5), kHello) << "validation must be one segment";
  expect(fd, "\x0d" + own_pid_bytes());
  answer(fd, own_pid_bytes());
}

// Plays `exchange` behind the greeting, while `act` drives the client.
void golden(const std::function<void(int)>& exchange,
            const std::function<void(TcpStoreClient&)>& act) {
  ScriptedStore store([&](int fd) {
    greet(fd);
    exchange(fd);
    EXPECT_EQ(read_once(fd, 1), "") << "the client sent more than the golden exchange has";
  });
  auto client = TcpStoreClient::connect(store.host(), store.port(), soon());
  ASSERT_TRUE(client) << client.error().message();
  act(**client);
  client->reset();
}

TEST(TcpStoreClient, Set) {
  golden([](int fd) { expect(fd, "\x01" + u64(7) + "/amxt/a" + u64(5) + "hello"); },
         [](TcpStoreClient& client) { EXPECT_TRUE(client.set("/amxt/a", "hello", soon())); });
}

TEST(TcpStoreClient, GetWaitsThenReads) {
  golden(
      [](int fd) {
        expect(fd, "\x06" + u64(1) + u64(7) + "/amxt/a");
        answer(fd, "\0"s);
        expect(fd, "\x03" + u64(7) + "/amxt/a");
        answer(fd, u64(5) + "hello");
      },
      [](TcpStoreClient& client) {
        const auto value = client.get("/amxt/a", soon());
        ASSERT_TRUE(value);
        EXPECT_EQ(*value, "hello");
      });
}

TEST(TcpStoreClient, FindChecksBeforeItReads) {
  golden(
      [](int fd) {
        expect(fd, "\x05" + u64(1) + u64(2) + "/a");
        answer(fd, "\x01");
        expect(fd, "\x05" + u64(1) + u64(2) + "/b");
        answer(fd, "\0"s);
        expect(fd, "\x03" + u64(2) + "/b");
        answer(fd, u64(0));
      },
      [](TcpStoreClient& client) {
        EXPECT_EQ(*client.find("/a", soon()), std::nullopt);
        EXPECT_EQ(*client.find("/b", soon()), "");
      });
}

TEST(TcpStoreClient, Check) {
  golden(
      [](int fd) {
        expect(fd, "\x05" + u64(2) + u64(2) + "/a" + u64(3) + "/zz");
        answer(fd, "\x01");
      },
      [](TcpStoreClient& client) {
        const std::string keys[] = {"/a", "/zz"};
        EXPECT_FALSE(*client.check(keys, soon()));
      });
}

TEST(TcpStoreClient, Add) {
  golden(
      [](int fd) {
        expect(fd, "\x04" + u64(2) + "/n" + u64(5));
        answer(fd, u64(5));
        expect(fd, "\x04" + u64(2) + "/n" + u64(static_cast<uint64_t>(-7)));
        answer(fd, u64(static_cast<uint64_t>(-2)));
      },
      [](TcpStoreClient& client) {
        EXPECT_EQ(*client.add("/n", 5, soon()), 5);
        EXPECT_EQ(*client.add("/n", -7, soon()), -2);
      });
}

TEST(TcpStoreClient, CompareSet) {
  golden(
      [](int fd) {
        expect(fd, "\x02" + u64(2) + "/c" + u64(0) + u64(2) + "v1");
        answer(fd, u64(2) + "v1");
      },
      [](TcpStoreClient& client) { EXPECT_EQ(*client.compare_set("/c", "", "v1", soon()), "v1"); });
}

TEST(TcpStoreClient, DeleteAndKeyCount) {
  golden(
      [](int fd) {
        expect(fd, "\x08" + u64(2) + "/a");
        answer(fd, u64(1));
        expect(fd, "\x08" + u64(2) + "/a");
        answer(fd, u64(0));
        expect(fd, "\x07");
        answer(fd, u64(3));
      },
      [](TcpStoreClient& client) {
        EXPECT_TRUE(*client.remove("/a", soon()));
        EXPECT_FALSE(*client.remove("/a", soon()));
        EXPECT_EQ(*client.key_count(soon()), 3);
      });
}

TEST(TcpStoreClient, AWaitThatTimesOutIsCancelledAndTheConnectionStays) {
  golden(
      [](int fd) {
        expect(fd, "\x06" + u64(1) + u64(6) + "/never");
        expect(fd, "\x0c");
        answer(fd, "\x01");
        expect(fd, "\x07");
        answer(fd, u64(0));
      },
      [](TcpStoreClient& client) {
        const std::string keys[] = {"/never"};
        const auto status = client.wait(keys, Deadline::after(kSecond / 20));
        ASSERT_FALSE(status);
        EXPECT_EQ(status.error().code(), Code::kTimeout);
        EXPECT_THAT(status.error().message(), HasSubstr("'/never'"));
        EXPECT_EQ(*client.key_count(soon()), 0);
      });
}

TEST(TcpStoreClient, AKeyThatAppearsWhileItsWaitIsCancelledLeavesNoAnswerBehind) {
  golden(
      [](int fd) {
        expect(fd, "\x06" + u64(1) + u64(5) + "/late");
        expect(fd, "\x0c");
        answer(fd, "\x00\x01"s);  // the wait's answer was on its way, then the cancel's
        expect(fd, "\x07");
        answer(fd, u64(1));
      },
      [](TcpStoreClient& client) {
        const std::string keys[] = {"/late"};
        EXPECT_EQ(client.wait(keys, Deadline::after(kSecond / 20)).error().code(), Code::kTimeout);
        EXPECT_EQ(*client.key_count(soon()), 1);
      });
}

TEST(TcpStoreClient, WhatIsTooLongIsNotSent) {
  golden([](int) {},
         [](TcpStoreClient& client) {
           const std::string key((8 << 10) + 1, 'k');
           EXPECT_EQ(client.set(key, "", soon()).error().code(), Code::kLimit);
           EXPECT_EQ(client.get(key, soon()).error().code(), Code::kLimit);
           EXPECT_EQ(client.add(key, 1, soon()).error().code(), Code::kLimit);
           EXPECT_EQ(client.remove(key, soon()).error().code(), Code::kLimit);
           const std::string value((8 << 20) + 1, 'v');
           EXPECT_EQ(client.set("/k", value, soon()).error().code(), Code::kLimit);
           EXPECT_EQ(client.compare_set("/k", value, "", soon()).error().code(), Code::kLimit);
           EXPECT_EQ(client.wait({}, soon()).error().code(), Code::kInvalidArgument);
           EXPECT_EQ(client.check({}, soon()).error().code(), Code::kInvalidArgument);
         });
}

TEST(TcpStoreClient, AnAnswerThatIsTooLongEndsTheConnection) {
  ScriptedStore store([](int fd) {
    greet(fd);
    expect(fd, "\x06" + u64(1) + u64(2) + "/a");
    answer(fd, "\0"s);
    expect(fd, "\x03" + u64(2) + "/a");
    answer(fd, u64(uint64_t{1} << 63));
  });
  auto client = TcpStoreClient::connect(store.host(), store.port(), soon());
  ASSERT_TRUE(client);
  const auto value = (*client)->get("/a", soon());
  EXPECT_EQ(value.error().code(), Code::kCommProtocol);
  EXPECT_THAT(value.error().message(),
              AllOf(HasSubstr(store.host()), HasSubstr("9223372036854775808 bytes")));
  EXPECT_EQ((*client)->set("/a", "", soon()).error().code(), Code::kInvalidState);
}

TEST(TcpStoreClient, AStoreThatGoesAwayIsNamed) {
  ScriptedStore store([](int fd) {
    greet(fd);
    expect(fd, "\x07");
  });
  auto client = TcpStoreClient::connect(store.host(), store.port(), soon());
  ASSERT_TRUE(client);
  const auto count = (*client)->key_count(soon());
  EXPECT_EQ(count.error().code(), Code::kIo);
  EXPECT_THAT(count.error().message(), AllOf(HasSubstr(store.host()), HasSubstr("closed")));
}

TEST(TcpStoreClient, AStoreThatStopsAnsweringTimesOut) {
  ScriptedStore store([](int fd) {
    greet(fd);
    expect(fd, "\x07");
    read_once(fd, 1);  // until the client gives up
  });
  auto client = TcpStoreClient::connect(store.host(), store.port(), soon());
  ASSERT_TRUE(client);
  EXPECT_EQ((*client)->key_count(Deadline::after(kSecond / 20)).error().code(), Code::kTimeout);
  EXPECT_EQ((*client)->key_count(soon()).error().code(), Code::kInvalidState);
}

TEST(TcpStoreClient, NothingListening) {
  const auto client = TcpStoreClient::connect(own_loopback(), 29500, Deadline::after(kSecond / 10));
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code(), Code::kTimeout);
  EXPECT_THAT(client.error().message(),
              AllOf(HasSubstr(":29500"), HasSubstr("nothing listens there")));
}

TEST(TcpStoreClient, AStoreThatIsLateIsWaitedFor) {
  const std::string host = own_loopback();
  std::atomic<bool> connected{false};
  std::thread late([&] {
    auto client = TcpStoreClient::connect(host, 29500, soon());
    connected = client.ok();
  });
  // Meanwhile the connecting thread is refused at least once, whenever it begins.
  Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(29500);
  inet_pton(AF_INET, host.c_str(), &address.sin_addr);
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  std::this_thread::yield();
  ASSERT_EQ(listen(listener.get(), 8), 0);
  {
    const Descriptor first(accept(listener.get(), nullptr, nullptr));
    // Closed without an answer, as a store with a full backlog does: tried again.
  }
  const Descriptor second(accept(listener.get(), nullptr, nullptr));
  greet(second.get());
  late.join();
  EXPECT_TRUE(connected);
}

TEST(TcpStoreClient, AcceptsAndNeverAnswers) {
  ScriptedStore store([](int fd) { read_exactly(fd, 11); });
  TcpStoreClient::Options options;
  options.ping_timeout_ns = kSecond / 10;
  const auto client = TcpStoreClient::connect(store.host(), store.port(), soon(), options);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code(), Code::kTimeout);
  EXPECT_THAT(client.error().message(), AllOf(HasSubstr(store.host()), HasSubstr("never answers")));
}

TEST(TcpStoreClient, AnotherProtocol) {
  ScriptedStore store([](int fd) {
    read_exactly(fd, 10);
    answer(fd, "HTTP/1.1 400 Bad Request\r\n\r\n");
  });
  const auto client = TcpStoreClient::connect(store.host(), store.port(), soon());
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code(), Code::kCommProtocol);
  EXPECT_THAT(client.error().message(),
              AllOf(HasSubstr("not a c10d TCPStore"), HasSubstr("'HTTP'")));
}

// Whoever sits at rank 0's address can ask for a proof; only who knows the secret can give one back.
TEST(TcpStoreClient, AStoreThatAsksForTheSecretAndDoesNotProveItIsRefused) {
  ScriptedStore store([](int fd) {
    EXPECT_EQ(read_once(fd, 5), kHello);
    const std::string request = read_exactly(fd, 33);
    EXPECT_EQ(request[0], '\xa5');
    answer(fd, std::string(32, 's'));
    const std::string proof = read_exactly(fd, 32);
    answer(fd, proof);  // the client's own words sent back
  });
  TcpStoreClient::Options options;
  options.secret = Secret("a secret of enough bytes");
  const auto client = TcpStoreClient::connect(store.host(), store.port(), soon(), options);
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code(), Code::kMismatch);
  EXPECT_THAT(client.error().message(),
              AllOf(HasSubstr(store.host()), HasSubstr("AMXTRAIN_SECRET_FILE")));
}

TEST(TcpStoreClient, ClosesEveryConnection) {
  ScriptedStore store([](int fd) { read_exactly(fd, 10); }, 1000);
  const auto client =
      TcpStoreClient::connect(store.host(), store.port(), Deadline::after(kSecond / 5));
  ASSERT_FALSE(client);
  EXPECT_EQ(client.error().code(), Code::kTimeout);
  EXPECT_THAT(client.error().message(), HasSubstr("closes new connections"));
}

TEST(TcpStoreClient, AHostThatDoesNotResolve) {
  const auto client = TcpStoreClient::connect("no such host", 29500, Deadline::after(kSecond / 10));
  ASSERT_FALSE(client);
  EXPECT_THAT(client.error().message(),
              AllOf(HasSubstr("'no such host'"), HasSubstr("MASTER_ADDR")));
}

// The client says what torch's own says where both do the same; the store's side is read from the recording.
TEST(TcpStoreClient, SaysWhatTorchsClientSays) {
  using Act = std::function<void(TcpStoreClient&)>;
  const std::map<std::string, Act> acts = {
      {"greeting", [](TcpStoreClient&) {}},
      {"set_and_get",
       [](TcpStoreClient& client) {
         EXPECT_TRUE(client.set("/amxt/a", "hello", soon()));
         EXPECT_EQ(*client.get("/amxt/a", soon()), "hello");
         EXPECT_TRUE(client.set("/amxt/empty", "", soon()));
         EXPECT_EQ(*client.get("/amxt/empty", soon()), "");
         std::string bytes;  // as UTF-8 has them
         for (int i = 0; i < 256; ++i) {
           if (i < 128) {
             bytes += static_cast<char>(i);
           } else {
             bytes += static_cast<char>(0xc0 | i >> 6);
             bytes += static_cast<char>(0x80 | (i & 63));
           }
         }
         EXPECT_TRUE(client.set("/amxt/bytes", bytes, soon()));
         EXPECT_EQ(*client.get("/amxt/bytes", soon()), bytes);
       }},
      {"add",
       [](TcpStoreClient& client) {
         EXPECT_EQ(*client.add("/amxt/n", 5, soon()), 5);
         EXPECT_EQ(*client.add("/amxt/n", -7, soon()), -2);
         EXPECT_EQ(*client.get("/amxt/n", soon()), "-2");
         EXPECT_TRUE(client.set("/amxt/m", "41", soon()));
         EXPECT_EQ(*client.add("/amxt/m", 1, soon()), 42);
       }},
      {"check",
       [](TcpStoreClient& client) {
         const std::string keys[] = {"/amxt/a", "/amxt/zz"};
         EXPECT_TRUE(client.set("/amxt/a", "x", soon()));
         EXPECT_TRUE(*client.check(std::span(keys, 1), soon()));
         EXPECT_FALSE(*client.check(keys, soon()));
       }},
      {"compare_set",
       [](TcpStoreClient& client) {
         EXPECT_EQ(*client.compare_set("/amxt/c", "", "v1", soon()), "v1");
         EXPECT_EQ(*client.compare_set("/amxt/c", "bad", "v2", soon()), "v1");
         EXPECT_EQ(*client.compare_set("/amxt/c", "v1", "v2", soon()), "v2");
         EXPECT_EQ(*client.compare_set("/amxt/d", "bad", "v2", soon()), "bad");
         const std::string keys[] = {"/amxt/d"};
         EXPECT_FALSE(*client.check(keys, soon()));
       }},
      {"wait",
       [](TcpStoreClient& client) {
         const std::string keys[] = {"/amxt/a", "/amxt/never"};
         EXPECT_TRUE(client.set("/amxt/a", "x", soon()));
         EXPECT_TRUE(client.wait(std::span(keys, 1), soon()));
         EXPECT_EQ(client.wait(keys, Deadline::after(kSecond / 20)).error().code(), Code::kTimeout);
         EXPECT_TRUE(*client.check(std::span(keys, 1), soon()));
       }},
      {"delete_and_count", [](TcpStoreClient& client) {
         EXPECT_EQ(*client.add("/amxt/a", 1, soon()), 1);
         EXPECT_TRUE(*client.remove("/amxt/a", soon()));
         EXPECT_FALSE(*client.remove("/amxt/a", soon()));
         EXPECT_EQ(*client.add("/amxt/b", 1, soon()), 1);
         EXPECT_EQ(*client.key_count(soon()), 1);
       }}};
  for (const char* kind : {"libuv", "poll"}) {
    size_t played = 0;
    for (const RecordedExchange& exchange : recorded_exchanges(kind)) {
      const auto act = acts.find(exchange.name);
      if (act == acts.end()) continue;
      ++played;
      SCOPED_TRACE(exchange.name + " of " + kind);
      ScriptedStore store([&](int fd) {
        for (const Utterance& utterance : exchange.utterances) {
          std::string bytes = utterance.bytes;
          // What is recorded is the ping of another process.
          if (bytes.starts_with(kHello)) bytes = kHello + "\x0d" + own_pid_bytes();
          if (&utterance == &exchange.utterances[1]) bytes = own_pid_bytes();
          utterance.by_client ? expect(fd, bytes) : answer(fd, bytes);
        }
        EXPECT_EQ(read_once(fd, 1), "") << "the client said more than torch's";
      });
      auto client = TcpStoreClient::connect(store.host(), store.port(), soon());
      ASSERT_TRUE(client) << client.error().message();
      act->second(**client);
    }
    EXPECT_EQ(played, acts.size());
  }
}

// Torch's own store, where a python that has torch is named.
TEST(TcpStoreClient, TorchsStore) {
  const char* python = std::getenv("AMXTRAIN_TEST_TORCH");
  if (python == nullptr) GTEST_SKIP() << "AMXTRAIN_TEST_TORCH names no python with torch";
  for (const char* libuv : {"True", "False"}) {
    const std::string host = own_loopback();
    const std::string program =
        "import torch.distributed as d, datetime\n"
        "s = d.TCPStore('" +
        host + "', 29500, is_master=True, wait_for_workers=False, use_libuv=" + libuv +
        ", timeout=datetime.timedelta(seconds=60))\n"
        "s.set('from-torch', 'hello')\n"
        "s.wait(['amxtrain/ask'])\n"
        "s.set('answer', s.get('amxtrain/ask') + b'!')\n"
        "s.wait(['amxtrain/done'])\n";
    std::thread torch([&] {
      const std::string command = std::string(python) + " -c \"" + program + "\"";
      EXPECT_EQ(std::system(command.c_str()), 0);
    });
    auto client = TcpStoreClient::connect(host, 29500, Deadline::after(60 * kSecond));
    EXPECT_TRUE(client) << client.error().message();
    if (client) {
      TcpStoreClient& store = **client;
      EXPECT_EQ(*store.get("/from-torch", soon()), "hello");
      EXPECT_TRUE(store.set("/amxtrain/ask", "why", soon()));
      EXPECT_EQ(*store.get("/answer", soon()), "why!");
      EXPECT_EQ(*store.find("/missing", soon()), std::nullopt);
      EXPECT_EQ(*store.add("/n", 5, soon()), 5);
      EXPECT_EQ(*store.get("/n", soon()), "5");
      EXPECT_EQ(*store.compare_set("/c", "", "v1", soon()), "v1");
      EXPECT_EQ(*store.compare_set("/c", "bad", "v2", soon()), "v1");
      EXPECT_EQ(*store.compare_set("/d", "bad", "v2", soon()), "bad");
      const std::string never[] = {"/never"};
      EXPECT_EQ(store.wait(never, Deadline::after(kSecond / 5)).error().code(), Code::kTimeout);
      EXPECT_GE(*store.key_count(soon()), 4);
      EXPECT_TRUE(*store.remove("/n", soon()));
      EXPECT_FALSE(*store.remove("/n", soon()));
      const std::string large(8 << 20, 'v');
      EXPECT_TRUE(store.set("/large", large, soon()));
      EXPECT_EQ(*store.get("/large", soon()), large);
      EXPECT_TRUE(store.set("/amxtrain/done", "", soon()));
    }
    torch.join();
  }
}

}  // namespace
}  // namespace amxt::comm::test
