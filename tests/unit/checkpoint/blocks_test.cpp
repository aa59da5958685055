#include "checkpoint/blocks.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "small_model.h"

namespace amxt::checkpoint {
namespace {

BlockList some_blocks(size_t items, size_t blocks_each) {
  BlockList list;
  for (size_t item = 0; item < items; ++item) {
    list.items.push_back({"item " + std::to_string(item), 0});
    for (size_t block = 0; block < blocks_each; ++block) list.add(item, 10);
  }
  list.buffer_bytes = 64;
  return list;
}

TEST(Blocks, each_block_is_worked_on_once_with_a_buffer) {
  const BlockList list = some_blocks(3, 100);
  std::vector<std::atomic<int>> seen(300);
  ASSERT_GOOD(run_blocks(list, "test", {}, Deadline::never(), nullptr,
                         [&](size_t block, std::span<std::byte> buffer) -> Status {
                           EXPECT_GE(buffer.size(), 64u);
                           ++seen[block];
                           return {};
                         }));
  for (const auto& count : seen) EXPECT_EQ(count.load(), 1);
}

TEST(Blocks, no_work_is_done_at_once_and_still_reports) {
  int reports = 0;
  const Progress progress = [&](const ProgressReport&) -> Status {
    ++reports;
    return {};
  };
  ASSERT_GOOD(run_blocks(some_blocks(2, 0), "test", progress, Deadline::never(), nullptr,
                         [](size_t, std::span<std::byte>) -> Status { return {}; }));
  EXPECT_EQ(reports, 4);
}

TEST(Blocks, items_are_reported_in_turn_on_the_calling_thread) {
  std::vector<std::string> names;
  const auto caller = std::this_thread::get_id();
  const Progress progress = [&](const ProgressReport& report) -> Status {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_LE(report.item_done, report.item_total);
    EXPECT_LE(report.done, report.total);
    EXPECT_EQ(report.item_total, 50);
    EXPECT_EQ(report.total, 150);
    if (names.empty() || names.back() != report.name) names.emplace_back(report.name);
    return {};
  };
  ASSERT_GOOD(run_blocks(some_blocks(3, 5), "test", progress, Deadline::never(), nullptr,
                         [](size_t, std::span<std::byte>) -> Status { return {}; }));
  EXPECT_EQ(names, (std::vector<std::string>{"item 0", "item 1", "item 2"}));
}

TEST(Blocks, a_failing_block_ends_the_work) {
  std::atomic<int> worked{0};
  const Status status = run_blocks(some_blocks(1, 10'000), "test", {}, Deadline::never(), nullptr,
                                   [&](size_t block, std::span<std::byte>) -> Status {
                                     ++worked;
                                     if (block == 7) return Error(Code::kIo, "block 7");
                                     // As long as a read takes: the error has time to be seen.
                                     std::this_thread::sleep_for(std::chrono::milliseconds(1));
                                     return {};
                                   });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message(), "block 7");
  EXPECT_LT(worked.load(), 10'000);
}

TEST(Blocks, the_first_of_several_failing_blocks_is_told) {
  // All four threads have a block in hand before the first of them fails.
  std::atomic<int> inside{0};
  const Status status = run_blocks(some_blocks(1, kBlockThreads), "test", {}, Deadline::never(),
                                   nullptr, [&](size_t block, std::span<std::byte>) -> Status {
                                     ++inside;
                                     while (inside.load() < kBlockThreads)
                                       std::this_thread::yield();
                                     return Error(Code::kIo, "block " + std::to_string(block));
                                   });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message(), "block 0");
}

TEST(Blocks, a_cancel_from_another_thread_ends_the_work) {
  std::atomic<bool> cancel{false};
  const Status status = run_blocks(some_blocks(1, 1'000'000), "test", {}, Deadline::never(),
                                   &cancel, [&](size_t block, std::span<std::byte>) -> Status {
                                     if (block == 5) cancel.store(true);
                                     while (block > 5 && !cancel.load()) std::this_thread::yield();
                                     // Never done before the cancel is seen.
                                     if (block > 100)
                                       std::this_thread::sleep_for(std::chrono::microseconds(100));
                                     return {};
                                   });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kCancelled);
  EXPECT_EQ(status.error().message(), "test: cancelled");
}

TEST(Blocks, a_deadline_that_passes_meanwhile_ends_the_work) {
  const Deadline deadline = Deadline::after(5'000'000);
  const Status status = run_blocks(some_blocks(1, 100'000), "test", {}, deadline, nullptr,
                                   [&](size_t, std::span<std::byte>) -> Status {
                                     while (!deadline.passed()) std::this_thread::yield();
                                     // Never done before the deadline is seen.
                                     std::this_thread::sleep_for(std::chrono::microseconds(100));
                                     return {};
                                   });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kTimeout);
  EXPECT_EQ(status.error().message(), "test: the deadline has passed");
}

TEST(Blocks, a_progress_that_fails_ends_the_work) {
  const Progress refuse = [](const ProgressReport&) -> Status { return Error(Code::kUser, "no"); };
  const Status status = run_blocks(some_blocks(1, 5), "test", refuse, Deadline::never(), nullptr,
                                   [](size_t, std::span<std::byte>) -> Status { return {}; });
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kUser);
}

}  // namespace
}  // namespace amxt::checkpoint
