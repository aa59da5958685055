#include "checkpoint/save.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <mutex>

#include "checkpoint/resume.h"
#include "checkpoint/verify.h"
#include "small_state.h"

namespace amxt::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> names_in(const std::string& path) {
  const auto names = list_directory(path);
  EXPECT_GOOD(names);
  return *names;
}

TEST(Save, leaves_a_directory_with_a_file_for_each_rank_and_a_link_to_it) {
  TemporaryFolder output;
  save_filled<bf16>(output / "a/b", 7, 3, 1);
  EXPECT_THAT(names_in(output / "a/b"), ElementsAre("latest", "step-000007"));
  EXPECT_THAT(names_in(output / "a/b/step-000007"),
              ElementsAre("manifest.json", "rank-00000-of-00003.safetensors",
                          "rank-00001-of-00003.safetensors", "rank-00002-of-00003.safetensors"));
  EXPECT_EQ(*read_symlink(output / "a/b/latest"), "step-000007");
  EXPECT_GOOD(verify(output / "a/b", {}, Deadline::never(), nullptr));
}

TEST(Save, takes_about_the_bytes_that_were_foretold) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 7, 3, 1);
  const auto manifest = open_checkpoint(output.path());
  ASSERT_GOOD(manifest);
  const int64_t foretold = checkpoint_bytes(store::Layout(small_model_config(), 3));
  EXPECT_GE(foretold, manifest->bytes());
  EXPECT_LE(foretold, manifest->bytes() + (2 << 20));
}

TEST(Save, a_step_that_is_there_is_not_overwritten) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 7, 2, 1);
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    fill_state(parameters, 2);
    const auto saved = save_step(output.path(), 7, parameters, group);
    ASSERT_FALSE(saved.ok());
    EXPECT_EQ(saved.error().code(), Code::kExists);
    EXPECT_THAT(saved.error().message(), HasSubstr("step-000007"));
  });
  EXPECT_GOOD(verify(output.path(), {}, Deadline::never(), nullptr));
  EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000007"));
}

// DeepSpeed #4781: a save that only some ranks take part in must not hang or mix steps.
TEST(Save, ranks_that_save_different_steps_are_told_so) {
  TemporaryFolder output;
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    const auto saved = save_step(output.path(), 5 + group.rank(), parameters, group);
    ASSERT_FALSE(saved.ok());
    EXPECT_EQ(saved.error().code(), Code::kMismatch);
    EXPECT_THAT(saved.error().message(), HasSubstr("rank 1 saves step 6"));
  });
  EXPECT_TRUE(names_in(output.path()).empty());
}

TEST(Save, the_newest_stay_and_the_one_that_latest_names) {
  TemporaryFolder output;
  for (int64_t step = 1; step <= 5; ++step) save_filled<bf16>(output.path(), step, 1, 1, 2);
  EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000004", "step-000005"));
  // A job that went back: what `latest` names is older than all that stays.
  save_filled<bf16>(output.path(), 2, 1, 1, 2);
  EXPECT_THAT(names_in(output.path()),
              ElementsAre("latest", "step-000002", "step-000004", "step-000005"));
  EXPECT_EQ(*read_symlink(output / "latest"), "step-000002");
}

TEST(Save, an_old_checkpoint_that_can_not_be_removed_is_a_warning) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1, 1);
  with_parameters<bf16>(1, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    set_file_fault([](std::string_view operation, const std::string& path) {
      return operation == "rename" && path.find("removed") != std::string::npos ? EPERM : 0;
    });
    const auto saved = save_step(output.path(), 2, parameters, group, 1);
    set_file_fault({});
    ASSERT_GOOD(saved);
    EXPECT_THAT(saved->warnings, ElementsAre(HasSubstr("an old checkpoint stays")));
  });
  EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000001", "step-000002"));
}

TEST(Save, a_future_that_was_left_can_be_removed) {
  TemporaryFolder output;
  for (const int64_t step : {10, 20, 30}) save_filled<bf16>(output.path(), step, 1, 1);
  ASSERT_GOOD(remove_later(output.path(), 10));
  EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000010"));
  EXPECT_EQ(*read_symlink(output / "latest"), "step-000010");
  ASSERT_GOOD(remove_later(output.path(), 10));
}

// KempnerForge #102: `latest` moved before the data was on disk, and the old checkpoint deleted.
TEST(
    Save,
    everything_is_on_disk_before_it_gets_its_name_and_named_before_latest_moves_and_latest_before_the_old_go) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1, 1);
  std::mutex mutex;
  std::vector<std::string> seen;
  const std::string prefix = output.path() + "/";
  set_file_fault([&](std::string_view operation, const std::string& path) {
    const std::lock_guard lock(mutex);
    std::string what = std::string(operation) + " " +
                       (path.starts_with(prefix) ? path.substr(prefix.size())
                        : path == output.path()  ? "."
                                                 : path);
    // The temporary directory's nonce is not known.
    if (const size_t at = what.find(".tmp-step-000002-"); at != std::string::npos)
      what.replace(at, 33, "TMP");
    if (const size_t at = what.find(".tmp-removed-step-000001-"); at != std::string::npos)
      what.replace(at, 41, "OLD");
    if (operation != "read" && (seen.empty() || seen.back() != what)) seen.push_back(what);
    return 0;
  });
  save_filled<bf16>(output.path(), 2, 1, 1, 1);
  set_file_fault({});
  const std::string file = "TMP/rank-00000-of-00001.safetensors";
  EXPECT_THAT(
      seen,
      ElementsAre("create TMP", "create " + file, "reserve " + file, "write " + file,
                  "sync " + file, "sync_directory TMP", "create TMP/manifest.json",
                  "reserve TMP/manifest.json", "write TMP/manifest.json", "sync TMP/manifest.json",
                  "sync_directory TMP", "rename step-000002", "sync_directory .", "symlink latest",
                  "rename latest", "sync_directory .", "rename OLD", "remove OLD",
                  "remove OLD/manifest.json", "remove OLD/rank-00000-of-00001.safetensors"));
}

struct Fault {
  const char* operation;
  const char* path;  // part of it
  int error;
  Code code;
};

void PrintTo(const Fault& fault, std::ostream* out) {
  *out << fault.operation << " " << fault.path;
}

class SaveFault : public testing::TestWithParam<Fault> {};

// Lightning #688, #19970; transformers #35782: a save that fails must leave the last one as it was.
TEST_P(SaveFault, leaves_the_last_checkpoint_latest_and_the_state_as_they_were) {
  const Fault fault = GetParam();
  for (const int world : {1, 2}) {
    SCOPED_TRACE(world);
    TemporaryFolder output;
    save_filled<bf16>(output.path(), 1, world, 11);
    std::mutex mutex;
    std::set<std::string> messages;
    with_parameters<bf16>(world, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
      fill_state(parameters, 22);
      if (group.rank() == 0) {
        set_file_fault([&](std::string_view operation, const std::string& path) {
          return operation == fault.operation && path.find(fault.path) != std::string::npos
                     ? fault.error
                     : 0;
        });
      }
      ASSERT_GOOD(group.barrier(Deadline::never()));
      const auto saved = save_step(output.path(), 2, parameters, group, 1);
      ASSERT_GOOD(group.barrier(Deadline::never()));
      if (group.rank() == 0) set_file_fault({});
      ASSERT_GOOD(group.barrier(Deadline::never()));
      ASSERT_FALSE(saved.ok());
      EXPECT_EQ(saved.error().code(), fault.code) << saved.error().message();
      EXPECT_EQ(saved.error().message().find('\n'), std::string::npos);
      EXPECT_EQ(differing_elements(parameters, 22), 0);
      {
        const std::lock_guard lock(mutex);
        messages.insert(saved.error().message());
      }
      if (group.rank() == 0) {
        EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000001"));
        EXPECT_EQ(*read_symlink(output / "latest"), "step-000001");
        EXPECT_GOOD(verify(output.path(), {}, Deadline::never(), nullptr));
      }
      // Training goes on, and the next save of the same step succeeds.
      ASSERT_GOOD(group.barrier(Deadline::never()));
      ASSERT_GOOD(save_step(output.path(), 2, parameters, group, 1));
    });
    EXPECT_EQ(messages.size(), 1u) << testing::PrintToString(messages);
    EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000002"));
    EXPECT_EQ(*read_symlink(output / "latest"), "step-000002");
  }
}

INSTANTIATE_TEST_SUITE_P(Each, SaveFault,
                         testing::Values(Fault{"create", ".tmp-step", EROFS, Code::kIo},
                                         Fault{"create", "rank-00000", EACCES, Code::kIo},
                                         Fault{"reserve", "rank-0000", ENOSPC, Code::kNoSpace},
                                         Fault{"write", "rank-00000", EIO, Code::kIo},
                                         Fault{"sync", "rank-00000", EIO, Code::kIo},
                                         Fault{"read", "rank-00000", EIO, Code::kIo},
                                         Fault{"sync_directory", ".tmp-step", EIO, Code::kIo},
                                         Fault{"create", "manifest.json", ENOSPC, Code::kNoSpace},
                                         Fault{"reserve", "manifest.json", ENOSPC, Code::kNoSpace},
                                         Fault{"write", "manifest.json", ENOSPC, Code::kNoSpace},
                                         Fault{"sync", "manifest.json", EIO, Code::kIo},
                                         Fault{"rename", "step-000002", EIO, Code::kIo},
                                         Fault{"symlink", "latest", EACCES, Code::kIo},
                                         Fault{"rename", "/latest", EIO, Code::kIo}),
                         [](const testing::TestParamInfo<Fault>& of) {
                           std::string name = std::string(of.param.operation) + "_" + of.param.path;
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return isalnum(static_cast<unsigned char>(c)) == 0; },
                               '_');
                           return name;
                         });

// The directory above is synced after the rename to step-000002 and again after `latest` has moved.
TEST(SaveFaultOfDirectory,
     when_the_directory_can_not_be_synced_after_the_rename_the_name_is_taken_back) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 11);
  with_parameters<bf16>(1, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    set_file_fault([&](std::string_view operation, const std::string& path) {
      return operation == "sync_directory" && path == output.path() ? EIO : 0;
    });
    const auto saved = save_step(output.path(), 2, parameters, group);
    set_file_fault({});
    ASSERT_FALSE(saved.ok());
  });
  EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000001"));
}

TEST(SaveFaultOfDirectory,
     when_latest_has_moved_and_can_not_be_synced_it_still_names_something_whole) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 11);
  with_parameters<bf16>(1, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    int count = 0;
    set_file_fault([&](std::string_view operation, const std::string& path) {
      return operation == "sync_directory" && path == output.path() && ++count == 2 ? EIO : 0;
    });
    const auto saved = save_step(output.path(), 2, parameters, group, 1);
    set_file_fault({});
    ASSERT_FALSE(saved.ok());
  });
  EXPECT_THAT(names_in(output.path()), ElementsAre("latest", "step-000001", "step-000002"));
  EXPECT_GOOD(verify(output.path(), {}, Deadline::never(), nullptr));
}

TEST(Save, a_cancel_or_a_refused_progress_leaves_nothing_behind) {
  TemporaryFolder output;
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    const std::atomic<bool> cancel{group.rank() == 0};
    const auto cancelled = save(output.path(), some_training(1), small_model_config(), parameters,
                                {}, group, {}, Deadline::never(), &cancel);
    ASSERT_FALSE(cancelled.ok());
    EXPECT_EQ(cancelled.error().code(), Code::kCancelled);
    EXPECT_THAT(cancelled.error().message(), HasSubstr("rank 0: saving: cancelled"));
    const Progress refuse = [&](const ProgressReport&) -> Status {
      if (group.rank() == 1) return Error(Code::kUser, "no");
      return {};
    };
    const auto refused = save(output.path(), some_training(1), small_model_config(), parameters, {},
                              group, refuse, Deadline::never(), nullptr);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code(), Code::kUser);
    const auto late = save(output.path(), some_training(1), small_model_config(), parameters, {},
                           group, {}, Deadline::after(0), nullptr);
    ASSERT_FALSE(late.ok());
    EXPECT_EQ(late.error().code(), Code::kTimeout);
  });
  EXPECT_TRUE(names_in(output.path()).empty());
}

TEST(CheckOutput, makes_the_directory_and_clears_what_dead_attempts_left) {
  TemporaryFolder output;
  ASSERT_GOOD(make_directories(output / "out/.tmp-step-000003-0123/deep"));
  ASSERT_GOOD(make_directories(output / "out/.tmp-removed-step-000001-0123"));
  ASSERT_GOOD(make_directories(output / "out/step-000002"));
  ASSERT_GOOD(write_text_file_atomically(output / "out/latest.tmp", ""));
  ASSERT_GOOD(make_directories(output / "out/final"));
  run_ranks(3, [&](comm::Group& group) {
    ASSERT_GOOD(check_output(output / "out", 1, group, Deadline::never()));
  });
  EXPECT_THAT(names_in(output / "out"), ElementsAre("final", "step-000002"));
  run_ranks(2, [&](comm::Group& group) {
    ASSERT_GOOD(check_output(output / "new/deeper", 1, group, Deadline::never()));
  });
  EXPECT_TRUE(names_in(output / "new/deeper").empty());
}

// The error of check_output() on all ranks.
Error output_error(const std::string& path, int64_t bytes, int world) {
  std::mutex mutex;
  std::vector<Error> errors;
  run_ranks(world, [&](comm::Group& group) {
    Status status = check_output(path, bytes, group, Deadline::never());
    const std::lock_guard lock(mutex);
    ASSERT_FALSE(status.ok());
    errors.push_back(status.error());
  });
  if (errors.empty()) return Error(Code::kOk, "");
  for (const Error& error : errors) EXPECT_EQ(error.message(), errors[0].message());
  return errors[0];
}

TEST(CheckOutput, says_what_is_in_the_way) {
  TemporaryFolder output;
  ASSERT_GOOD(write_text_file_atomically(output / "file", "x"));
  EXPECT_EQ(output_error(output / "file", 1, 2).code(), Code::kExists);
  EXPECT_THAT(output_error(output / "file", 1, 2).message(),
              HasSubstr("file': exists and is not a directory"));
  EXPECT_FALSE(output_error(output / "file/below", 1, 1).message().empty());
  const Error full = output_error(output / "new", int64_t{1} << 60, 2);
  EXPECT_EQ(full.code(), Code::kNoSpace);
  EXPECT_THAT(full.message(), HasSubstr("1.00 EiB are needed"));
  // What was made for nothing is gone; a directory of the user's stays.
  EXPECT_FALSE(path_exists(output / "new"));
  EXPECT_EQ(output_error(output / "new/deeper", int64_t{1} << 60, 1).code(), Code::kNoSpace);
  EXPECT_FALSE(path_exists(output / "new"));
  ASSERT_GOOD(make_directories(output / "mine"));
  EXPECT_EQ(output_error(output / "mine", int64_t{1} << 60, 1).code(), Code::kNoSpace);
  EXPECT_TRUE(is_directory(output / "mine"));
}

TEST(CheckOutput, finds_that_it_can_not_write_before_any_step) {
  TemporaryFolder output;
  ASSERT_GOOD(make_directories(output / "out"));
  const auto fault_on = [&](const std::string& what, const std::string& where, int error) {
    set_file_fault([=](std::string_view operation, const std::string& path) {
      return operation == what && path.find(where) != std::string::npos ? error : 0;
    });
  };
  fault_on("create", "nonce", EROFS);
  EXPECT_THAT(output_error(output / "out", 1, 2).message(), HasSubstr("Read-only file system"));
  fault_on("write", "nonce", ENOSPC);
  EXPECT_EQ(output_error(output / "out", 1, 2).code(), Code::kNoSpace);
  set_file_fault([](std::string_view operation, const std::string& path) {  // rank 1 alone can't
    return operation == "create" && path.ends_with("-1") ? EACCES : 0;
  });
  EXPECT_THAT(output_error(output / "out", 1, 2).message(), testing::StartsWith("rank 1: "));
  set_file_fault({});
  run_ranks(2, [&](comm::Group& group) {
    EXPECT_GOOD(check_output(output / "out", 1, group, Deadline::never()));
  });
  EXPECT_TRUE(names_in(output / "out").empty());
}

TEST(CheckOutput, a_rank_that_sees_another_directory_is_named) {
  TemporaryFolder output;
  run_ranks(3, [&](comm::Group& group) {
    const Status status =
        check_output(output / (group.rank() == 2 ? "other" : "same"), 1, group, Deadline::never());
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kMismatch);
    EXPECT_THAT(status.error().message(), testing::StartsWith("rank 2: "));
    EXPECT_THAT(status.error().message(), HasSubstr("not the directory that rank 0 sees"));
  });
}

}  // namespace
}  // namespace amxt::checkpoint
