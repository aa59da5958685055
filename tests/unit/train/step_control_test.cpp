// Going through a step together: whatever ends it on one rank ends it the same way on all, whoever comes when.
#include "train/step_control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <latch>
#include <memory>
#include <random>
#include <thread>

#include "support/thread_group.h"

namespace amxt::test {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using train::StepControl;

// Each rank with its own control over memory that all share, and a number of each rank there.
using Nodes = std::vector<int>;  // of each rank

void expect_good(const Status& status) { EXPECT_TRUE(status.ok()) << status.error().message(); }

// Waits where `rank` would have to come: a barrier is of a node, a commit of all.
Status wait_for_rank(StepControl& control, comm::Group& group, int rank) {
  return group.nodes().node_of(rank) == group.node() ? control.barrier() : control.commit();
}

void on_ranks(const Nodes& nodes,
              const std::function<void(StepControl&, comm::Group&, int*)>& body) {
  ThreadGroups groups(nodes);
  const int world = static_cast<int>(nodes.size());
  groups.run([&](comm::Group& group) {
    const int64_t control_bytes = (StepControl::shared_bytes(world) + 63) / 64 * 64;
    const Result<comm::SharedMemory> shared =
        group.share("control", control_bytes + world * 64, Deadline::never());
    ASSERT_TRUE(shared.ok()) << shared.error().message();
    StepControl control(shared->data(), &group);
    expect_good(group.barrier(Deadline::never()));
    body(control, group, reinterpret_cast<int*>(shared->data() + control_bytes));
    // A rank that has left a failing test early must not keep the others.
    if (testing::Test::HasFailure()) group.abort("the test has failed");
    (void)group.barrier(Deadline::never());
  });
}

void on_ranks(const Nodes& nodes, const std::function<void(StepControl&, comm::Group&)>& body) {
  on_ranks(nodes, [&](StepControl& control, comm::Group& group, int*) { body(control, group); });
}

Error error_of(Status status) {
  EXPECT_FALSE(status.ok());
  return status ? Error(Code::kOk, "success") : std::move(status).error();
}

// Looks at the attempt until it has ended otherwise; its error.
Error wait_for_end(StepControl& control) {
  for (;;) {
    if (Status status = control.poll(); !status) return std::move(status).error();
    std::this_thread::yield();
  }
}

// Begins an attempt that another rank ends, perhaps before this one has begun; its error.
Error begin_and_wait_for_end(StepControl& control) {
  Status status = control.start({});
  return status ? wait_for_end(control) : std::move(status).error();
}

// A whole step that nobody ends.
void take_step(StepControl& control) {
  expect_good(control.start({}));
  expect_good(control.barrier());
  expect_good(control.commit());
  expect_good(control.finish());
}

class StepControlTest : public testing::TestWithParam<Nodes> {
 protected:
  const Nodes nodes_ = GetParam();
  const int world_ = static_cast<int>(GetParam().size());
};

// With others to wait for.
class StepControlPeers : public StepControlTest {};

TEST_P(StepControlTest, ABarrierShowsWhatAllWroteBeforeIt) {
  // More attempts than there are slots, more barriers than ranks.
  constexpr int kAttempts = 150, kBarriers = 5;
  on_ranks(nodes_, [&](StepControl& control, comm::Group& group, int* written) {
    for (int attempt = 1; attempt <= kAttempts; ++attempt) {
      ASSERT_TRUE(control.start({}).ok());
      for (int barrier = 0; barrier < kBarriers; ++barrier) {
        const int value = attempt * 100 + barrier;
        written[group.rank()] = value;
        ASSERT_TRUE(control.barrier().ok());
        for (const int rank : group.nodes().on(group.node()))
          ASSERT_EQ(written[rank], value)
              << "rank " << rank << " as rank " << group.rank() << " sees it";
        ASSERT_TRUE(control.barrier().ok());  // all have looked
      }
      ASSERT_TRUE(control.commit().ok());
      written[group.rank()] = -attempt;
      ASSERT_TRUE(control.finish().ok());
      for (const int rank : group.nodes().on(group.node()))
        ASSERT_EQ(written[rank], -attempt) << "published by rank " << rank;
      ASSERT_TRUE(control.start({}).ok());  // nobody writes while others look
    }
  });
}

TEST_P(StepControlTest, NobodyIsPastTheStartBeforeAllHaveCome) {
  std::atomic<int> come = 0;
  on_ranks(nodes_, [&](StepControl& control, comm::Group&) {
    for (int attempt = 1; attempt <= 100; ++attempt) {
      ++come;
      ASSERT_TRUE(control.start({}).ok());
      ASSERT_GE(come.load(), attempt * world_);
    }
  });
}

TEST_P(StepControlTest, ACancelOfAnyRankEndsTheStepOnAll) {
  for (int canceller = 0; canceller < world_; ++canceller) {
    std::atomic<bool> flag = false;
    on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
      const bool mine = group.rank() == canceller;
      StepControl::Limits limits;
      if (mine) limits.cancel = &flag;
      Status begun = control.start(limits);
      EXPECT_TRUE(begun.ok() || !mine);
      if (mine) flag = true;
      // The others may be where it will never come to.
      const Error error = !begun ? std::move(begun).error()
                          : mine ? wait_for_end(control)
                                 : error_of(wait_for_rank(control, group, canceller));
      EXPECT_EQ(error.code(), Code::kCancelled) << error.message();
      const std::string words = "the step was cancelled before its commit";
      EXPECT_THAT(error.message(),
                  StartsWith(mine ? words : "rank " + std::to_string(canceller) + ": " + words));
      EXPECT_EQ(error.rank(), mine ? -1 : canceller);
      take_step(control);
    });
  }
}

TEST_P(StepControlPeers, TheFlagIsSeenByARankThatWaits) {
  std::atomic<bool> flag = false;
  on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
    const bool last = group.rank() == world_ - 1;
    StepControl::Limits limits;
    if (!last) limits.cancel = &flag;
    Status begun = control.start(limits);
    // The last rank never comes to the barrier: only the flag can end the wait of the others.
    if (last) flag = true;
    const Error error = !begun ? std::move(begun).error()
                        : last ? wait_for_end(control)
                               : error_of(wait_for_rank(control, group, world_ - 1));
    EXPECT_EQ(error.code(), Code::kCancelled) << error.message();
  });
}

TEST_P(StepControlTest, ADeadlineOfAnyRankEndsTheStepOnAll) {
  for (int late = 0; late < world_; ++late) {
    on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
      const bool mine = group.rank() == late;
      // One that is over at once, and one that passes while all are under way.
      for (const int64_t timeout_ns : {int64_t{0}, int64_t{20'000'000}}) {
        StepControl::Limits limits;
        if (mine) limits.deadline = Deadline::after(timeout_ns);
        Status status = control.start(limits);
        const Error error = status ? wait_for_end(control) : std::move(status).error();
        EXPECT_EQ(error.code(), Code::kTimeout) << error.message();
        EXPECT_THAT(error.message(),
                    HasSubstr("the deadline of the step passed before its commit"));
        EXPECT_EQ(error.rank(), mine ? -1 : late);
      }
      take_step(control);
    });
  }
}

TEST_P(StepControlPeers, ADeadlineEndsTheWaitForARankThatDoesNotCome) {
  std::latch over(world_ - 1);
  on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
    if (group.rank() == 0) {
      over.wait();
    } else {
      StepControl::Limits limits;
      limits.deadline = Deadline::after(20'000'000);
      EXPECT_EQ(error_of(control.start(limits)).code(), Code::kTimeout);
      over.count_down();
    }
    // The attempt was over when this rank came.
    if (group.rank() == 0) {
      EXPECT_EQ(error_of(control.start({})).code(), Code::kTimeout);
    }
    take_step(control);
  });
}

TEST_P(StepControlTest, AnErrorOfOneRankIsTheErrorOfAll) {
  for (int failing = 0; failing < world_; ++failing) {
    on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
      const bool mine = group.rank() == failing;
      const auto fail = [&]() -> Status {
        AMXT_TRY(control.start({}));
        return control.cancel(Error(Code::kNonfinite, "the loss is not finite"));
      };
      const Error error = mine ? error_of(fail()) : begin_and_wait_for_end(control);
      EXPECT_EQ(error.code(), Code::kNonfinite);
      EXPECT_EQ(error.message(),
                (mine ? "" : "rank " + std::to_string(failing) + ": ") + "the loss is not finite");
      // Calls in an attempt that is over tell the same.
      EXPECT_EQ(error_of(control.barrier()).message(), error.message());
      EXPECT_EQ(error_of(control.commit()).message(), error.message());
      EXPECT_EQ(error_of(control.poll()).message(), error.message());
      take_step(control);
    });
  }
}

TEST_P(StepControlTest, OfErrorsOfAllRanksAtOnceTheFirstIsEverybodys) {
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string> told(static_cast<size_t>(world_));
    on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
      const auto fail = [&]() -> Status {
        AMXT_TRY(control.start({}));
        return control.cancel(Error(Code::kIo, "error of rank " + std::to_string(group.rank())));
      };
      const std::string message = error_of(fail()).message();
      ASSERT_THAT(message, HasSubstr("error of rank"));
      told[static_cast<size_t>(group.rank())] = message.substr(message.find("error of rank"));
    });
    for (const std::string& message : told) EXPECT_EQ(message, told[0]);
  }
}

TEST_P(StepControlTest, ALongReasonIsCut) {
  on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
    const auto fail = [&]() -> Status {
      AMXT_TRY(control.start({}));
      return control.cancel(Error(Code::kIo, std::string(5000, 'x')));
    };
    const Error error = group.rank() == 0 ? error_of(fail()) : begin_and_wait_for_end(control);
    EXPECT_EQ(error.code(), Code::kIo);
    EXPECT_THAT(error.message(), HasSubstr(std::string(500, 'x')));
    EXPECT_LT(error.message().size(), 600u);
    take_step(control);
  });
}

TEST_P(StepControlTest, WhoeverCancelsWhenAllLeaveTheSameWay) {
  constexpr int kAttempts = 300;
  const unsigned seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::vector<Code>> ends(kAttempts, std::vector<Code>(static_cast<size_t>(world_)));
  std::vector<std::atomic<bool>> flags(static_cast<size_t>(kAttempts));
  std::atomic<int> under_way = -1;
  // Cancels each attempt a little after it has begun: before, in or after its commit.
  std::thread disturber([&] {
    std::mt19937 random(seed);
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      while (under_way < attempt) std::this_thread::yield();
      for (unsigned spins = random() % 2000; spins > 0; --spins) (void)under_way.load();
      flags[static_cast<size_t>(attempt)] = true;
    }
  });
  on_ranks(nodes_, [&](StepControl& control, comm::Group& group) {
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const auto at = static_cast<size_t>(attempt);
      StepControl::Limits limits;
      if (group.rank() == attempt % world_) {
        limits.cancel = &flags[at];
        under_way = attempt;
      }
      Status status = control.start(limits);
      if (status) status = control.barrier();
      if (status) status = control.commit();
      if (status) expect_good(control.finish());
      ends[at][static_cast<size_t>(group.rank())] = status ? Code::kOk : status.error().code();
    }
  });
  disturber.join();
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const std::vector<Code>& codes = ends[static_cast<size_t>(attempt)];
    EXPECT_THAT(codes[0], testing::AnyOf(Code::kOk, Code::kCancelled));
    EXPECT_THAT(codes, testing::Each(codes[0])) << "attempt " << attempt;
  }
}

TEST_P(StepControlTest, NothingEndsAStepThatIsCommitted) {
  std::atomic<bool> flag = false;
  std::latch ready(world_);
  on_ranks(nodes_, [&](StepControl& control, comm::Group&) {
    StepControl::Limits limits;
    limits.cancel = &flag;
    ASSERT_TRUE(control.start(limits).ok());
    ASSERT_TRUE(control.commit().ok());
    ready.arrive_and_wait();
    flag = true;
    expect_good(control.cancel(Error(Code::kIo, "too late")));
    expect_good(control.finish());
  });
}

TEST_P(StepControlPeers, AnAbortedGroupEndsEveryWait) {
  enum class Wait { kStart, kBarrier, kCommit, kFinish };
  for (const Wait wait : {Wait::kStart, Wait::kBarrier, Wait::kCommit, Wait::kFinish}) {
    ThreadGroups groups(nodes_);
    groups.run([&](comm::Group& group) {
      const auto shared =
          group.share("control", StepControl::shared_bytes(world_), Deadline::never());
      ASSERT_TRUE(shared.ok());
      StepControl control(shared->data(), &group);
      expect_good(group.barrier(Deadline::never()));
      const auto wait_here = [&]() -> Status {
        const bool stays = group.rank() != 0;
        if (wait == Wait::kStart) return stays ? control.start({}) : Status();
        AMXT_TRY(control.start({}));
        if (wait == Wait::kBarrier) return stays ? control.barrier() : Status();
        if (wait == Wait::kCommit) return stays ? control.commit() : Status();
        AMXT_TRY(control.commit());
        return stays ? control.finish() : Status();
      };
      if (group.rank() == 0) {
        expect_good(wait_here());
        group.abort("rank 0 has gone");
        return;
      }
      const Status status = wait_here();
      // Ranks of other nodes do not wait for this one there.
      if ((wait == Wait::kBarrier || wait == Wait::kFinish) && group.node() != 0) return;
      ASSERT_FALSE(status.ok()) << "wait " << static_cast<int>(wait);
      EXPECT_EQ(status.error().code(), Code::kCommAborted) << status.error().message();
      EXPECT_THAT(status.error().message(), HasSubstr("rank 0 has gone"));
    });
  }
}

std::string name_of(const testing::TestParamInfo<Nodes>& test) {
  std::string name = "Of";
  for (const int node : test.param) name += std::to_string(node);
  return name;
}

// One node with 1 to 8 ranks, and several.
INSTANTIATE_TEST_SUITE_P(Worlds, StepControlTest,
                         testing::Values(Nodes{0}, Nodes{0, 0}, Nodes{0, 0, 0, 0}, Nodes(8),
                                         Nodes{0, 1}, Nodes{0, 0, 1, 1}, Nodes{0, 1, 1, 2},
                                         Nodes{0, 1, 2, 0, 1, 2, 0}),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Worlds, StepControlPeers,
                         testing::Values(Nodes{0, 0}, Nodes{0, 0, 0, 0}, Nodes(8), Nodes{0, 1},
                                         Nodes{0, 0, 1, 1}, Nodes{0, 1, 1, 2}),
                         name_of);

// Rank 0 gives up on `attempts` steps before rank 1 comes to the first of them.
void give_up(StepControl& control, int attempts) {
  for (int attempt = 1; attempt <= attempts; ++attempt) {
    StepControl::Limits limits;
    limits.deadline = Deadline::after(0);
    const Status status = control.start(limits);
    ASSERT_FALSE(status.ok());
    ASSERT_EQ(status.error().code(), Code::kTimeout) << status.error().message();
  }
}

void one_is_behind(const Nodes& nodes) {
  constexpr int kAhead = 62;  // and the step that they take together is the last of the slots
  std::latch over(1);
  on_ranks(nodes, [&](StepControl& control, comm::Group& group) {
    for (int round = 0; round < 3; ++round) {
      if (group.rank() == 0) {
        give_up(control, round == 0 ? kAhead : 40);
        if (round == 0) over.count_down();
      } else {
        if (round == 0) over.wait();
        for (int attempt = 1; attempt <= (round == 0 ? kAhead : 40); ++attempt) {
          Status status = control.start({});
          // Only when it comes late is it told at the start.
          if (round == 0) {
            ASSERT_FALSE(status.ok()) << "attempt " << attempt;
          }
          const Error error = status ? wait_for_end(control) : std::move(status).error();
          EXPECT_EQ(error.code(), Code::kTimeout) << error.message();
          EXPECT_THAT(error.message(), StartsWith("rank 0: the deadline"));
        }
      }
      take_step(control);  // and they meet again
    }
  });
}

TEST(StepControlBehind, ARankThatIsBehindLeavesEachStepThatWasGivenUp) { one_is_behind({0, 0}); }

TEST(StepControlBehind, ARankOfAnotherNodeToo) {
  one_is_behind({0, 1});
  one_is_behind({1, 0});  // the one that goes ahead is not on the first node
}

TEST(StepControlBehind, ANodeThatIsTooFarBehindEndsTheGroup) {
  std::latch over(1);
  on_ranks({0, 1}, [&](StepControl& control, comm::Group& group) {
    if (group.rank() == 0) {
      for (int attempt = 0; attempt < 5000 && !testing::Test::HasFailure(); ++attempt) {
        StepControl::Limits limits;
        limits.deadline = Deadline::after(0);
        (void)control.start(limits);
      }
      over.count_down();
      return;
    }
    over.wait();
    const Error error = error_of(control.start({}));
    EXPECT_EQ(error.code(), Code::kCommAborted);
    EXPECT_THAT(error.message(), HasSubstr("calls that it had not come to"));
  });
}

TEST(StepControlBehind, ARankThatIsTooFarBehindIsNamed) {
  on_ranks({0, 0}, [&](StepControl& control, comm::Group& group) {
    if (group.rank() == 1) return;
    give_up(control, 63);
    const Status status = control.start({});
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kCommTimeout);
    EXPECT_EQ(status.error().rank(), 1);
    EXPECT_THAT(status.error().message(), HasSubstr("rank 1 is 64 calls behind"));
  });
}

}  // namespace
}  // namespace amxt::test
