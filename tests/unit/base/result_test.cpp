#include "base/result.h"

#include <gtest/gtest.h>

namespace amxt {
namespace {

TEST(During, SaysInALostRanksErrorWhatWasUnderWay) {
  const Status status =
      during("step 3", Status(Error(Code::kCommPeerLost, "rank 2 died").with_rank(2)));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kCommPeerLost);
  EXPECT_EQ(status.error().rank(), 2);
  EXPECT_EQ(status.error().message(), "during step 3: rank 2 died");
}

TEST(During, IsSaidByTheInnermostAlone) {
  const Status status =
      during("trainer run", during("step 3", Status(Error(Code::kCommPeerLost, "rank 2 died"))));
  EXPECT_EQ(status.error().message(), "during step 3: rank 2 died");
}

TEST(During, LeavesEveryOtherOutcomeAsItIs) {
  EXPECT_EQ(during("step 3", Result<int>(7)).value(), 7);
  EXPECT_EQ(during("step 3", Status(Error(Code::kIo, "no disk"))).error().message(), "no disk");
}

}  // namespace
}  // namespace amxt
