#include "comm/store_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "unit/comm/recorded_exchange.h"
#include "unit/comm/store_bytes.h"

namespace amxt::comm::test {
namespace {

using namespace std::string_literals;

class StoreServiceTest : public testing::Test {
 protected:
  StoreService::Connection& greeted() {
    StoreService::Connection& connection = service_.open();
    service_.receive(connection, kHello);
    return connection;
  }
  // What the connection is told, and takes.
  std::string heard(StoreService::Connection& connection) {
    std::string all;
    while (!connection.replies().empty()) {
      all += connection.replies();
      service_.taken(connection, connection.replies().size());
    }
    return all;
  }
  std::string ask(StoreService::Connection& connection, const std::string& request) {
    service_.receive(connection, request);
    return heard(connection);
  }

  StoreService service_{StoreService::Options()};
};

TEST_F(StoreServiceTest, AnswersWhatTorchsServersAnswer) {
  for (const char* store : {"libuv", "poll"}) {
    for (const RecordedExchange& exchange : recorded_exchanges(store)) {
      // Cut into single bytes, into packets as they came, and all of one side at once.
      for (const bool cut : {false, true}) {
        SCOPED_TRACE(exchange.name + " of " + store + (cut ? ", cut" : ""));
        StoreService service{StoreService::Options()};
        std::map<int, StoreService::Connection*> connections;
        std::map<int, std::string> said, recorded;
        const auto take = [&] {
          for (auto& [number, connection] : connections) {
            said[number] += connection->replies();
            service.taken(*connection, connection->replies().size());
          }
        };
        for (const Utterance& utterance : exchange.utterances) {
          StoreService::Connection*& connection = connections[utterance.connection];
          if (connection == nullptr) connection = &service.open();
          if (!utterance.by_client) {
            recorded[utterance.connection] += utterance.bytes;
          } else if (cut) {
            for (const char byte : utterance.bytes) {
              service.receive(*connection, std::string(1, byte));
              take();
            }
          } else {
            service.receive(*connection, utterance.bytes);
            take();
          }
        }
        for (const auto& [number, connection] : connections) {
          EXPECT_EQ(said[number], recorded[number]) << "connection " << number;
          EXPECT_TRUE(connection->is_idle());
          EXPECT_FALSE(connection->is_dropped());
        }
      }
    }
  }
}

TEST_F(StoreServiceTest, RequestsInARowAreAllAnswered) {
  StoreService::Connection& connection = greeted();
  EXPECT_EQ(ask(connection, "\x01" + text("/k") + text("value") + "\x03" + text("/k") + "\x07\x07"),
            text("value") + u64(1) + u64(1));
}

TEST_F(StoreServiceTest, AMemberIsToldFromAStranger) {
  StoreService::Connection& connection = service_.open();
  EXPECT_FALSE(connection.is_idle());
  service_.receive(connection, kHello);
  EXPECT_TRUE(connection.is_idle());
  EXPECT_EQ(ask(connection, "\x0dping"), "ping");
  EXPECT_FALSE(connection.is_in_use()) << "a greeting is not the use of a store";
  service_.receive(connection, "\x07");
  EXPECT_TRUE(connection.is_in_use());
  EXPECT_FALSE(connection.is_idle()) << "its answer is not taken yet";
}

TEST_F(StoreServiceTest, WhatIsNoRequestIsDropped) {
  const std::pair<const char*, std::string> cases[] = {
      {"HTTP", "GET / HTTP/1.1\r\n\r\n"},
      {"no validation", "\x0dping"},
      {"another magic number", "\x00\x01\x02\x03\x04"s},
      {"validation twice", kHello + kHello},
      {"an unknown operation", kHello + "\x63"},
      {"a queue's push", kHello + "\x0e" + text("/q") + text("v")},
      {"a queue's pop", kHello + "\x0f" + text("/q")},
      {"a queue's length", kHello + "\x10" + text("/q")},
      {"a key of 2^63 bytes", kHello + "\x01" + u64(uint64_t{1} << 63)},
      {"a key of 2^64-1 bytes", kHello + "\x08" + u64(UINT64_MAX)},
      {"a key of 8 KiB and a byte", kHello + "\x03" + u64((8 << 10) + 1)},
      {"a value of 8 MiB and a byte", kHello + "\x01" + text("/k") + u64((8 << 20) + 1)},
      {"a wait for no key", kHello + "\x06" + u64(0)},
      {"a check of no key", kHello + "\x05" + u64(0)},
      {"several of nothing", kHello + "\x0a" + u64(0)},
      {"nothing to set", kHello + "\x0b" + u64(0)},
      {"a check of 1025 keys", kHello + "\x05" + u64(1025)},
      {"a check of 2^64-1 keys", kHello + "\x05" + u64(UINT64_MAX)},
      {"adding to text",
       kHello + "\x01" + text("/t") + text("five") + "\x04" + text("/t") + u64(1)},
      {"a sum beyond 64 bits",
       kHello + "\x01" + text("/s") + text("9223372036854775807") + "\x04" + text("/s") + u64(1)},
      {"a barrier at text",
       kHello + "\x01" + text("/t") + text("five") + "\x12" + text("/t") + u64(1)},
      {"a request in the middle of a wait", kHello + "\x06" + u64(1) + text("/never") + "\x07"},
      {"a request in the middle of a barrier", kHello + "\x12" + text("/b") + u64(2) + "\x07"},
  };
  for (const auto& [name, bytes] : cases) {
    SCOPED_TRACE(name);
    StoreService::Connection& connection = service_.open();
    service_.receive(connection, bytes);
    EXPECT_TRUE(connection.is_dropped());
    EXPECT_EQ(connection.replies(), "");
    service_.receive(connection, kHello + "\x07");
    EXPECT_EQ(connection.replies(), "") << "nothing more is said to it";
    service_.close(connection);
  }
  EXPECT_EQ(service_.held_bytes(), 0u);
}

TEST_F(StoreServiceTest, RequestsAtTheLimitsPass) {
  StoreService::Connection& connection = greeted();
  const std::string key(8 << 10, 'k'), value(8 << 20, 'v');
  EXPECT_EQ(ask(connection, "\x02" + text(key) + text("") + text(value)), text(value));
  EXPECT_EQ(ask(connection, "\x02" + text(key) + text(value) + text(value)), text(value));
  std::string keys;
  for (int i = 0; i < 1024; ++i) keys += text(key);
  EXPECT_EQ(ask(connection, "\x06" + u64(1024) + keys), "\0"s);
  EXPECT_FALSE(connection.is_dropped());
}

TEST_F(StoreServiceTest, WhatIsStoredIsBounded) {
  StoreService::Options options;
  options.max_stored_bytes = 3000;
  StoreService service(options);
  StoreService::Connection& connection = service.open();
  service.receive(connection, kHello);
  for (const char* request : {"\x01", "\x09", "\x01"}) {
    service.receive(connection, request + text("/same") + text(std::string(1000, 'v')));
    EXPECT_LE(service.stored_bytes(), 3000u);
  }
  EXPECT_FALSE(connection.is_dropped());
  service.receive(connection, "\x0b" + u64(2) + text("/a") + text(std::string(1000, 'v')) +
                                  text("/b") + text(std::string(1000, 'v')));
  EXPECT_TRUE(connection.is_dropped());
  EXPECT_LE(service.stored_bytes(), 3000u);
}

TEST_F(StoreServiceTest, ManyHalfRequestsAreBoundedTogether) {
  StoreService::Options options;
  options.max_held_bytes = 10 << 20;
  StoreService service(options);
  StoreService::Connection& member = service.open();
  service.receive(member, kHello + "\x06" + u64(1) + text("/later"));
  for (int i = 0; i < 50; ++i) {
    StoreService::Connection& stranger = service.open();
    service.receive(stranger, kHello + "\x01" + text("/k") + u64(8 << 20));
    for (int part = 0; part < 7; ++part) service.receive(stranger, std::string(1 << 20, 'v'));
    EXPECT_LE(service.held_bytes(), options.max_held_bytes);
  }
  EXPECT_GT(std::count_if(service.connections().begin(), service.connections().end(),
                          [](const auto& connection) { return connection.is_dropped(); }),
            40);
  EXPECT_FALSE(member.is_dropped()) << "who holds most goes, not who comes last";
}

TEST_F(StoreServiceTest, AnAnswerThatIsTooLongIsNotGiven) {
  StoreService::Connection& connection = greeted();
  const std::string value(8 << 20, 'v');
  service_.receive(connection, "\x01" + text("/k") + text(value));
  service_.receive(connection, "\x0a" + u64(3) + text("/k") + text("/k") + text("/k"));
  EXPECT_TRUE(connection.is_dropped());
}

TEST_F(StoreServiceTest, WhoTakesNothingGetsNoMore) {
  StoreService::Connection& connection = greeted();
  service_.receive(connection, "\x01" + text("/k") + text(std::string(50 << 10, 'v')));
  std::string requests;
  for (int i = 0; i < 100; ++i) requests += "\x03" + text("/k");
  service_.receive(connection, requests);
  EXPECT_LT(connection.replies().size(), 200u << 10);
  EXPECT_EQ(heard(connection).size(), 100 * (8 + (50 << 10))) << "taken, they all come";
}

// --- A secret ---------------------------------------------------------------------------------

class StoreServiceSecretTest : public testing::Test {
 protected:
  static std::string text_of(const std::array<uint8_t, 32>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  static StoreService::Options with(const std::string& secret) {
    StoreService::Options options;
    options.secret = Secret(secret);
    return options;
  }
  // The server's answer to a proof by `secret`, after its own challenge.
  std::string prove(StoreService::Connection& connection, const Secret& secret, Role role) {
    const Challenge clients = *make_challenge();
    service_.receive(connection, kHello + "\xa5" + text_of(clients));
    Challenge servers{};
    EXPECT_EQ(connection.replies().size(), servers.size());
    std::copy(connection.replies().begin(), connection.replies().end(), servers.begin());
    service_.taken(connection, connection.replies().size());
    expected_ = text_of(answer_challenge(secret, Role::kServer, clients, servers, kStorePurpose));
    service_.receive(connection,
                     text_of(answer_challenge(secret, role, clients, servers, kStorePurpose)));
    const std::string answer(connection.replies());
    service_.taken(connection, answer.size());
    return answer;
  }

  const Secret secret_{"a secret of enough bytes"};
  StoreService service_{with("a secret of enough bytes")};
  std::string expected_;
};

TEST_F(StoreServiceSecretTest, WhoProvesItIsAnsweredAProofAndServed) {
  StoreService::Connection& connection = service_.open();
  EXPECT_EQ(prove(connection, secret_, Role::kClient), expected_);
  service_.receive(connection, "\x04" + text("/n") + u64(5));
  EXPECT_EQ(connection.replies(), u64(5));
}

TEST_F(StoreServiceSecretTest, WhoDoesNotIsToldSoAndDropped) {
  const std::string refusal(32, '\0');
  StoreService::Connection& plain = service_.open();
  service_.receive(plain, kHello + "\x0dping" + "\x04" + text("/n") + u64(5));
  EXPECT_EQ(plain.replies(), std::string("\x5e\xde\xc0\xa5"));
  EXPECT_FALSE(plain.is_dropped()) << "it has not taken that yet";
  EXPECT_FALSE(plain.is_idle()) << "it may not stay like this";
  service_.taken(plain, 4);
  EXPECT_TRUE(plain.is_dropped());
  EXPECT_TRUE(plain.is_refused());
  EXPECT_EQ(plain.replies(), "") << "what it asked for is not answered";
  StoreService::Connection& other = service_.open();
  service_.receive(other, kHello + "\x04" + text("/n") + u64(5));
  EXPECT_TRUE(other.is_dropped());
  EXPECT_EQ(other.replies(), "");
  EXPECT_FALSE(other.is_refused()) << "nothing of ours speaks so";
  StoreService::Connection& wrong = service_.open();
  EXPECT_EQ(prove(wrong, Secret("another secret of some bytes"), Role::kClient), refusal);
  EXPECT_TRUE(wrong.is_dropped());
  EXPECT_TRUE(wrong.is_refused());
  StoreService::Connection& mirror = service_.open();
  EXPECT_EQ(prove(mirror, secret_, Role::kServer), refusal)
      << "the server's own words are no proof";
  EXPECT_TRUE(mirror.is_dropped());
  EXPECT_EQ(service_.stored_bytes(), 0u) << "nobody wrote anything";
  StoreService::Connection& silent = service_.open();
  service_.receive(silent, kHello + "\xa5" + std::string(31, 'c'));
  EXPECT_FALSE(silent.is_idle()) << "it may not stay like this";
  EXPECT_FALSE(silent.is_in_use());
}

TEST_F(StoreServiceTest, WhoWantsASecretProvenThatIsNotHereIsToldSoAndServed) {
  StoreService::Connection& connection = service_.open();
  service_.receive(connection, kHello + "\xa5" + std::string(32, 'c'));
  EXPECT_EQ(connection.replies(), std::string(32, '\0'));
  EXPECT_TRUE(connection.has_asked_for_secret());
  EXPECT_FALSE(connection.is_in_use());
  service_.taken(connection, 32);
  service_.receive(connection, "\x04" + text("/n") + u64(5));
  EXPECT_EQ(connection.replies(), u64(5));
}

// --- Random bytes -----------------------------------------------------------------------------

TEST_F(StoreServiceTest, RandomBytesKeepTheBounds) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  StoreService::Options options;
  options.max_stored_bytes = 20000;
  options.max_held_bytes = 20000;
  StoreService service(options);
  std::vector<StoreService::Connection*> connections;
  int served = 0;
  for (int round = 0; round < 20000; ++round) {
    if (connections.size() < 5) {
      connections.push_back(&service.open());
      service.receive(*connections.back(), kHello);
    }
    const size_t which = random() % connections.size();
    StoreService::Connection& connection = *connections[which];
    std::string bytes(1, static_cast<char>(random() % 19));
    for (size_t i = random() % 4; i > 0; --i) bytes += text(std::string(random() % 3, 'k'));
    if (random() % 8 == 0) bytes += static_cast<char>(random());
    service.receive(connection, bytes);
    served += connection.replies().empty() ? 0 : 1;
    service.taken(connection, connection.replies().size());
    ASSERT_LE(service.stored_bytes(), options.max_stored_bytes);
    ASSERT_LE(service.held_bytes(), options.max_held_bytes);
    if (connection.is_dropped()) {
      service.close(connection);
      connections.erase(connections.begin() + static_cast<ptrdiff_t>(which));
    }
  }
  EXPECT_GT(served, 10) << "the bytes never came as far as an answer";
}

}  // namespace
}  // namespace amxt::comm::test
