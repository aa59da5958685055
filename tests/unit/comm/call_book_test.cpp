#include "comm/call_book.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/collectives.h"
#include "unit/comm/rank_threads.h"

namespace amxt::comm {
namespace {

using test::kSecond;
using test::RankThreads;
using ::testing::AllOf;
using ::testing::HasSubstr;

CollectiveCall all_reduce(int64_t count) { return {"all_reduce", DType::kF32, 0, -1, count}; }

// --- The book ---

TEST(CallBook, TellsWhatTakesLongOnceTheOldestFirst) {
  CallBook book(2);
  EXPECT_TRUE(book.rests());
  const auto first = book.begin(all_reduce(4), true, 100);
  EXPECT_TRUE(first.was_idle);
  EXPECT_FALSE(book.rests());
  const auto second = book.begin(CollectiveCall::barrier(), false, 200);
  EXPECT_FALSE(second.was_idle);
  EXPECT_EQ(second.number, first.number + 1);
  const auto late = book.late(150);
  ASSERT_EQ(late.size(), 1u);
  EXPECT_EQ(late[0].rank, 2);
  EXPECT_EQ(late[0].number, first.number);
  EXPECT_TRUE(late[0].is_collective);
  EXPECT_EQ(late[0].text, "all_reduce of 4 F32, sum");
  ASSERT_EQ(book.late(300).size(), 1u);
  EXPECT_TRUE(book.late(300).empty());
  EXPECT_FALSE(book.only());
  book.end(first.number);
  ASSERT_TRUE(book.only());
  EXPECT_EQ(book.only()->text, "barrier");
  book.end(second.number);
  EXPECT_TRUE(book.rests());
}

TEST(CallBook, FindsAnotherCallUnderTheSameNumberWhenItIsToldAndWhenItBegins) {
  CallBook book(0);
  const auto begun = book.begin(all_reduce(4), true, 0);
  EXPECT_FALSE(book.hear({1, begun.number, true, "broadcast of 4 F32, root 0"}))
      << "collectives compare themselves";
  EXPECT_FALSE(book.hear({1, begun.number, true, "all_reduce of 4 F32, sum"}));
  book.end(begun.number);  // that it was called stays true
  const auto error = book.hear({1, begun.number, false, "barrier"});
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code(), Code::kCommProtocol);
  EXPECT_EQ(error->message(),
            "the ranks disagree: rank 0 calls all_reduce of 4 F32, sum, rank 1 calls barrier");
  EXPECT_FALSE(book.hear({1, begun.number + 2, false, "finalize"})) << "not there yet";
  EXPECT_FALSE(book.begin(CollectiveCall::barrier(), false, 0).mismatch);
  const auto late = book.begin(CollectiveCall::barrier(), false, 0);
  ASSERT_TRUE(late.mismatch);
  EXPECT_THAT(late.mismatch->message(), HasSubstr("rank 0 calls barrier, rank 1 calls finalize"));
}

TEST(CallBook, KeepsWhatIsUnderWayAndForgetsTheRest) {
  CallBook book(1);
  const auto queued = book.begin(all_reduce(1), true, 0);
  for (int i = 0; i < 1000; ++i) book.end(book.begin(all_reduce(2), true, 1).number);
  ASSERT_EQ(book.late(0).size(), 1u) << "the first is under way still";
  EXPECT_TRUE(book.hear({0, queued.number, false, "barrier"}));
  book.end(queued.number);
  for (int i = 0; i < 1000; ++i) book.end(book.begin(all_reduce(2), true, 1).number);
  EXPECT_FALSE(book.hear({0, queued.number, false, "barrier"})) << "long ago";
  EXPECT_TRUE(book.rests());
}

TEST(CallBook, PassesOnWhatIsNew) {
  CallBook book(0);
  EXPECT_TRUE(book.is_news({1, 5, false, "barrier"}));
  EXPECT_FALSE(book.is_news({2, 5, false, "barrier"}));
  EXPECT_TRUE(book.is_news({2, 5, false, "finalize"}));
  EXPECT_TRUE(book.is_news({1, 6, false, "barrier"}));
}

CallBook::Letter receive_from(int peer, bool blocks) {
  return {{"receive", DType::kF32, -1, -1, 4}, peer, false, blocks};
}
CallBook::Letter send_to(int peer) { return {{"send", DType::kF32, -1, -1, 4}, peer, true, true}; }

// What rank 1 tells of its receive from rank 0, once nothing is before it.
CallBook::Told waiting_receive(bool blocks) {
  CallBook book(1);
  book.begin(receive_from(0, blocks));
  EXPECT_TRUE(book.late_letters(1000, 50, 2000).empty());
  const auto late = book.late_letters(1050, 50, 2000);
  EXPECT_EQ(late.size(), 1u);
  EXPECT_TRUE(book.late_letters(9000, 50, 2000).empty()) << "told once";
  return late.at(0);
}

TEST(CallBook, FindsAReceiveWhoseSendCannotComeAnyMore) {
  const CallBook::Told told = waiting_receive(false);
  CallBook book(0);
  EXPECT_FALSE(book.hear(told));
  EXPECT_FALSE(book.deadlock(100)) << "this rank may yet send";
  const auto begun = book.begin(all_reduce(4), true, 50);
  EXPECT_FALSE(book.deadlock(40)) << "not for long";
  const auto found = book.deadlock(50);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->code(), Code::kCommProtocol);
  EXPECT_EQ(found->message(),
            "the ranks disagree: rank 1 calls receive of 4 F32 from rank 0, rank 0 calls "
            "all_reduce of 4 F32, sum");
  book.end(begun.number);
  EXPECT_FALSE(book.deadlock(100));
}

TEST(CallBook, AReceiveWhoseSendHasBegunIsNoDeadlock) {
  CallBook book(0);
  const auto sent = book.begin(send_to(1));
  book.end_letter(sent.number);
  book.begin(all_reduce(4), true, 0);
  EXPECT_FALSE(book.hear(waiting_receive(true)));
  EXPECT_FALSE(book.deadlock(100));
}

TEST(CallBook, ABarrierIsADeadlockOnlyWhereTheReceiverBlocks) {
  for (const bool blocks : {false, true}) {
    CallBook book(0);
    book.begin(CollectiveCall::barrier(), false, 0);
    CallBook::Told told = waiting_receive(blocks);
    EXPECT_FALSE(book.hear(told));
    EXPECT_EQ(book.deadlock(100).has_value(), blocks);
    told.over = true;
    EXPECT_FALSE(book.hear(told));
    EXPECT_FALSE(book.deadlock(100)) << "it was given up";
  }
}

TEST(CallBook, ACallBeforeTheReceiveIsNoDeadlock) {
  CallBook waits(1);
  const auto before = waits.begin(all_reduce(4), true, 0);
  const auto receive = waits.begin(receive_from(0, true));
  EXPECT_TRUE(waits.late_letters(1000, 50, 2000).empty()) << "it has not its turn";
  EXPECT_FALSE(waits.end_letter(receive.number)) << "nobody was told of it";
  EXPECT_FALSE(waits.rests());
  waits.end(before.number);
  EXPECT_TRUE(waits.rests());

  CallBook::Told told = waiting_receive(true);
  told.number = 2;  // it comes after a call that this rank is still in
  CallBook book(0);
  book.begin(all_reduce(4), true, 0);
  EXPECT_FALSE(book.hear(told));
  EXPECT_FALSE(book.deadlock(100));
}

TEST(CallBook, ASendIsGivenMoreTime) {
  CallBook book(0);
  const auto send = book.begin(send_to(1));
  EXPECT_TRUE(book.late_letters(1, 50, 2000).empty());
  EXPECT_TRUE(book.late_letters(1000, 50, 2000).empty());
  EXPECT_EQ(book.late_letters(2001, 50, 2000).size(), 1u);
  const auto over = book.end_letter(send.number);
  ASSERT_TRUE(over);
  EXPECT_TRUE(over->over);
}

// --- Of several communicators ---

TEST(CallBooks, APartIsComparedWithItselfAlone) {
  CallBooks books(3);
  books.open(17, {5, 3});
  const auto part = books.find(17);
  ASSERT_NE(part, nullptr);
  EXPECT_EQ(books.all().size(), 2u);
  const auto begun = part->begin(all_reduce(4), true, 0);
  CallBook::Told told{5, begun.number, false, "finalize"};
  EXPECT_FALSE(books.hear(told)) << "of another communicator";
  told.communicator = 18;
  EXPECT_FALSE(books.hear(told));
  told.communicator = 17;
  const auto error = books.hear(told);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->rank(), 5);
  EXPECT_EQ(error->message(),
            "the ranks disagree in the part of ranks 5, 3: rank 3 calls all_reduce of 4 F32, sum, "
            "rank 5 calls finalize");
  books.close(17);
  EXPECT_EQ(books.find(17), nullptr);
  EXPECT_FALSE(books.hear(told));
}

TEST(CallBooks, AMessageInAPartIsToldByTheRanksOfTheGroup) {
  CallBooks waits(5), works(3);
  waits.open(17, {5, 3});
  works.open(17, {5, 3});
  const auto in = waits.find(17);
  in->begin({{"receive", DType::kF32, -1, -1, 4}, 1, false, true});  // from rank 1 of the part
  EXPECT_TRUE(in->late_letters(1000, 50, 2000).empty());
  const auto late = in->late_letters(1050, 50, 2000);
  ASSERT_EQ(late.size(), 1u);
  EXPECT_EQ(late[0].communicator, 17u);
  EXPECT_EQ(late[0].peer, 3);
  EXPECT_FALSE(works.hear(late[0]));
  works.find(17)->begin(all_reduce(4), true, 0);
  const auto error = works.find(17)->deadlock(100);
  ASSERT_TRUE(error);
  EXPECT_THAT(error->message(),
              HasSubstr("the part of ranks 5, 3: rank 5 calls receive of 4 F32 from rank 3, rank 3 "
                        "calls all_reduce"));
  EXPECT_FALSE(works.first().deadlock(100));
}

TEST(CallBooks, WhatIsToldBeforeAPartIsOpenIsKept) {
  CallBooks books(1);
  CallBook::Told told{0, 1, false, "finalize"};
  told.communicator = 9;
  EXPECT_FALSE(books.hear(told));
  books.open(9, {0, 1});
  EXPECT_TRUE(books.find(9)->begin(all_reduce(4), true, 0).mismatch);
  for (uint64_t other = 100; other < 1000; ++other) {  // never opened here
    told.communicator = other;
    EXPECT_FALSE(books.hear(told));
  }
  books.open(999, {0, 1});
  EXPECT_TRUE(books.find(999)->begin(all_reduce(4), true, 0).mismatch);
  books.open(100, {0, 1});
  EXPECT_FALSE(books.find(100)->begin(all_reduce(4), true, 0).mismatch) << "long forgotten";
}

// --- In a group ---

// One call of the C ABI: noted, made, and over.
Status noted(Group& group, const CollectiveCall& call, bool is_collective,
             const std::function<Status()>& body) {
  AMXT_ASSIGN(const uint64_t number, group.begin_call(0, call, is_collective));
  Status status = body();
  group.end_call(0, number);
  return status;
}

struct Layout {
  const char* name;
  std::vector<int> nodes;
};

class CallsOf : public ::testing::TestWithParam<Layout> {
 protected:
  // Rank `other` makes another call than all the rest, which all_reduce; one more rank comes to neither. `warm`: the collectives are open.
  void expect_mismatch(int other, bool warm, int64_t timeout_ns, const CollectiveCall& call,
                       const std::function<Status(Group&, Deadline)>& make) {
    const auto& nodes = GetParam().nodes;
    const auto world = static_cast<int>(nodes.size());
    RankThreads(world,
                [&](Group& group) {
                  const auto deadline = [&] {
                    return timeout_ns < 0 ? Deadline::never() : Deadline::after(timeout_ns);
                  };
                  std::unique_ptr<Collectives> all;
                  std::vector<float> data(16);
                  const auto reduce = [&]() -> Status {
                    if (all == nullptr) {
                      AMXT_ASSIGN(all, make_collectives(group, {}, nullptr, deadline()));
                    }
                    return all->all_reduce(data.data(), data.data(), 16, DType::kF32,
                                           ReduceOp::kSum, {deadline(), nullptr});
                  };
                  if (warm) {
                    ASSERT_TRUE(noted(group, all_reduce(16), true, reduce));
                  }
                  ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)));
                  const bool absent = world > 2 && group.rank() == (other + 1) % world;
                  if (absent) {  // computes meanwhile
                    const Deadline end = Deadline::after(20 * kSecond);
                    while (group.check() && !end.passed()) std::this_thread::yield();
                    ASSERT_FALSE(group.check());
                    EXPECT_EQ(group.check().error().code(), Code::kCommProtocol);
                    return;
                  }
                  const int64_t start = monotonic_ns();
                  const Status status =
                      group.rank() == other
                          ? noted(group, call, false, [&] { return make(group, deadline()); })
                          : noted(group, all_reduce(16), true, reduce);
                  ASSERT_FALSE(status.ok());
                  EXPECT_LT(monotonic_ns() - start, 8 * kSecond);
                  EXPECT_EQ(status.error().code(), Code::kCommProtocol) << status.error().message();
                  EXPECT_THAT(
                      status.error().message(),
                      AllOf(HasSubstr("the ranks disagree: rank "),
                            HasSubstr("calls all_reduce of 16 F32, sum"),
                            HasSubstr("rank " + std::to_string(other) + " calls " + call.text())));
                },
                {.threads = 1, .finalize = false, .nodes = nodes});
  }
};

INSTANTIATE_TEST_SUITE_P(Layouts, CallsOf,
                         ::testing::Values(Layout{"TwoOnANode", {0, 0}},
                                           Layout{"ThreeOnANode", {0, 0, 0}},
                                           Layout{"TwoNodes", {0, 1}},
                                           Layout{"ThreeNodes", {0, 1, 2}},
                                           Layout{"TwoNodesOfTwo", {0, 0, 1, 1}}),
                         [](const auto& layout) { return std::string(layout.param.name); });

Status barrier(Group& group, Deadline deadline) { return group.barrier(deadline); }
Status finalize(Group& group, Deadline deadline) { return group.finalize(deadline); }
// As a trainer: by a memory of the node, an agreement, and its own ways in between.
Status load(Group& group, Deadline deadline) {
  AMXT_ASSIGN([[maybe_unused]] const auto memory, group.share("weights", 4096, deadline));
  AMXT_ASSIGN([[maybe_unused]] const auto all, group.exchange("x", deadline));
  return {};
}
Status wait_by_itself(Group& group, Deadline) {
  for (;;) {
    AMXT_TRY(group.check());
    std::this_thread::yield();
  }
}

TEST_P(CallsOf, ABarrierAgainstACollectiveIsNamed) {
  for (const bool warm : {false, true}) {
    expect_mismatch(0, warm, -1, CollectiveCall::barrier(), barrier);
    expect_mismatch(1, warm, 30 * kSecond, CollectiveCall::barrier(), barrier);
  }
}

TEST_P(CallsOf, AFinalizeAgainstACollectiveIsNamed) {
  for (const bool warm : {false, true}) expect_mismatch(1, warm, -1, {"finalize"}, finalize);
}

TEST_P(CallsOf, ATrainersCallAgainstACollectiveIsNamed) {
  for (const bool warm : {false, true}) {
    expect_mismatch(1, warm, -1, {"trainer load"}, load);
    expect_mismatch(0, warm, -1, {"trainer step"}, wait_by_itself);
  }
}

// Of a rank whose peers never come, wherever its opening of the collectives waits.
TEST_P(CallsOf, ACancelEndsTheOpeningOfTheCollectivesAtOnce) {
  const auto world = static_cast<int>(GetParam().nodes.size());
  for (const int who : {0, world - 1}) {
    RankThreads(world,
                [&](Group& group) {
                  ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)));
                  if (group.rank() != who) {
                    const Deadline end = Deadline::after(20 * kSecond);
                    while (group.check() && !end.passed()) std::this_thread::yield();
                    const auto late = make_collectives(group, {}, nullptr, Deadline::never());
                    ASSERT_FALSE(late.ok());
                    EXPECT_EQ(late.error().code(), Code::kCommAborted);
                    EXPECT_EQ(late.error().rank(), who);
                    EXPECT_THAT(late.error().message(), HasSubstr("cancelled its wait"));
                    return;
                  }
                  std::atomic<bool> cancel{false};
                  std::thread other([&] {
                    std::this_thread::sleep_for(std::chrono::milliseconds(30));
                    cancel = true;
                  });
                  const int64_t start = monotonic_ns();
                  const auto made =
                      make_collectives(group, {}, nullptr, {Deadline::never(), &cancel});
                  EXPECT_LT(monotonic_ns() - start, 5 * kSecond);
                  other.join();
                  ASSERT_FALSE(made.ok());
                  EXPECT_EQ(made.error().code(), Code::kCancelled) << made.error().message();
                },
                {.threads = 1, .finalize = false, .nodes = GetParam().nodes});
  }
}

// One after the other steps of the opening, with the others in it too: whoever finds it open or not, nobody hangs.
TEST_P(CallsOf, ACancelAnywhereInTheOpeningLeavesNobodyWaiting) {
  for (int64_t after_us = 0; after_us < 20'000; after_us += 4'000) {
    RankThreads(static_cast<int>(GetParam().nodes.size()),
                [&](Group& group) {
                  ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)));
                  std::atomic<bool> cancel{false};
                  std::thread other([&] {
                    if (group.rank() != 0) return;
                    std::this_thread::sleep_for(std::chrono::microseconds(after_us));
                    cancel = true;
                  });
                  const Limits limits{Deadline::after(30 * kSecond), &cancel};
                  const int64_t start = monotonic_ns();
                  auto made = make_collectives(group, {}, nullptr, limits);
                  Status status = made ? (*made)->barrier(limits) : Status(made.error());
                  other.join();
                  // Passed by then, or ended by the cancel.
                  if (!status && group.rank() == 0) {
                    EXPECT_EQ(status.error().code(), Code::kCancelled) << status.error().message();
                  } else if (!status) {
                    EXPECT_EQ(status.error().code(), Code::kCommAborted)
                        << status.error().message();
                    EXPECT_THAT(status.error().message(),
                                AllOf(HasSubstr("rank 0"), HasSubstr("cancelled")));
                  }
                  EXPECT_LT(monotonic_ns() - start, 10 * kSecond);
                },
                {.threads = 1, .finalize = false, .nodes = GetParam().nodes});
  }
}

// Also over a connection, which may be seen to end first.
TEST_P(CallsOf, ACancelIsToldByItsRank) {
  RankThreads(static_cast<int>(GetParam().nodes.size()),
              [&](Group& group) {
                auto made = make_collectives(group, {}, nullptr, Deadline::after(60 * kSecond));
                ASSERT_TRUE(made.ok()) << made.error().message();
                ASSERT_TRUE((*made)->barrier(Deadline::after(60 * kSecond)));
                ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)));  // all have passed that
                if (group.rank() == 0) {
                  const std::atomic<bool> cancel{true};
                  float none = 0;
                  const Status status =
                      (*made)->receive(&none, 1, DType::kF32, 1, {Deadline::never(), &cancel});
                  ASSERT_FALSE(status.ok());
                  EXPECT_EQ(status.error().code(), Code::kCancelled);
                } else {
                  const Status status = (*made)->barrier(Deadline::after(30 * kSecond));
                  ASSERT_FALSE(status.ok());
                  EXPECT_EQ(status.error().code(), Code::kCommAborted);
                  EXPECT_EQ(status.error().rank(), 0);
                  EXPECT_THAT(status.error().message(),
                              AllOf(HasSubstr("rank 0 gave up: "), HasSubstr("cancelled")));
                }
                EXPECT_FALSE((*made)->barrier(Deadline::after(30 * kSecond)).ok());
                EXPECT_TRUE(group.barrier(Deadline::after(60 * kSecond))) << "the group lives on";
              },
              {.threads = 1, .finalize = true, .nodes = GetParam().nodes});
}

// Two at a time, by two threads that take turns as they like: no message of one ends up in another.
TEST_P(CallsOf, CommunicatorsMayBeSplitAtTheSameTime) {
  RankThreads(static_cast<int>(GetParam().nodes.size()),
              [](Group& group) {
                const Limits limits = Deadline::after(60 * kSecond);
                auto all = make_collectives(group, {}, nullptr, limits);
                ASSERT_TRUE(all.ok()) << all.error().message();
                auto other = (*all)->split(0, -group.rank(), limits);
                ASSERT_TRUE(other.ok()) << other.error().message();
                const auto split_again = [&](Collectives& parent, int round) {
                  if ((group.rank() + round) % 2 == 0) std::this_thread::yield();
                  auto part = parent.split(0, group.rank(), limits);
                  ASSERT_TRUE(part.ok()) << part.error().message();
                  EXPECT_NE((*part)->number(), 0u);
                  for (int i = 0; i < 5; ++i) {
                    int32_t value = group.rank() + round;
                    const Status status =
                        (*part)->all_reduce(&value, &value, 1, DType::kI32, ReduceOp::kSum, limits);
                    ASSERT_TRUE(status) << status.error().message();
                    EXPECT_EQ(value, group.size() * (group.size() - 1) / 2 + group.size() * round);
                  }
                };
                for (int round = 0; round < 5; ++round) {
                  std::thread beside([&] { split_again(**other, 1000 + round); });
                  split_again(**all, round);
                  beside.join();
                }
                EXPECT_TRUE(group.barrier(limits));
              },
              {.threads = 1, .finalize = true, .nodes = GetParam().nodes});
}

// Rank 0 waits for a rank that has come to a call of the same part.
TEST_P(CallsOf, AReceiveInAPartThatNothingCanComeToIsNamed) {
  const auto world = static_cast<int>(GetParam().nodes.size());
  RankThreads(
      world,
      [&](Group& group) {
        auto all = make_collectives(group, {}, nullptr, Deadline::after(60 * kSecond));
        ASSERT_TRUE(all.ok()) << all.error().message();
        // The last rank comes first, and one rank is in none.
        const bool in = group.rank() == 0 || group.rank() == world - 1;
        auto part = (*all)->split(in ? 0 : -1, -group.rank(), Deadline::after(60 * kSecond));
        ASSERT_TRUE(part.ok()) << part.error().message();
        ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)));
        const int64_t start = monotonic_ns();
        Status status;
        if (!in) {
          const Deadline end = Deadline::after(20 * kSecond);
          while (group.check() && !end.passed()) std::this_thread::yield();
          status = group.check();
        } else if (group.rank() == 0) {
          float value = 0;
          const CollectiveCall call{"receive", DType::kF32, -1, -1, 1};
          const auto number = group.begin_letter((*part)->number(), call, 0, false, true);
          ASSERT_TRUE(number.ok());
          status = (*part)->receive(&value, 1, DType::kF32, 0, Deadline::never());
          group.end_letter((*part)->number(), *number);
        } else {
          const auto number = group.begin_call((*part)->number(), CollectiveCall::barrier(), true);
          ASSERT_TRUE(number.ok());
          status = (*part)->barrier(Deadline::never());
          group.end_call((*part)->number(), *number);
        }
        EXPECT_LT(monotonic_ns() - start, 8 * kSecond);
        ASSERT_FALSE(status.ok());
        EXPECT_EQ(status.error().code(), Code::kCommProtocol) << status.error().message();
        EXPECT_EQ(status.error().rank(), world - 1);
        EXPECT_THAT(status.error().message(),
                    HasSubstr(fmt::format("the ranks disagree in the part of ranks {0}, 0: "
                                          "rank 0 calls receive of 1 F32 from rank {0}, "
                                          "rank {0} calls barrier",
                                          world - 1)));
      },
      {.threads = 1, .finalize = false, .nodes = GetParam().nodes});
}

TEST_P(CallsOf, WhatRanksCallAlikeMayTakeItsTime) {
  RankThreads(static_cast<int>(GetParam().nodes.size()),
              [](Group& group) {
                for (int round = 0; round < 3; ++round) {
                  const auto slow = [&] {
                    // Longer than a call may take before it is told, on one rank after the other.
                    if (group.rank() == round % 2)
                      std::this_thread::sleep_for(std::chrono::milliseconds(120));
                    return group.barrier(Deadline::after(60 * kSecond));
                  };
                  const Status status = noted(group, CollectiveCall::barrier(), false, slow);
                  EXPECT_TRUE(status) << status.error().message();
                }
              },
              {.threads = 1, .finalize = true, .nodes = GetParam().nodes});
}

}  // namespace
}  // namespace amxt::comm
