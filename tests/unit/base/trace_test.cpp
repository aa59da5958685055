#include "base/trace.h"

#include <gtest/gtest.h>

namespace amxt {
namespace {

TEST(Trace, ASpanIsFromItsBeginningToItsEnd) {
  Trace trace(4);
  const int64_t before = monotonic_ns();
  {
    const Span outer(&trace, "outer", 3, 4);
    const Span inner(&trace, "inner");
    EXPECT_TRUE(trace.events().empty());
  }
  const int64_t after = monotonic_ns();
  ASSERT_EQ(trace.events().size(), 2u);
  const Trace::Event &inner = trace.events()[0], &outer = trace.events()[1];
  EXPECT_STREQ(inner.name, "inner");
  EXPECT_STREQ(outer.name, "outer");
  EXPECT_EQ(outer.flop, 3);
  EXPECT_EQ(outer.bytes, 4);
  EXPECT_LE(before, outer.begin_ns);
  EXPECT_LE(outer.begin_ns, inner.begin_ns);
  EXPECT_LE(inner.end_ns, outer.end_ns);
  EXPECT_LE(outer.end_ns, after);
}

TEST(Trace, WhatIsMoreThanItHoldsIsCounted) {
  Trace trace(2);
  for (int i = 0; i < 5; ++i) const Span span(&trace, "work");
  EXPECT_EQ(trace.events().size(), 2u);
  EXPECT_EQ(trace.left_out(), 3);
}

TEST(Trace, ASpanOfNoTraceDoesNothing) { const Span span(nullptr, "work", 1, 1); }

}  // namespace
}  // namespace amxt
