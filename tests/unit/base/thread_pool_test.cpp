#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <vector>

namespace amxt {
namespace {

TEST(ThreadPoolTest, EveryTaskRunsOnceWhateverTheNumberOfThreads) {
  for (int threads : {1, 2, 3, 8}) {
    for (int spin : {0, 30}) {
      auto pool = ThreadPool::create({.threads = threads, .cpus = {}, .spin_us = spin});
      ASSERT_TRUE(pool.ok());
      EXPECT_EQ((*pool)->threads(), threads);
      for (int64_t tasks : {0, 1, 2, 7, 1000}) {
        std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
        (*pool)->run(tasks, [&](int64_t task, int thread) {
          EXPECT_GE(thread, 0);
          EXPECT_LT(thread, threads);
          ++runs[static_cast<size_t>(task)];
        });
        for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
      }
    }
  }
}

TEST(ThreadPoolTest, ManyShortRunsOneAfterTheOther) {
  auto pool = ThreadPool::create({.threads = 3, .cpus = {}, .spin_us = 1});
  ASSERT_TRUE(pool.ok());
  int64_t sum = 0;
  for (int round = 0; round < 2000; ++round) {
    std::atomic<int64_t> part{0};
    (*pool)->run(5, [&](int64_t task, int) { part += task; });
    sum += part;
  }
  EXPECT_EQ(sum, 2000 * 10);
}

TEST(ThreadPoolTest, BlocksCoverTheRangeWithoutGapOrOverlap) {
  auto pool = ThreadPool::create({.threads = 2, .cpus = {}, .spin_us = 0});
  ASSERT_TRUE(pool.ok());
  std::vector<int> hits(101);
  (*pool)->run_blocks(101, 8, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(begin % 8, 0);
    for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
  });
  EXPECT_EQ(hits, std::vector<int>(101, 1));
}

}  // namespace
}  // namespace amxt
