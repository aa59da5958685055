#include "comm/group.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <latch>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "comm/control_message.h"
#include "comm/rendezvous_entry.h"
#include "comm/tcp_store_client.h"
#include "comm/tcp_store_server.h"
#include "comm/wire.h"
#include "unit/comm/rank_threads.h"

namespace amxt::comm::test {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

Deadline soon() { return Deadline::after(20 * kSecond); }

std::unique_ptr<Group> alone() {
  auto group = Group::create(LaunchInfo{}, GroupOptions{}, nullptr, soon());
  EXPECT_TRUE(group);
  return group ? std::move(*group) : nullptr;
}

TEST(Group, AloneEverythingIsImmediate) {
  const auto group = alone();
  EXPECT_EQ(group->rank(), 0);
  EXPECT_EQ(group->size(), 1);
  EXPECT_TRUE(group->barrier(soon()));
  auto memory = group->share("weights", 1 << 20, soon());
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->bytes(), 1 << 20);
  for (int64_t i = 0; i < memory->bytes(); i += 4096) EXPECT_EQ(memory->data()[i], std::byte{0});
  memory->data()[memory->bytes() - 1] = std::byte{1};
  const auto all = group->exchange("mine", soon());
  ASSERT_TRUE(all);
  EXPECT_EQ(*all, std::vector<std::string>{"mine"});
  EXPECT_TRUE(group->finalize(soon()));
  EXPECT_EQ(group->barrier(soon()).error().code(), Code::kInvalidState);
}

TEST(Group, AloneAnAbortIsRemembered) {
  const auto group = alone();
  EXPECT_TRUE(group->check());
  group->abort("no more");
  EXPECT_EQ(group->check().error().code(), Code::kCommAborted);
  EXPECT_THAT(group->barrier(soon()).error().message(), HasSubstr("no more"));
  EXPECT_THAT(group->share("x", 1, soon()).error().message(), HasSubstr("no more"));
}

TEST(Group, AloneItIsOversubscribedWithMoreThreadsThanCpus) {
  GroupOptions options;
  options.threads = 1 << 20;
  EXPECT_TRUE((*Group::create(LaunchInfo{}, options, nullptr, soon()))->oversubscribed());
  options.threads = 1;
  EXPECT_FALSE((*Group::create(LaunchInfo{}, options, nullptr, soon()))->oversubscribed());
}

TEST(Group, AnImpossibleLaunchIsRefused) {
  LaunchInfo launch = local_launch(2, 2, "127.0.0.1");
  EXPECT_EQ(Group::create(launch, {}, nullptr, soon()).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(Group::create(local_launch(0, 65, "127.0.0.1"), {}, nullptr, soon()).error().code(),
            Code::kLimit);
}

// Node of each rank.
class GroupWorlds : public testing::TestWithParam<std::vector<int>> {
 protected:
  int world() const { return static_cast<int>(GetParam().size()); }
  int nodes() const { return 1 + *std::max_element(GetParam().begin(), GetParam().end()); }
  void run(const std::function<void(Group&)>& body) const {
    RankThreads(world(), body, {.nodes = nodes() > 1 ? GetParam() : std::vector<int>()});
  }
};
INSTANTIATE_TEST_SUITE_P(Worlds, GroupWorlds,
                         testing::Values(std::vector<int>(1), std::vector<int>(2),
                                         std::vector<int>(3), std::vector<int>(4),
                                         std::vector<int>(7), std::vector<int>(8),
                                         std::vector<int>{0, 1}, std::vector<int>{0, 0, 1},
                                         std::vector<int>{0, 1, 0, 1}, std::vector<int>{0, 1, 2, 3},
                                         std::vector<int>{0, 1, 0, 2, 1, 1, 2},
                                         std::vector<int>{0, 0, 1, 1, 2, 2, 3, 3}),
                         [](const auto& world) {
                           std::string name;
                           for (const int node : world.param) name += std::to_string(node);
                           return name;
                         });

TEST_P(GroupWorlds, NodesAreTheSameForAllRanks) {
  run([&](Group& group) {
    ASSERT_EQ(group.node_count(), nodes());
    for (int rank = 0; rank < world(); ++rank) {
      EXPECT_EQ(group.nodes().node_of(rank), GetParam()[static_cast<size_t>(rank)]);
      EXPECT_FALSE(group.nodes().ranks[static_cast<size_t>(rank)].host.empty());
    }
    EXPECT_EQ(group.nodes().on(group.node())[static_cast<size_t>(group.local_rank())],
              group.rank());
    EXPECT_EQ(group.nodes().ranks[0].address, nodes() > 1 ? "127.0.0.1" : "");
  });
}

TEST_P(GroupWorlds, SharedMemoryIsOneMemoryOnANode) {
  run([&](Group& group) {
    const int64_t bytes = 3 * 4096 + 5;
    auto memory = group.share("numbers", bytes, soon());
    ASSERT_TRUE(memory) << memory.error().message();
    EXPECT_EQ(memory->bytes(), bytes);
    auto* numbers = reinterpret_cast<int32_t*>(memory->data());
    EXPECT_EQ(numbers[group.rank()], 0);
    numbers[group.rank()] = 100 + group.rank();
    ASSERT_TRUE(group.barrier(soon()));
    for (int rank = 0; rank < world(); ++rank) {
      EXPECT_EQ(numbers[rank], group.nodes().node_of(rank) == group.node() ? 100 + rank : 0);
    }
    ASSERT_TRUE(group.barrier(soon()));
  });
}

TEST_P(GroupWorlds, NobodyPassesABarrierBeforeAllHaveArrived) {
  std::atomic<int> arrived{0};
  run([&](Group& group) {
    for (int round = 1; round <= 200; ++round) {
      arrived.fetch_add(1);
      ASSERT_TRUE(group.barrier(soon()));
      EXPECT_GE(arrived.load(), round * world());
      ASSERT_TRUE(group.barrier(soon()));
    }
  });
  EXPECT_EQ(arrived.load(), 200 * world());
}

TEST_P(GroupWorlds, AnExchangeGivesEveryonesPayloadByRank) {
  run([&](Group& group) {
    for (int round = 0; round < 50; ++round) {
      const auto payload_of = [&](int rank) {
        return std::string(static_cast<size_t>((rank * 977 + round * 131) % 5000),
                           static_cast<char>('a' + (rank + round) % 26));
      };
      const auto all = group.exchange(payload_of(group.rank()), soon());
      ASSERT_TRUE(all) << all.error().message();
      ASSERT_EQ(all->size(), static_cast<size_t>(world()));
      for (int rank = 0; rank < world(); ++rank)
        EXPECT_EQ((*all)[static_cast<size_t>(rank)], payload_of(rank));
    }
  });
}

TEST_P(GroupWorlds, AnExchangeOfNothingIsNothing) {
  run([&](Group& group) {
    for (int round = 0; round < 4; ++round) {
      // In turn with payloads: none of the former may show.
      const std::string payload = round % 2 == 0 ? std::string(100, 'x') : std::string();
      const auto all = group.exchange(payload, soon());
      ASSERT_TRUE(all) << all.error().message();
      for (const std::string& one : *all) EXPECT_EQ(one, payload);
    }
  });
}

TEST_P(GroupWorlds, MessagesBesideTheCollectivesArriveInOrder) {
  const int rounds = 200;
  run([&](Group& group) {
    std::mutex mutex;
    std::vector<std::vector<std::string>> heard(static_cast<size_t>(world()));
    group.set_listener([&](int from, std::string_view message) {
      const std::lock_guard lock(mutex);
      heard[static_cast<size_t>(from)].emplace_back(message);
    });
    ASSERT_TRUE(group.barrier(soon()));  // all listen
    const auto text = [](int from, int to, int round) {
      return fmt::format("{} to {}: {}", from, to, round);
    };
    for (int round = 0; round < rounds; ++round) {
      for (int rank = 0; rank < world(); ++rank) group.post(rank, text(group.rank(), rank, round));
    }
    const auto has_all = [&] {
      const std::lock_guard lock(mutex);
      for (int rank = 0; rank < world(); ++rank) {
        if (rank != group.rank() && heard[static_cast<size_t>(rank)].size() < size_t{rounds})
          return false;
      }
      return true;
    };
    const Deadline end = soon();
    while (!has_all() && !end.passed()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    group.set_listener(nullptr);
    for (int rank = 0; rank < world(); ++rank) {
      const auto& from = heard[static_cast<size_t>(rank)];
      ASSERT_EQ(from.size(), rank == group.rank() ? 0u : size_t{rounds}) << "from rank " << rank;
      for (size_t round = 0; round < from.size(); ++round)
        EXPECT_EQ(from[round], text(rank, group.rank(), static_cast<int>(round)));
    }
  });
}

TEST(Group, AnExchangeTakes64KiBAndNoMore) {
  RankThreads(2, [](Group& group) {
    const std::string largest(64 << 10, static_cast<char>('x' + group.rank()));
    const auto all = group.exchange(largest, soon());
    ASSERT_TRUE(all);
    EXPECT_EQ((*all)[1], std::string(64 << 10, 'y'));
    const auto over = group.exchange(largest + "!", soon());
    EXPECT_EQ(over.error().code(), Code::kLimit);
    EXPECT_THAT(over.error().message(), HasSubstr("65537"));
  });
}

TEST(Group, LargeSharedMemoryIsOneMemoryToo) {
  RankThreads(2, [](Group& group) {
    const int64_t bytes = (int64_t{65} << 20) + 4096;
    auto memory = group.share("large", bytes, soon());
    ASSERT_TRUE(memory) << memory.error().message();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % (2 << 20), 0u);
    auto* first = reinterpret_cast<int64_t*>(memory->data());
    auto* last = reinterpret_cast<int64_t*>(memory->data() + bytes - 8);
    EXPECT_EQ(*first, 0);
    EXPECT_EQ(*last, 0);
    ASSERT_TRUE(group.barrier(soon()));
    *(group.rank() == 0 ? first : last) = 7;
    ASSERT_TRUE(group.barrier(soon()));
    EXPECT_EQ(*first, 7);
    EXPECT_EQ(*last, 7);
    ASSERT_TRUE(group.barrier(soon()));
  });
}

TEST(Group, RanksThatAskForDifferentMemoryAllHearIt) {
  RankThreads(3, [](Group& group) {
    const auto memory = group.share("rows", group.rank() == 1 ? 4096 : 8192, soon());
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().code(), Code::kMismatch);
    EXPECT_EQ(memory.error().rank(), 1);
    EXPECT_THAT(memory.error().message(), AllOf(HasSubstr("rank 1"), HasSubstr("4096"),
                                                HasSubstr("8192"), HasSubstr("'rows'")));
    EXPECT_TRUE(group.share("rows", 4096, soon()));
  });
}

TEST(Group, RanksThatAskForMemoryUnderDifferentNamesAllHearIt) {
  RankThreads(2, [](Group& group) {
    const auto memory = group.share(group.rank() == 0 ? "weights" : "arena", 4096, soon());
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().code(), Code::kMismatch);
    EXPECT_THAT(memory.error().message(), AllOf(HasSubstr("'weights'"), HasSubstr("'arena'")));
    EXPECT_TRUE(group.barrier(soon()));
  });
}

TEST(Group, MemoryThatCannotBeMappedIsEveryonesError) {
  RankThreads(2, [](Group& group) {
    const auto memory = group.share("too much", int64_t{1} << 60, soon());
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().rank(), 0);
    EXPECT_THAT(memory.error().message(), AllOf(HasSubstr("'too much'"), HasSubstr("rank 0")));
    EXPECT_TRUE(group.barrier(soon()));
    EXPECT_EQ(group.share("negative", -1, soon()).error().code(), Code::kInvalidArgument);
    const auto nothing = group.share("nothing", 0, soon());
    ASSERT_TRUE(nothing);
    EXPECT_EQ(nothing->data(), nullptr);
  });
}

TEST(Group, AnAbortTellsEveryoneWhoAndWhy) {
  RankThreads(4, [](Group& group) {
    ASSERT_TRUE(group.barrier(soon()));
    if (group.rank() == 2) {
      group.abort("the disk is full");
    } else {
      const auto status = group.barrier(soon());
      ASSERT_FALSE(status);
      EXPECT_EQ(status.error().code(), Code::kCommAborted);
    }
    EXPECT_EQ(group.check().error().rank(), 2);
    EXPECT_THAT(group.check().error().message(),
                AllOf(HasSubstr("rank 2 (pid "), HasSubstr("gave up: the disk is full")));
    EXPECT_EQ(group.exchange("x", soon()).error().code(), Code::kCommAborted);
    EXPECT_EQ(group.share("x", 1, soon()).error().code(), Code::kCommAborted);
    EXPECT_EQ(group.finalize(soon()).error().code(), Code::kCommAborted);
  });
}

TEST(Group, AnAbortEndsAWaitAtOnce) {
  std::latch waiting(2);
  RankThreads(3, [&](Group& group) {
    if (group.rank() == 0) {
      waiting.wait();
      group.abort("enough");
      return;
    }
    waiting.count_down();
    const int64_t begin = monotonic_ns();
    EXPECT_EQ(group.barrier(Deadline::never()).error().code(), Code::kCommAborted);
    EXPECT_LT(monotonic_ns() - begin, 2 * kSecond);
  });
}

TEST(Group, TheFirstReasonIsTheOneThatCounts) {
  RankThreads(2, [](Group& group) {
    ASSERT_TRUE(group.barrier(soon()));
    if (group.rank() == 0) {
      group.abort("first");
      group.abort("second");
    }
    EXPECT_FALSE(group.barrier(soon()));
    group.abort("third");
    EXPECT_THAT(group.check().error().message(), HasSubstr("first"));
  });
}

TEST(Group, ATimedOutBarrierNamesWhoIsMissing) {
  std::atomic<int> timed_out{0};
  RankThreads(3, [&](Group& group) {
    if (group.rank() == 1) {
      // Not there until the others have given up; then told so.
      while (timed_out.load() < 2) std::this_thread::yield();
      EXPECT_EQ(group.barrier(soon()).error().code(), Code::kCommTimeout);
      return;
    }
    const auto status = group.barrier(Deadline::after(kSecond));
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code(), Code::kCommTimeout);
    EXPECT_EQ(status.error().rank(), 1);
    EXPECT_THAT(status.error().message(),
                AllOf(HasSubstr("rank 1 (pid "), HasSubstr("did not arrive at a barrier")));
    ++timed_out;
  });
}

TEST(Group, ACancelledWaitBreaksTheBarrierForAll) {
  std::latch given_up(1);
  RankThreads(2, [&](Group& group) {
    if (group.rank() == 0) {
      std::atomic<bool> cancel{false};
      std::thread other([&] { cancel = true; });
      EXPECT_EQ(group.barrier({Deadline::never(), &cancel}).error().code(), Code::kCancelled);
      other.join();
      EXPECT_EQ(group.barrier(soon()).error().code(), Code::kInvalidState);
      given_up.count_down();
      while (group.check()) std::this_thread::yield();  // until rank 1 has come
      EXPECT_EQ(group.check().error().rank(), 0);
      return;
    }
    given_up.wait();
    const auto status = group.barrier(Deadline::never());
    ASSERT_FALSE(status) << "passed a barrier that rank 0 did not";
    EXPECT_EQ(status.error().code(), Code::kCommAborted);
    EXPECT_THAT(status.error().message(),
                AllOf(HasSubstr("rank 0"), HasSubstr("cancelled its wait")));
  });
}

TEST(Group, ABarrierCancelledBeforehandIsBrokenToo) {
  const std::atomic<bool> cancel{true};
  RankThreads(2, [&](Group& group) {
    if (group.rank() == 0) {
      EXPECT_EQ(group.barrier({Deadline::never(), &cancel}).error().code(), Code::kCancelled);
      while (group.check()) std::this_thread::yield();
      return;
    }
    EXPECT_EQ(group.barrier(Deadline::never()).error().code(), Code::kCommAborted);
  });
}

// A commit hangs on it: a rank that gives up just when the last one arrives must not be the only one that failed.
void expect_agreement(const std::vector<int>& nodes, int gives_up, int rounds) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}, rank {} gives up", seed, gives_up));
  std::mt19937_64 random(seed);
  int passed_in_all = 0;
  for (int round = 0; round < rounds; ++round) {
    std::atomic<int> passed{0};
    std::latch together(3);
    const int64_t patience_ns = static_cast<int64_t>(random() % 200'000);
    const bool by_cancel = round % 2 == 0;
    RankThreads(3,
                [&](Group& group) {
                  std::atomic<bool> cancel{false};
                  std::thread other;
                  together.arrive_and_wait();
                  if (group.rank() == gives_up && by_cancel) {
                    other = std::thread([&] {
                      const Deadline end = Deadline::after(patience_ns);
                      while (!end.passed()) std::this_thread::yield();
                      cancel = true;
                    });
                  }
                  const bool hurries = group.rank() == gives_up && !by_cancel;
                  const auto status =
                      group.barrier({hurries ? Deadline::after(patience_ns) : soon(), &cancel});
                  if (status) ++passed;
                  if (other.joinable()) other.join();
                },
                {.threads = 1, .finalize = false, .nodes = nodes});
    EXPECT_TRUE(passed == 0 || passed == 3) << passed << " of 3 passed, " << patience_ns << " ns";
    passed_in_all += passed == 3;
  }
  testing::Test::RecordProperty("passed", passed_in_all);
}

TEST(Group, AllAgreeWhetherABarrierWasPassed) { expect_agreement({}, 0, 60); }

TEST(Group, AllNodesAgreeWhetherABarrierWasPassed) {
  for (const int gives_up : {0, 1, 2}) {
    expect_agreement({0, 1, 1}, gives_up, 12);
    expect_agreement({0, 1, 2}, gives_up, 12);
    expect_agreement({0, 0, 1}, gives_up, 12);
  }
}

TEST(Group, AnAbortOnAnotherNodeLeavesNobodyBehind) {
  for (const std::vector<int>& nodes : {std::vector<int>{0, 1, 1}, std::vector<int>{0, 0, 1}}) {
    for (int who = 0; who < 3; ++who) {
      RankThreads(3,
                  [&](Group& group) {
                    ASSERT_TRUE(group.barrier(soon()));
                    if (group.rank() == who) group.abort("on purpose");
                    const auto status = group.barrier(soon());
                    ASSERT_FALSE(status);
                    EXPECT_EQ(status.error().code(), Code::kCommAborted);
                    EXPECT_THAT(status.error().message(), HasSubstr("on purpose"));
                  },
                  {.threads = 1, .finalize = false, .nodes = nodes});
    }
  }
}

TEST(Group, ACancelOnOneNodeBreaksTheBarrierForAll) {
  const std::atomic<bool> cancel{true};
  for (int who = 0; who < 3; ++who) {
    RankThreads(3,
                [&](Group& group) {
                  ASSERT_TRUE(group.barrier(soon()));  // all have joined
                  if (group.rank() == who) {
                    EXPECT_EQ(group.barrier({soon(), &cancel}).error().code(), Code::kCancelled);
                    return;
                  }
                  const auto status = group.barrier(soon());
                  ASSERT_FALSE(status);
                  EXPECT_EQ(status.error().code(), Code::kCommAborted);
                  EXPECT_THAT(status.error().message(),
                              HasSubstr(fmt::format("rank {} (pid", who)));
                },
                {.threads = 1, .finalize = false, .nodes = {0, 1, 1}});
  }
}

TEST(Group, CallsOutOfOrderAreNamed) {
  RankThreads(2, [](Group& group) {
    const Code code = group.rank() == 0 ? group.barrier(soon()).error().code()
                                        : group.exchange("x", soon()).error().code();
    EXPECT_EQ(code, Code::kCommProtocol);
    EXPECT_THAT(group.check().error().message(), AllOf(HasSubstr("barrier"), HasSubstr("exchange"),
                                                       HasSubstr("rank 0"), HasSubstr("rank 1")));
  });
}

TEST(Group, ARankThatLeavesWithoutFinalizingIsNamed) {
  const std::string address = own_loopback();
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.emplace_back([&, rank] {
      auto group = Group::create(local_launch(rank, 3, address), {}, nullptr, soon());
      ASSERT_TRUE(group) << group.error().message();
      ASSERT_TRUE((*group)->barrier(soon()));  // all are there before one leaves
      if (rank == 1) return;
      const auto status = (*group)->barrier(soon());
      ASSERT_FALSE(status);
      EXPECT_EQ(status.error().code(), Code::kCommAborted);
      EXPECT_EQ(status.error().rank(), 1);
      EXPECT_THAT(status.error().message(),
                  AllOf(HasSubstr("rank 1 (pid "), HasSubstr("left the group without finalizing")));
    });
  }
  for (std::thread& rank : ranks) rank.join();
}

TEST(Group, AfterFinalizeNobodysGoingIsADeath) {
  RankThreads(4,
              [](Group& group) {
                ASSERT_TRUE(group.finalize(soon()));
                EXPECT_TRUE(group.check());
                EXPECT_EQ(group.barrier(soon()).error().code(), Code::kInvalidState);
              },
              {.threads = 1, .finalize = false});
}

// What a process holds: descriptors, threads, mappings.
struct Holdings {
  size_t descriptors, threads, mappings;
};

Holdings holdings() {
  const auto count = [](const char* directory) { return list_directory(directory)->size(); };
  const auto maps = read_text_file("/proc/self/maps", 8 << 20);
  return {count("/proc/self/fd"), count("/proc/self/task"),
          static_cast<size_t>(std::count(maps->begin(), maps->end(), '\n'))};
}

TEST(Group, WithASecretDataOfSeveralNodesGoesOverGlooOnlyWhereThatIsAllowed) {
  const std::string file = fmt::format("{}/secret-of-group-{}", testing::TempDir(), getpid());
  std::ofstream(file) << "a secret of enough bytes";
  ASSERT_EQ(chmod(file.c_str(), 0600), 0);
  RankOptions options;
  options.nodes = {0, 1};
  options.secret_file = file;
  RankThreads(
      2,
      [](Group& group) {
        const auto wire = group.make_wire(soon());
        ASSERT_FALSE(wire);
        EXPECT_EQ(wire.error().code(), Code::kUnsupported);
        EXPECT_THAT(wire.error().message(),
                    AllOf(HasSubstr("AMXTRAIN_SECRET_FILE"), HasSubstr("gloo"),
                          HasSubstr("--allow-unauthenticated-data")));
      },
      options);
  options.allow_unauthenticated_data = true;
  RankThreads(
      2,
      [](Group& group) {
        const auto wire = group.make_wire(soon());
        EXPECT_TRUE(wire) << wire.error().message();
      },
      options);
  unlink(file.c_str());
}

// What an agent's store may hold from attempts before this one, and from anybody.
TEST(Group, StaleEntriesInAStoreThatOutlivedAnAttemptAreNeverUsed) {
  const std::string address = own_loopback();
  const auto agent = TcpStoreServer::start(address, 29500);
  ASSERT_TRUE(agent) << agent.error().message();
  const auto store = TcpStoreClient::connect(address, 29500, soon());
  ASSERT_TRUE(store) << store.error().message();
  const auto leave = [&](const std::string& text) {
    const auto number = (*store)->add("/amxtrain/job/entries", 1, soon());
    ASSERT_TRUE((*store)->set(fmt::format("/amxtrain/job/entry/{}", *number), text, soon()));
  };
  const auto attempt = [&](int world) {
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < world; ++rank) {
      ranks.emplace_back([&, rank] {
        LaunchInfo launch = local_launch(rank, world, address);
        launch.agent_store = true;
        launch.run_id = "job";
        auto group = Group::create(launch, {}, nullptr, soon());
        ASSERT_TRUE(group) << group.error().message();
        EXPECT_EQ((*group)->node_count(), 1);
        const auto all = (*group)->exchange(std::to_string(rank), soon());
        ASSERT_TRUE(all) << all.error().message();
        for (int other = 0; other < world; ++other) {
          EXPECT_EQ((*all)[static_cast<size_t>(other)], std::to_string(other));
        }
        EXPECT_TRUE((*group)->finalize(soon()));
      });
    }
    for (std::thread& rank : ranks) rank.join();
  };
  // Attempts of the same world and of another one leave theirs; then another machine's, a note, and what is nothing.
  attempt(3);
  attempt(2);
  for (int rank = 0; rank < 3; ++rank) {
    Entry entry;
    entry.rank = rank;
    entry.world_size = 3;
    entry.pid = 1;
    entry.protocol = kProtocolVersion;
    entry.nonce = {{1, static_cast<uint64_t>(rank)}};
    entry.machine = "another-machine";
    entry.host = "somewhere";
    entry.build = "0.0.0-old";
    entry.address = address + ":1";  // nobody listens there
    leave(entry_text(entry));
  }
  leave(note_text(Error(Code::kMismatch, "an earlier attempt gave up").with_rank(1)));
  leave("amxtrain protocol=1 rank=0 world=3 nonce=short");
  leave(std::string(100000, 'x'));
  leave("");
  // A number that was given out to somebody who died before writing.
  ASSERT_TRUE((*store)->add("/amxtrain/job/entries", 1, soon()));
  attempt(3);
  EXPECT_EQ(*(*store)->add("/amxtrain/job/entries", 0, soon()), 3 + 2 + 3 + 4 + 1 + 3);
}

TEST(Group, TwoHundredGroupsLeaveNothingBehind) {
  const auto once = [](int round) {
    RankThreads(2, [&](Group& group) {
      auto memory = group.share("memory", 1 << 20, soon());
      ASSERT_TRUE(memory);
      if (round % 3 == 1 && group.rank() == 0) group.abort("on purpose");
      (void)group.barrier(soon());
    });
  };
  // The first ones pay for what stays by design: the allocator's arenas, cached stacks.
  for (int round = 0; round < 20; ++round) once(round);
  const Holdings before = holdings();
  for (int round = 0; round < 200; ++round) once(round);
  const Holdings after = holdings();
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_EQ(after.threads, before.threads);
  EXPECT_LE(after.mappings, before.mappings + 10) << "of 200 groups with 400 shared memories";
}

}  // namespace
}  // namespace amxt::comm::test
