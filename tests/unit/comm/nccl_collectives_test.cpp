// What is NCCL's alone: its start, its stream, its faults. The suite of all transports is collectives_test.cpp.
#include "comm/nccl_collectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/dynamic_library.h"
#include "support/device_ranks.h"
#include "support/thread_group.h"

namespace amxt::comm {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr int64_t kSecond = 1'000'000'000;
constexpr const char* kStub = AMXT_TEST_STUBS_DIR "/libnccl.so.2";

using Limits = Collectives::Limits;
Limits within(int64_t ns) { return {Deadline::after(ns), nullptr}; }
Limits soon() { return within(60 * kSecond); }

// The stub, which stays loaded as long as this lives, and its faults.
class Stub {
 public:
  Stub() {
    auto opened = DynamicLibrary::open(kStub);
    if (!opened) {
      ADD_FAILURE() << opened.error().message();
      return;
    }
    library_ = std::move(opened).value();
    library_.load("nccl_stub_reset", &reset_);
    library_.load("nccl_stub_set", &set_);
    library_.load("nccl_stub_count", &count_);
    library_.load("nccl_stub_contexts", &contexts_);
    reset_();
  }
  ~Stub() { reset_(); }
  void set(const char* fault, int rank = -1) { set_(fault, rank); }
  int count(const char* what) const { return count_(what); }
  int contexts() const { return contexts_(); }
  // Communicators that are still there.
  int living() const { return count("made") - count("aborted") - count("destroyed"); }

 private:
  DynamicLibrary library_;
  void (*reset_)() = nullptr;
  void (*set_)(const char*, int) = nullptr;
  int (*count_)(const char*) = nullptr;
  int (*contexts_)() = nullptr;
};

class NcclCollectivesTest : public ::testing::Test {
 protected:
  using Change = std::function<void(int rank, NcclCollectives::Options*)>;
  using Body = std::function<void(NcclCollectives&, Group&)>;

  Result<std::unique_ptr<NcclCollectives>> make(Group& group, const Limits& limits,
                                                const Change& change = nullptr) {
    auto host = make_collectives(group, {}, nullptr, Deadline::after(60 * kSecond));
    if (!host) return std::move(host).error();
    NcclCollectives::Options options;
    options.stream = gpu_.stream_on(0);
    options.nccl = options.cuda = kStub;
    if (change) change(group.rank(), &options);
    return NcclCollectives::create(group, std::move(*host), options, limits);
  }
  void run(int world, const Body& body) {
    test::ThreadGroups(world).run([&](Group& group) {
      auto nccl = make(group, soon());
      ASSERT_TRUE(nccl.ok()) << nccl.error().message();
      body(**nccl, group);
      (void)group.barrier(Deadline::after(60 * kSecond));
    });
  }
  // The start fails on all ranks, with this code and these words.
  void expect_no_start(int world, Code code, const std::string& words,
                       const Change& change = nullptr, int64_t ns = 20 * kSecond) {
    std::atomic<int> refused{0};
    const int64_t start = monotonic_ns();
    test::ThreadGroups(world).run([&](Group& group) {
      const auto nccl = make(group, within(ns), change);
      ASSERT_FALSE(nccl.ok());
      EXPECT_EQ(nccl.error().code(), code) << nccl.error().message();
      EXPECT_THAT(nccl.error().message(), HasSubstr(words));
      ++refused;
      (void)group.barrier(Deadline::after(60 * kSecond));
    });
    EXPECT_EQ(refused, world);
    EXPECT_LT(monotonic_ns() - start, 10 * kSecond);
    EXPECT_EQ(stub_.living(), 0);
  }

  Stub stub_;
  test::Gpu gpu_;
};

// --- The start --------------------------------------------------------------------------------

TEST_F(NcclCollectivesTest, ALibraryThatOneRankLacksIsNamedOnAll) {
  expect_no_start(3, Code::kNotFound, "NCCL on rank 1: libno_nccl.so.2",
                  [](int rank, NcclCollectives::Options* options) {
                    if (rank == 1) options->nccl = "libno_nccl.so.2";
                  });
}

TEST_F(NcclCollectivesTest, AnOldOneAndAPartialOneAreNamedOnAll) {
  expect_no_start(2, Code::kUnsupported, "is NCCL 2.10.3, and 2.14.0 or newer is needed",
                  [](int rank, NcclCollectives::Options* options) {
                    if (rank == 1) options->nccl = AMXT_TEST_STUBS_DIR "/old/libnccl.so.2";
                  });
  expect_no_start(2, Code::kUnsupported, "has no function ncclReduceScatter",
                  [](int rank, NcclCollectives::Options* options) {
                    if (rank == 0) options->nccl = AMXT_TEST_STUBS_DIR "/partial/libnccl.so.2";
                  });
}

TEST_F(NcclCollectivesTest, WithoutCudaThereIsNoStart) {
  expect_no_start(
      2, Code::kNotFound, "NCCL on rank 0: libno_cuda.so.1",
      [](int, NcclCollectives::Options* options) { options->cuda = "libno_cuda.so.1"; });
}

TEST_F(NcclCollectivesTest, AStreamWithoutContextIsRefused) {
  stub_.set("no_context");
  expect_no_start(2, Code::kInvalidArgument,
                  "NCCL on rank 1: the stream has no CUDA context: invalid device context (201)",
                  [](int rank, NcclCollectives::Options* options) {
                    if (rank == 0) options->stream = nullptr;
                  });
}

TEST_F(NcclCollectivesTest, ADeviceThatIsNotThereIsRefused) {
  expect_no_start(2, Code::kInvalidArgument,
                  "NCCL on rank 1: CUDA device 9: invalid device ordinal (101)",
                  [](int rank, NcclCollectives::Options* options) {
                    options->stream = nullptr;
                    if (rank == 1) options->device = 9;
                  });
}

TEST_F(NcclCollectivesTest, AnIdOfAnotherAttemptIsRefused) {
  expect_no_start(
      3, Code::kCommProtocol, "rank 0 starts communicator 7 of NCCL, rank 2 starts 6",
      [](int rank, NcclCollectives::Options* options) { options->attempt = rank == 2 ? 6 : 7; });
}

TEST_F(NcclCollectivesTest, AnIdThatWasUsedBeforeIsRefused) {
  run(2, [](NcclCollectives& all, Group&) { ASSERT_TRUE(all.finalize(soon()).ok()); });
  stub_.set("stale_id");
  expect_no_start(2, Code::kInvalidState, "ncclGetUniqueId gave an id that was used before");
  setenv("NCCL_COMM_ID", "10.0.0.1:1234", 1);
  expect_no_start(2, Code::kInvalidState, "NCCL_COMM_ID is set");
  unsetenv("NCCL_COMM_ID");
}

TEST_F(NcclCollectivesTest, AnIdThatCannotBeMadeIsToldToAll) {
  stub_.set("id_error");
  expect_no_start(3, Code::kCommAborted,
                  "NCCL on rank 0: ncclGetUniqueId: unhandled system error (2)");
}

TEST_F(NcclCollectivesTest, ARankThatFailsToConnectIsToldToAllAtOnce) {
  stub_.set("init_error", 1);
  expect_no_start(3, Code::kCommAborted,
                  "NCCL on rank 1: connecting: unhandled system error (2): the stub has no socket");
}

TEST_F(NcclCollectivesTest, AStartThatIsInProgressForEverEndsAtTheDeadline) {
  stub_.set("init_stuck", 2);
  expect_no_start(3, Code::kCommTimeout, "connecting is still in progress at the deadline", nullptr,
                  kSecond / 5);
}

TEST_F(NcclCollectivesTest, AStartCanBeCancelled) {
  stub_.set("init_stuck", 1);
  std::atomic<bool> cancel{true};
  test::ThreadGroups(2).run([&](Group& group) {
    Limits limits = soon();
    if (group.rank() == 1) limits.cancel = &cancel;
    const auto nccl = make(group, limits);
    ASSERT_FALSE(nccl.ok());
    EXPECT_EQ(nccl.error().code(), group.rank() == 1 ? Code::kCancelled : Code::kCommAborted);
    EXPECT_THAT(nccl.error().message(), HasSubstr("NCCL on rank 1: connecting was cancelled"));
    (void)group.barrier(Deadline::after(60 * kSecond));
  });
  EXPECT_EQ(stub_.living(), 0);
}

// --- Calls ------------------------------------------------------------------------------------

TEST_F(NcclCollectivesTest, ACallReturnsBeforeTheStreamHasDoneIt) {
  run(2, [&](NcclCollectives& all, Group& group) {
    if (group.rank() == 0) stub_.set("stuck", 0);
    ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)).ok());
    std::vector<float> data(4, 1.0f);
    ASSERT_TRUE(
        all.all_reduce(data.data(), data.data(), 4, DType::kF32, ReduceOp::kSum, soon()).ok());
    EXPECT_EQ(data[0], 1.0f);
    const Status waited = all.synchronize(within(group.rank() == 0 ? kSecond / 10 : 20 * kSecond));
    ASSERT_FALSE(waited.ok());
    // The one whose deadline passes aborts; the other sees what NCCL says of that.
    if (group.rank() == 0) {
      EXPECT_EQ(waited.error().code(), Code::kCommTimeout);
      EXPECT_THAT(waited.error().message(),
                  HasSubstr("NCCL on rank 0: the stream is still in progress at the deadline"));
    } else {
      EXPECT_EQ(waited.error().code(), Code::kCommPeerLost);
      EXPECT_THAT(waited.error().message(),
                  AllOf(HasSubstr("remote process exited or there was a network error (6)"),
                        HasSubstr("a peer of the stub is gone")));
    }
    const Status later = all.barrier(soon());
    ASSERT_FALSE(later.ok());
    EXPECT_EQ(later.error().message(), waited.error().message());
  });
}

TEST_F(NcclCollectivesTest, WorksInPlaceOnEqualAndUnequalParts) {
  run(3, [&](NcclCollectives& all, Group& group) {
    const int me = group.rank();
    for (const std::vector<int64_t>& counts :
         {std::vector<int64_t>{2, 2, 2}, std::vector<int64_t>{1, 0, 3}}) {
      std::vector<int32_t> data(6, -1);
      int64_t offset = 0, total = 0;
      for (int r = 0; r < 3; ++r) {
        if (r < me) offset += counts[static_cast<size_t>(r)];
        total += counts[static_cast<size_t>(r)];
      }
      int32_t* const own = data.data() + offset;
      std::fill_n(own, counts[static_cast<size_t>(me)], 10 + me);
      ASSERT_TRUE(all.all_gather(own, data.data(), counts, DType::kI32, soon()).ok());
      ASSERT_TRUE(all.synchronize(soon()).ok());
      std::vector<int32_t> expected;
      for (int r = 0; r < 3; ++r) {
        expected.insert(expected.end(), static_cast<size_t>(counts[static_cast<size_t>(r)]),
                        10 + r);
      }
      data.resize(static_cast<size_t>(total));
      EXPECT_EQ(data, expected);
      ASSERT_TRUE(
          all.reduce_scatter(data.data(), own, counts, DType::kI32, ReduceOp::kSum, soon()).ok());
      ASSERT_TRUE(all.synchronize(soon()).ok());
      for (int64_t i = 0; i < counts[static_cast<size_t>(me)]; ++i)
        EXPECT_EQ(own[i], 3 * (10 + me));
    }
  });
}

TEST_F(NcclCollectivesTest, UnequalPartsAreOneGroupOfNccl) {
  run(2, [&](NcclCollectives& all, Group&) {
    std::vector<float> data(8);
    const std::vector<int64_t> equal{2, 2}, unequal{1, 3};
    ASSERT_TRUE(all.all_gather(data.data() + 4, data.data(), equal, DType::kF32, soon()).ok());
    ASSERT_TRUE(all.barrier(soon()).ok());
    EXPECT_EQ(stub_.count("groups"), 0);
    ASSERT_TRUE(all.barrier(soon()).ok());
    ASSERT_TRUE(all.all_gather(data.data() + 4, data.data(), unequal, DType::kF32, soon()).ok());
    ASSERT_TRUE(all.barrier(soon()).ok());
    EXPECT_EQ(stub_.count("groups"), 2);
  });
}

TEST_F(NcclCollectivesTest, CallsMayUseSeveralStreams) {
  run(2, [&](NcclCollectives& all, Group&) {
    const CudaStream other = gpu_.stream_on(0);
    std::vector<int64_t> first(3, 1), second(3, 2);
    ASSERT_TRUE(
        all.all_reduce(first.data(), first.data(), 3, DType::kI64, ReduceOp::kSum, soon()).ok());
    ASSERT_TRUE(all.synchronize(soon()).ok());
    all.use(other);
    ASSERT_TRUE(
        all.all_reduce(second.data(), second.data(), 3, DType::kI64, ReduceOp::kSum, soon()).ok());
    ASSERT_TRUE(all.synchronize(soon()).ok());
    EXPECT_EQ(first, std::vector<int64_t>(3, 2));
    EXPECT_EQ(second, std::vector<int64_t>(3, 4));
  });
}

TEST_F(NcclCollectivesTest, ABarrierWaitsForTheStreamsOfAll) {
  run(2, [&](NcclCollectives& all, Group& group) {
    std::vector<int32_t> data(100'000, group.rank() + 1);
    ASSERT_TRUE(
        all.all_reduce(data.data(), data.data(), 100'000, DType::kI32, ReduceOp::kMax, soon())
            .ok());
    ASSERT_TRUE(all.barrier(soon()).ok());
    EXPECT_EQ(data, std::vector<int32_t>(100'000, 2));
  });
}

// --- Faults -----------------------------------------------------------------------------------

TEST_F(NcclCollectivesTest, AnErrorThatComesLaterIsFoundAndNamed) {
  run(2, [&](NcclCollectives& all, Group& group) {
    float data = 1;
    stub_.set("async_error", 1);
    // Rank 1 may find it in the call itself already, if it comes at once.
    Status status = all.all_reduce(&data, &data, 1, DType::kF32, ReduceOp::kSum, soon());
    if (group.rank() == 0) {
      // This rank's own part may have gone well; the next call is refused all the same.
      ASSERT_FALSE(all.barrier(within(20 * kSecond)).ok());
      return;
    }
    if (status) status = all.synchronize(soon());
    if (status) status = all.barrier(soon());
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kCommPeerLost);
    EXPECT_EQ(status.error().rank(), 1);
    EXPECT_THAT(status.error().message(),
                AllOf(HasSubstr("NCCL on rank 1: "), HasSubstr("network error (6): a peer")));
  });
  EXPECT_EQ(stub_.living(), 0);
  EXPECT_EQ(stub_.count("aborted"), 2);
}

TEST_F(NcclCollectivesTest, ACallThatIsInProgressForEverEndsAtTheDeadline) {
  run(2, [&](NcclCollectives& all, Group& group) {
    stub_.set("in_progress", 0);
    ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)).ok());
    float data = 1;
    const int64_t start = monotonic_ns();
    const Status status = all.all_reduce(&data, &data, 1, DType::kF32, ReduceOp::kSum,
                                         within(group.rank() == 0 ? kSecond / 5 : 20 * kSecond));
    if (group.rank() == 0) {
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().code(), Code::kCommTimeout);
      EXPECT_THAT(status.error().message(),
                  HasSubstr("NCCL on rank 0: all_reduce of 1 F32, sum is still in progress at the "
                            "deadline"));
      EXPECT_LT(monotonic_ns() - start, 5 * kSecond);
    }
    EXPECT_FALSE(all.barrier(soon()).ok());
  });
}

TEST_F(NcclCollectivesTest, ACallThatNcclRefusesIsTheEnd) {
  run(2, [&](NcclCollectives& all, Group& group) {
    stub_.set("refuse", 1);
    ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)).ok());
    float data = 1;
    const Status status = all.broadcast(&data, 1, DType::kF32, 0, soon());
    if (group.rank() == 1) {
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().code(), Code::kCommAborted);
      EXPECT_THAT(status.error().message(),
                  HasSubstr("NCCL on rank 1: broadcast of 1 F32, root 0: invalid usage (5): the "
                            "stub refuses"));
    }
    EXPECT_FALSE(all.barrier(soon()).ok());
  });
}

TEST_F(NcclCollectivesTest, AStreamThatFailsIsTheEnd) {
  run(1, [&](NcclCollectives& all, Group&) {
    stub_.set("stream_error");
    const Status status = all.synchronize(soon());
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kCommAborted);
    EXPECT_THAT(status.error().message(), HasSubstr("unspecified launch failure (719)"));
  });
}

TEST_F(NcclCollectivesTest, ADeathInTheGroupEndsTheWait) {
  run(2, [&](NcclCollectives& all, Group& group) {
    stub_.set("stuck", -1);
    float data = 1;
    ASSERT_TRUE(all.all_reduce(&data, &data, 1, DType::kF32, ReduceOp::kSum, soon()).ok());
    ASSERT_TRUE(group.barrier(Deadline::after(60 * kSecond)).ok());  // all are out of it
    if (group.rank() == 1) group.abort("rank 1 gives up");
    const int64_t start = monotonic_ns();
    const Status status = all.synchronize(soon());
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(status.error().message(), AnyOf(HasSubstr("rank 1 gives up"), HasSubstr("peer")));
    EXPECT_LT(monotonic_ns() - start, 5 * kSecond);
  });
  EXPECT_EQ(stub_.living(), 0);
}

TEST_F(NcclCollectivesTest, AWaitCanBeCancelled) {
  run(1, [&](NcclCollectives& all, Group&) {
    stub_.set("stuck");
    float data = 1;
    ASSERT_TRUE(all.all_reduce(&data, &data, 1, DType::kF32, ReduceOp::kSum, soon()).ok());
    std::atomic<bool> cancel{true};
    const Status status = all.synchronize({Deadline::after(60 * kSecond), &cancel});
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kCancelled);
    EXPECT_FALSE(all.synchronize(soon()).ok());
  });
}

TEST_F(NcclCollectivesTest, AnAbortThatTakesItsTimeIsNotWaitedForForEver) {
  const int64_t start = monotonic_ns();
  run(1, [&](NcclCollectives&, Group&) { stub_.set("abort_slow"); });
  EXPECT_LT(monotonic_ns() - start, 4 * kSecond);
  // The stub must stay until its thread is through.
  while (stub_.living() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

TEST_F(NcclCollectivesTest, FinalizeIsAnOrderlyEnd) {
  run(3, [&](NcclCollectives& all, Group&) {
    float data = 2;
    ASSERT_TRUE(all.all_reduce(&data, &data, 1, DType::kF32, ReduceOp::kAvg, soon()).ok());
    const Status ended = all.finalize(soon());
    ASSERT_TRUE(ended.ok()) << ended.error().message();
    EXPECT_EQ(data, 2);
    const Status later = all.barrier(soon());
    ASSERT_FALSE(later.ok());
    EXPECT_EQ(later.error().code(), Code::kInvalidState);
  });
  EXPECT_EQ(stub_.count("destroyed"), 3);
  EXPECT_EQ(stub_.count("aborted"), 0);
}

// The stub answers "invalid device context" to whoever asks a stream without one.
TEST_F(NcclCollectivesTest, HasTheContextOfItsStreamDuringCallsAndNotAfterThem) {
  run(2, [&](NcclCollectives& all, Group&) {
    const int before = stub_.contexts();
    float data = 1;
    ASSERT_TRUE(all.all_reduce(&data, &data, 1, DType::kF32, ReduceOp::kSum, soon()).ok());
    ASSERT_TRUE(all.barrier(soon()).ok());
    EXPECT_EQ(stub_.contexts(), before);
    std::thread([&] {  // one that has no context of its own
      ASSERT_TRUE(all.synchronize(soon()).ok());
      EXPECT_EQ(stub_.contexts(), 0);
    })
        .join();
  });
}

}  // namespace
}  // namespace amxt::comm
