#include "comm/gloo_wire.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/thread_group.h"

namespace amxt::comm {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kSecond = 1'000'000'000;

Deadline soon() { return Deadline::after(30 * kSecond); }

// Runs body(wire, group) on every rank of a job of `world` ranks, each on a node of its own.
void with_wires(int world, const std::function<void(Wire&, Group&)>& body) {
  std::vector<int> nodes;
  for (int rank = 0; rank < world; ++rank) nodes.push_back(rank);
  test::ThreadGroups(nodes).run([&](Group& group) {
    auto wire = make_gloo_wire(group, nullptr, soon());
    if (!wire) {
      ADD_FAILURE() << wire.error().message();
      return;
    }
    body(**wire, group);
  });
}

std::vector<uint8_t> bytes_of(uint64_t seed, int64_t count) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

struct InFlight {
  std::vector<uint8_t> data, expected;
  Wire::Pending pending;
};

// Every rank sends to and receives from every other, `rounds` messages each, of sizes that both sides know, all posted before any wait.
void exchange_all(Wire& wire, Group& group, uint64_t seed, int rounds, int64_t largest) {
  std::vector<std::unique_ptr<InFlight>> all;
  for (int peer = 0; peer < group.size(); ++peer) {
    if (peer == group.rank()) continue;
    for (int i = 0; i < rounds; ++i) {
      const auto plan = [&](int from, int to) {
        return seed * 1'000'003 + static_cast<uint64_t>((from * 64 + to) * 1024 + i);
      };
      const auto size = [&](uint64_t of) {
        return static_cast<int64_t>(std::mt19937_64(of)() % static_cast<uint64_t>(largest + 1));
      };
      const uint64_t out = plan(group.rank(), peer), in = plan(peer, group.rank());
      const auto post_send = [&] {
        auto flight = std::make_unique<InFlight>();
        flight->data = bytes_of(out, size(out));
        auto posted = wire.send(peer, static_cast<uint64_t>(i), flight->data.data(), size(out));
        ASSERT_TRUE(posted.ok()) << posted.error().message();
        flight->pending = std::move(*posted);
        all.push_back(std::move(flight));
      };
      const auto post_receive = [&] {
        auto flight = std::make_unique<InFlight>();
        flight->data.resize(static_cast<size_t>(size(in)));
        flight->expected = bytes_of(in, size(in));
        auto posted = wire.receive(peer, static_cast<uint64_t>(i), flight->data.data(), size(in));
        ASSERT_TRUE(posted.ok()) << posted.error().message();
        flight->pending = std::move(*posted);
        all.push_back(std::move(flight));
      };
      if ((group.rank() + i) % 2 == 0) {
        post_send();
        post_receive();
      } else {
        post_receive();
        post_send();
      }
    }
  }
  std::shuffle(all.begin(), all.end(), std::mt19937_64(seed + static_cast<uint64_t>(group.rank())));
  for (const auto& flight : all) {
    const Status ended = wire.wait(*flight->pending, soon());
    ASSERT_TRUE(ended.ok()) << ended.error().message();
  }
  for (const auto& flight : all) {
    if (!flight->expected.empty()) {
      EXPECT_EQ(flight->data, flight->expected) << "seed " << seed;
    }
  }
}

// A wire is destroyed once all have what was sent to them.
void meet(Group& group) { EXPECT_TRUE(group.barrier(soon()).ok()); }

TEST(GlooWire, CarriesManyMessagesOfRandomSizesBothWaysAtOnce) {
  for (const int world : {2, 3, 4}) {
    with_wires(world, [&](Wire& wire, Group& group) {
      exchange_all(wire, group, 1, 40, 20'000);
      exchange_all(wire, group, 2, 3, 3 << 20);
      meet(group);
    });
  }
}

TEST(GlooWire, CarriesEmptyAndLargeMessages) {
  with_wires(2, [&](Wire& wire, Group& group) {
    const int peer = 1 - group.rank();
    const int64_t large = (int64_t{70} << 20) + 3;
    std::vector<uint8_t> data = bytes_of(7, large);
    if (group.rank() == 0) {
      auto nothing = wire.send(peer, 5, nullptr, 0);
      auto sent = wire.send(peer, 6, data.data(), large);
      ASSERT_TRUE(nothing.ok() && sent.ok());
      EXPECT_TRUE(wire.wait(**nothing, soon()).ok());
      EXPECT_TRUE(wire.wait(**sent, soon()).ok());
      EXPECT_EQ(wire.counters().sent_bytes, large);
      EXPECT_EQ(wire.counters().received_bytes, 0);
    } else {
      std::vector<uint8_t> got(static_cast<size_t>(large));
      auto received = wire.receive(peer, 6, got.data(), large);
      auto nothing = wire.receive(peer, 5, nullptr, 0);
      ASSERT_TRUE(nothing.ok() && received.ok());
      EXPECT_TRUE(wire.wait(**nothing, soon()).ok());
      EXPECT_TRUE(wire.wait(**received, soon()).ok());
      EXPECT_TRUE(got == data);
      EXPECT_EQ(wire.counters().received_bytes, large);
      EXPECT_GT(wire.counters().wait_ns, 0);
    }
    meet(group);
  });
}

TEST(GlooWire, SeveralWiresOfOneGroupDoNotMix) {
  std::vector<int> nodes{0, 1};
  test::ThreadGroups(nodes).run([&](Group& group) {
    auto first = make_gloo_wire(group, nullptr, soon());
    auto second = make_gloo_wire(group, nullptr, soon());
    ASSERT_TRUE(first.ok() && second.ok());
    std::thread other([&] { exchange_all(**second, group, 11, 20, 50'000); });
    exchange_all(**first, group, 12, 20, 50'000);
    other.join();
    meet(group);
  });
}

TEST(GlooWire, AWaitEndsAtItsDeadlineOrByCancelAndTheTransferGoesOn) {
  with_wires(2, [&](Wire& wire, Group& group) {
    uint64_t word = group.rank() == 0 ? 42 : 0;
    if (group.rank() == 0) {
      ASSERT_TRUE(group.barrier(soon()).ok());
      auto sent = wire.send(1, 9, &word, sizeof word);
      ASSERT_TRUE(sent.ok());
      EXPECT_TRUE(wire.wait(**sent, soon()).ok());
      meet(group);
      return;
    }
    auto received = wire.receive(0, 9, &word, sizeof word);
    ASSERT_TRUE(received.ok());
    const Status late = wire.wait(**received, Deadline::after(kSecond / 20));
    ASSERT_FALSE(late.ok());
    EXPECT_EQ(late.error().code(), Code::kTimeout);
    EXPECT_THAT(late.error().message(), HasSubstr("receive of 8 bytes from rank 0 (test"));
    const std::atomic<bool> cancel{true};
    const Status cancelled = wire.wait(**received, soon(), &cancel);
    ASSERT_FALSE(cancelled.ok());
    EXPECT_EQ(cancelled.error().code(), Code::kCancelled);
    ASSERT_TRUE(group.barrier(soon()).ok());
    EXPECT_TRUE(wire.wait(**received, soon()).ok());
    EXPECT_EQ(word, 42u);
    meet(group);
  });
}

TEST(GlooWire, TwoSizesNeverMeet) {
  with_wires(2, [&](Wire& wire, Group& group) {
    std::vector<char> data(64);
    auto posted =
        group.rank() == 0 ? wire.send(1, 3, data.data(), 64) : wire.receive(0, 3, data.data(), 32);
    ASSERT_TRUE(posted.ok());
    const Status late = wire.wait(**posted, Deadline::after(kSecond / 5));
    ASSERT_FALSE(late.ok());
    EXPECT_EQ(late.error().code(), Code::kTimeout);
    meet(group);
  });
}

TEST(GlooWire, APeerThatDropsItsWireIsAnErrorOfTheOther) {
  for (const bool while_sending : {true, false}) {
    std::vector<uint8_t> data(32 << 20);
    with_wires(2, [&](Wire& wire, Group& group) {
      if (group.rank() == 0) return;  // its wire goes
      auto posted = while_sending
                        ? wire.send(0, 1, data.data(), static_cast<int64_t>(data.size()))
                        : wire.receive(0, 1, data.data(), static_cast<int64_t>(data.size()));
      const Status ended = posted.ok() ? wire.wait(**posted, soon()) : Status(posted.error());
      ASSERT_FALSE(ended.ok());
      EXPECT_EQ(ended.error().code(), Code::kCommPeerLost);
      EXPECT_EQ(ended.error().rank(), 0);
      EXPECT_THAT(ended.error().message(), HasSubstr("rank 0 (test, 127.0.0.1)"));
      auto later = wire.send(0, 2, data.data(), 1);
      ASSERT_FALSE(later.ok()) << "a dead wire takes no more";
      EXPECT_EQ(later.error().message(), ended.error().message());
    });
  }
}

TEST(GlooWire, IsDestroyedWithTransfersInFlightOnBothSides) {
  std::vector<uint8_t> memory[3];  // the wires' for as long as they live
  for (auto& bytes : memory) bytes.resize(24 << 20);
  for (int round = 0; round < 5; ++round) {
    with_wires(3, [&](Wire& wire, Group& group) {
      constexpr int64_t kBytes = 8 << 20;
      uint8_t* const data = memory[group.rank()].data();
      std::vector<Wire::Pending> all;
      for (int peer = 0; peer < 3; ++peer) {
        if (peer == group.rank()) continue;
        auto sent = wire.send(peer, 1, data, kBytes);
        if (sent) all.push_back(std::move(*sent));
        if (group.rank() == 1) continue;  // never receives
        auto received = wire.receive(peer, 1, data + (1 + (peer > group.rank())) * kBytes, kBytes);
        if (received) all.push_back(std::move(*received));
      }
      if (group.rank() == 2) all.clear();  // transfers dropped before the wire
      // The others keep theirs until after it: see the order of destruction in with_wires().
    });
  }
}

TEST(GlooWire, AnAbortOfTheGroupEndsAWait) {
  with_wires(2, [&](Wire& wire, Group& group) {
    if (group.rank() == 0) {
      group.abort("rank 0 gave up: the disk is full");
      return;
    }
    char byte = 0;
    auto received = wire.receive(0, 1, &byte, 1);
    if (!received) return;  // it was seen even earlier
    const Status ended = wire.wait(**received, soon());
    ASSERT_FALSE(ended.ok());
    EXPECT_THAT(ended.error().message(), HasSubstr("the disk is full"));
  });
}

TEST(GlooWire, RanksThatAreNotThereAreRefused) {
  with_wires(2, [&](Wire& wire, Group& group) {
    char byte = 0;
    for (const int rank : {-1, 2, group.rank()}) {
      auto posted = wire.send(rank, 1, &byte, 1);
      ASSERT_FALSE(posted.ok());
      EXPECT_EQ(posted.error().code(), Code::kInvalidArgument);
    }
    EXPECT_FALSE(wire.receive(1 - group.rank(), 1, &byte, -1).ok());
    meet(group);
  });
}

TEST(GlooWire, AnInterfaceThatIsNotThereIsNamedOnAllRanks) {
  setenv("GLOO_SOCKET_IFNAME", "eth77,lo", 1);
  test::ThreadGroups(std::vector<int>{0, 1}).run([&](Group& group) {
    auto wire = make_gloo_wire(group, nullptr, soon());
    ASSERT_FALSE(wire.ok());
    EXPECT_THAT(wire.error().message(), HasSubstr("GLOO_SOCKET_IFNAME='eth77'"));
    EXPECT_EQ(wire.error().message().find("AMXTRAIN_SOCKET_IFNAME"), std::string::npos);
  });
  setenv("GLOO_SOCKET_IFNAME", "lo", 1);
  with_wires(2, [&](Wire& wire, Group& group) {
    exchange_all(wire, group, 3, 2, 100);
    meet(group);
  });
  unsetenv("GLOO_SOCKET_IFNAME");
}

// --- Strangers --------------------------------------------------------------------------------

std::vector<sockaddr_in> listeners_of_this_process() {
  std::vector<sockaddr_in> all;
  DIR* folder = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(folder)) {
    sockaddr_in address{};
    socklen_t length = sizeof address;
    int listening = 0;
    socklen_t size = sizeof listening;
    const int fd = std::atoi(entry->d_name);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening == 1 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
        address.sin_family == AF_INET)
      all.push_back(address);
  }
  closedir(folder);
  return all;
}

// A group whose first exchange gives a stranger the time to come first.
class WatchedGroup final : public Group {
 public:
  WatchedGroup(Group& group, std::function<void()> stranger)
      : group_(group), stranger_(std::move(stranger)) {}
  const LaunchInfo& launch() const override { return group_.launch(); }
  const Nodes& nodes() const override { return group_.nodes(); }
  Result<SharedMemory> share(std::string_view what, int64_t bytes, const Limits& limits) override {
    return group_.share(what, bytes, limits);
  }
  Status barrier(const Limits& limits) override { return group_.barrier(limits); }
  Result<std::vector<std::string>> exchange(std::string_view payload,
                                            const Limits& limits) override {
    if (exchanges_++ == 0) {
      AMXT_TRY(group_.barrier(limits));
      if (rank() == 0) stranger_();
      AMXT_TRY(group_.barrier(limits));
    }
    AMXT_ASSIGN(std::vector<std::string> all, group_.exchange(payload, limits));
    if (look_ && exchanges_ == 1) look_(&all);
    return all;
  }
  // Sees, and may change, what the first exchange gives this rank.
  void set_look(std::function<void(std::vector<std::string>*)> look) { look_ = std::move(look); }

  Result<std::unique_ptr<Wire>> make_wire(const Limits& limits) override {
    return group_.make_wire(limits);
  }
  void set_listener(Listener listener) override { group_.set_listener(std::move(listener)); }
  void post(int rank, std::string_view message) override { group_.post(rank, message); }
  Status check() const override { return group_.check(); }
  void abort(std::string_view reason) override { group_.abort(reason); }
  Status finalize(const Limits& limits) override { return group_.finalize(limits); }
  bool oversubscribed() const override { return true; }

 private:
  Group& group_;
  std::function<void()> stranger_;
  std::function<void(std::vector<std::string>*)> look_;
  int exchanges_ = 0;
};

// What a stranger says after connecting.
std::vector<std::string> strangers_words() {
  std::vector<std::string> words{"", "GET / HTTP/1.1\r\n\r\n", std::string(4096, '\xff')};
  for (uint64_t opcode = 0; opcode < 4;
       ++opcode) {  // headers as Gloo's own, of things that were never posted
    std::string header;
    for (const uint64_t field : {uint64_t{1} << 40, opcode, uint64_t{77}, uint64_t{0},
                                 uint64_t{1} << 40, uint64_t{1} << 50})
      header.append(reinterpret_cast<const char*>(&field), sizeof field);
    words.push_back(header + header);
  }
  return words;
}

TEST(GlooWire, AStrangerThatComesFirstEndsTheStartByNameOrIsShutOut) {
  for (const std::string& words : strangers_words()) {
    std::vector<int> sockets;
    test::ThreadGroups groups(std::vector<int>{0, 1, 2});
    const auto stranger = [&] {
      for (const sockaddr_in& address : listeners_of_this_process()) {
        const int fd = socket(AF_INET, SOCK_STREAM, 0);
        ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
        if (!words.empty()) {
          EXPECT_GT(send(fd, words.data(), words.size(), MSG_NOSIGNAL), 0);
        }
        sockets.push_back(fd);
      }
      ASSERT_FALSE(sockets.empty());
    };
    std::atomic<int> failed{0};
    groups.run([&](Group& plain) {
      WatchedGroup group(plain, stranger);
      const int64_t start = monotonic_ns();
      auto wire = make_gloo_wire(group, nullptr, Deadline::after(5 * kSecond));
      EXPECT_LT(monotonic_ns() - start, 7 * kSecond);
      if (!wire) {
        ++failed;
        EXPECT_THAT(wire.error().message(), HasSubstr("rank "));
        EXPECT_GE(wire.error().rank(), 0);
      } else {
        exchange_all(**wire, group, 5, 2, 1000);
        meet(group);
      }
    });
    EXPECT_TRUE(failed == 0 || failed == 3) << failed << " of 3 ranks failed";
    for (const int fd : sockets) close(fd);
  }
}

TEST(GlooWire, APeerThatDoesNotKnowItsNonceIsAStranger) {
  test::ThreadGroups(std::vector<int>{0, 1, 2}).run([&](Group& plain) {
    WatchedGroup group(plain, [] {});
    group.set_look([&](std::vector<std::string>* all) {
      if (plain.rank() == 0) (*all)[2][5] ^= 1;  // a bit of the nonce of rank 2
    });
    auto wire = make_gloo_wire(group, nullptr, Deadline::after(10 * kSecond));
    ASSERT_FALSE(wire.ok());
    EXPECT_THAT(wire.error().message(), HasSubstr("no connection with rank 2"));
    EXPECT_THAT(wire.error().message(), HasSubstr("a stranger is at the other end"));
  });
}

TEST(GlooWire, NothingListensOnceTheMeshIsConnected) {
  with_wires(3, [&](Wire&, Group& group) {
    ASSERT_TRUE(group.barrier(soon()).ok());
    if (group.rank() == 0) {
      EXPECT_TRUE(listeners_of_this_process().empty());
    }
    ASSERT_TRUE(group.barrier(soon()).ok());
  });
}

}  // namespace
}  // namespace amxt::comm
