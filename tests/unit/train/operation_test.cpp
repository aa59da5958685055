#include "train/operation.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

namespace amxt::train {
namespace {

Status until_cancelled(const std::atomic<bool>& cancel) {
  while (!cancel.load()) std::this_thread::yield();
  return Error(Code::kCancelled, "cancelled");
}

std::unique_ptr<Engine> new_engine() {
  auto engine = Engine::create();
  EXPECT_TRUE(engine.ok());
  return std::move(engine).value();
}

TEST(Operation, WaitGivesTheStatusThatFinishedIt) {
  Operation operation;
  EXPECT_FALSE(operation.done());
  operation.finish(Error(Code::kIo, "disk: gone"));

  EXPECT_TRUE(operation.done());
  const Status status = operation.wait(Deadline::never());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kIo);
  EXPECT_EQ(status.error().message(), "disk: gone");
  EXPECT_FALSE(operation.wait(Deadline::never()).ok());  // and again
}

TEST(Operation, WaitTimesOutAndCanBeRepeated) {
  Operation operation;
  EXPECT_EQ(operation.wait(Deadline::after(0)).error().code(), Code::kTimeout);
  EXPECT_EQ(operation.wait(Deadline::after(1'000'000)).error().code(), Code::kTimeout);
  operation.finish({});
  EXPECT_TRUE(operation.wait(Deadline::after(0)).ok());
}

TEST(Operation, CallbackFiresOnceWhenFinished) {
  Operation operation;
  int calls = 0;
  Code code = Code::kOk;
  ASSERT_TRUE(operation
                  .on_done([&](const Status& status) {
                    ++calls;
                    code = status.error().code();
                  })
                  .ok());
  EXPECT_EQ(calls, 0);
  operation.finish(Error(Code::kNonfinite, "step 3"));
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(code, Code::kNonfinite);
}

TEST(Operation, CallbackFiresAtOnceWhenFinishedBefore) {
  Operation operation;
  operation.finish({});
  int calls = 0;
  ASSERT_TRUE(
      operation.on_done([&](const Status& status) { calls += status.ok() ? 1 : 100; }).ok());
  EXPECT_EQ(calls, 1);
}

TEST(Operation, SecondCallbackIsRefusedAndNeverFires) {
  Operation operation;
  int second = 0;
  ASSERT_TRUE(operation.on_done([](const Status&) {}).ok());
  EXPECT_EQ(operation.on_done([&](const Status&) { ++second; }).error().code(),
            Code::kInvalidState);
  operation.finish({});
  EXPECT_EQ(operation.on_done([&](const Status&) { ++second; }).error().code(),
            Code::kInvalidState);
  EXPECT_EQ(second, 0);
}

TEST(Engine, RunsInOrderOnItsOwnThread) {
  auto engine = new_engine();
  std::vector<int> order;
  std::vector<std::shared_ptr<Operation>> operations;
  for (int i = 0; i < 5; ++i) {
    operations.push_back(engine->submit([&, i](const std::atomic<bool>&) -> Status {
      EXPECT_TRUE(engine->is_current_thread());
      order.push_back(i);
      return {};
    }));
  }
  for (const auto& operation : operations) EXPECT_TRUE(operation->wait(Deadline::never()).ok());
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
  EXPECT_FALSE(engine->is_current_thread());
}

TEST(Engine, RunThatPassesItsDeadlineIsCancelledAndTimesOut) {
  auto engine = new_engine();
  const Status status = engine->run(until_cancelled, Deadline::after(1'000'000));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kTimeout);
  EXPECT_TRUE(
      engine->run([](const std::atomic<bool>&) { return Status(); }, Deadline::never()).ok());
}

TEST(Engine, WorkPastThePointOfReturnGivesItsResultAfterTheDeadline) {
  auto engine = new_engine();
  const Status status = engine->run(
      [](const std::atomic<bool>& cancel) -> Status {
        while (!cancel.load()) std::this_thread::yield();
        return {};  // was committed
      },
      Deadline::after(200'000'000));  // enough for it to begin, on a busy machine too
  EXPECT_TRUE(status.ok());
}

TEST(Engine, RunBehindOtherWorkTimesOutWithoutItsTurn) {
  auto engine = new_engine();
  auto blocker = engine->submit(until_cancelled);
  bool ran = false;
  auto work = [&](const std::atomic<bool>&) -> Status {
    ran = true;
    return {};
  };
  EXPECT_EQ(engine->run(work, Deadline::after(0)).error().code(), Code::kTimeout);
  EXPECT_EQ(engine->run(work, Deadline::after(1'000'000)).error().code(), Code::kTimeout);
  EXPECT_FALSE(blocker->done());
  blocker->cancel();
  EXPECT_EQ(blocker->wait(Deadline::never()).error().code(), Code::kCancelled);
  EXPECT_FALSE(ran);
}

TEST(Engine, CancelAllEndsWhatIsRunningAndQueuedButNothingLater) {
  auto engine = new_engine();
  auto running = engine->submit(until_cancelled);
  bool ran = false;
  auto queued = engine->submit([&](const std::atomic<bool>&) -> Status {
    ran = true;
    return {};
  });
  engine->cancel_all();
  EXPECT_EQ(running->wait(Deadline::never()).error().code(), Code::kCancelled);
  EXPECT_EQ(queued->wait(Deadline::never()).error().code(), Code::kCancelled);
  EXPECT_FALSE(ran);
  EXPECT_TRUE(
      engine->run([](const std::atomic<bool>&) { return Status(); }, Deadline::never()).ok());
}

TEST(Engine, ExceptionsOfWorkBecomeErrors) {
  auto engine = new_engine();
  Status status = engine->run(
      [](const std::atomic<bool>&) -> Status { throw std::runtime_error("third party"); },
      Deadline::never());
  EXPECT_EQ(status.error().code(), Code::kInternal);
  EXPECT_EQ(status.error().message(), "third party");
  status = engine->run([](const std::atomic<bool>&) -> Status { throw std::bad_alloc(); },
                       Deadline::never());
  EXPECT_EQ(status.error().code(), Code::kOutOfMemory);
}

TEST(Engine, BlockingCallInsideACallbackIsRefused) {
  auto engine = new_engine();
  Code code = Code::kOk;
  const Status status = engine->run(
      [&](const std::atomic<bool>&) -> Status {
        const Status inner =
            engine->run([](const std::atomic<bool>&) { return Status(); }, Deadline::never());
        code = inner.error().code();
        return {};
      },
      Deadline::never());
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(code, Code::kInvalidState);
}

TEST(Engine, DestroyingItFinishesEveryOperationOnce) {
  auto engine = new_engine();
  std::atomic<int> callbacks{0};
  std::vector<std::shared_ptr<Operation>> operations;
  operations.push_back(engine->submit(until_cancelled));
  for (int i = 0; i < 3; ++i) {
    operations.push_back(engine->submit([](const std::atomic<bool>&) { return Status(); }));
  }
  for (const auto& operation : operations) {
    ASSERT_TRUE(operation
                    ->on_done([&](const Status& status) {
                      EXPECT_EQ(status.error().code(), Code::kCancelled);
                      ++callbacks;
                    })
                    .ok());
  }
  engine.reset();
  EXPECT_EQ(callbacks.load(), 4);
  for (const auto& operation : operations) EXPECT_TRUE(operation->done());
}

TEST(Engine, WorkIsReleasedBeforeTheEndIsTold) {
  auto engine = new_engine();
  auto held = std::make_shared<int>(1);
  std::weak_ptr<int> watch = held;
  auto operation =
      engine->submit([held = std::move(held)](const std::atomic<bool>&) { return Status(); });
  ASSERT_TRUE(operation->wait(Deadline::never()).ok());
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace amxt::train
