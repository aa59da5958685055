#include "checkpoint/agreement.h"

#include <gtest/gtest.h>

#include "small_model.h"
#include "thread_group.h"

namespace amxt::checkpoint {
namespace {

TEST(Agreement, payloads_reach_everyone_by_rank) {
  run_ranks(3, [](comm::Group& group) {
    const auto all =
        agree(group, Result<std::string>(std::string(static_cast<size_t>(group.rank()), 'x')),
              Deadline::never());
    ASSERT_GOOD(all);
    EXPECT_EQ(*all, (std::vector<std::string>{"", "x", "xx"}));
  });
}

TEST(Agreement, the_lowest_rank_with_an_error_speaks_for_all_code_and_errno_included) {
  run_ranks(4, [](comm::Group& group) {
    Status mine;
    if (group.rank() >= 2)
      mine = Error(Code::kNoSpace, "disk " + std::to_string(group.rank()), ENOSPC);
    const Status status = agree(group, std::move(mine), Deadline::never());
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kNoSpace);
    EXPECT_EQ(status.error().sys_errno(), ENOSPC);
    EXPECT_EQ(status.error().rank(), 2);
    EXPECT_EQ(status.error().message(), "rank 2: disk 2");
  });
}

TEST(Agreement, a_cancel_is_told_only_where_nothing_worse_happened) {
  run_ranks(3, [](comm::Group& group) {
    Status mine = Error(Code::kCancelled, "cancelled");
    if (group.rank() == 1) mine = Error(Code::kTimeout, "late");
    if (group.rank() == 2) mine = Error(Code::kCorrupt, "broken");
    EXPECT_EQ(agree(group, std::move(mine), Deadline::never()).error().message(), "rank 2: broken");
  });
}

TEST(Agreement, ranks_whose_deadline_has_passed_still_agree) {
  run_ranks(2, [](comm::Group& group) {
    Status mine;
    if (group.rank() == 0) mine = Error(Code::kTimeout, "late");
    EXPECT_EQ(agree(group, std::move(mine), Deadline::after(0)).error().message(), "rank 0: late");
  });
}

TEST(Agreement, a_rank_alone_keeps_its_own_words) {
  run_ranks(1, [](comm::Group& group) {
    EXPECT_EQ(agree(group, Status(Error(Code::kIo, "broken")), Deadline::never()).error().message(),
              "broken");
    const auto all = agree(group, Result<std::string>(std::string("mine")), Deadline::never());
    ASSERT_GOOD(all);
    EXPECT_EQ(*all, std::vector<std::string>{"mine"});
  });
}

TEST(Agreement, a_long_message_is_cut_and_fits) {
  run_ranks(2, [](comm::Group& group) {
    Status mine;
    if (group.rank() == 1) mine = Error(Code::kIo, std::string(100'000, 'm'));
    const Status status = agree(group, std::move(mine), Deadline::never());
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kIo);
    EXPECT_LT(status.error().message().size(), 8192u);
  });
}

}  // namespace
}  // namespace amxt::checkpoint
