#include "base/deadline.h"

#include <gtest/gtest.h>

namespace amxt {
namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kHour = int64_t{3'600'000} * kMs;

TEST(DeadlineTest, OfATimeoutOfZeroHasPassedAndOfANegativeOneNeverDoes) {
  EXPECT_TRUE(Deadline::after(0).passed());
  EXPECT_FALSE(Deadline::after(0).is_never());
  EXPECT_EQ(Deadline::after(0).left_ns(), 0);
  EXPECT_EQ(Deadline::after(0).poll_ms(), 0);
  for (const Deadline never :
       {Deadline::never(), Deadline::after(-1), Deadline::after(INT64_MIN),
        Deadline::after(INT64_MAX), Deadline::after(INT64_MAX - monotonic_ns() / 2)}) {
    EXPECT_TRUE(never.is_never());
    EXPECT_FALSE(never.passed());
    EXPECT_EQ(never.left_ns(), INT64_MAX);
    EXPECT_EQ(never.poll_ms(), -1);
    EXPECT_EQ(never.poll_ms(100), 100);
  }
}

TEST(DeadlineTest, LeavesWhatIsLeft) {
  const int64_t before = monotonic_ns();
  const Deadline deadline = Deadline::after(kHour);
  EXPECT_FALSE(deadline.passed());
  EXPECT_GE(deadline.at_ns(), before + kHour);
  EXPECT_LE(deadline.left_ns(), kHour);
  EXPECT_GT(deadline.left_ns(), kHour / 2);
  EXPECT_EQ(deadline.poll_ms(250), 250);
}

// Rounded down, the last millisecond of a wait would be spent polling without waiting.
TEST(DeadlineTest, IsNotPolledBeforeItHasPassed) {
  for (int i = 0; i < 1000; ++i) {
    const Deadline deadline = Deadline::after(kMs / 2);
    const int ms = deadline.poll_ms();
    if (!deadline.passed()) {
      ASSERT_EQ(ms, 1);
    }
  }
  EXPECT_EQ(Deadline::after(INT64_MAX / 2).poll_ms(), INT32_MAX);
}

TEST(DeadlineTest, TheEarlierOfTwoIsEitherWay) {
  const Deadline soon = Deadline::after(kMs), late = Deadline::after(kHour);
  EXPECT_EQ(soon.earlier(late).at_ns(), soon.at_ns());
  EXPECT_EQ(late.earlier(soon).at_ns(), soon.at_ns());
  EXPECT_EQ(late.earlier(Deadline::never()).at_ns(), late.at_ns());
}

}  // namespace
}  // namespace amxt
