#include "checkpoint/resume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checksum.h"
#include "small_state.h"

namespace amxt::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename E>
Status resume_from(const std::string& path, store::Parameters<E>& parameters, comm::Group& group,
                   Restore what = Restore::kState) {
  AMXT_ASSIGN(const Manifest manifest, open_checkpoint(path, group, Deadline::never()));
  return restore(manifest, what, small_model_config(), parameters, group, {}, Deadline::never(),
                 nullptr);
}

template <typename From, typename To>
void round_trip(int from, int to) {
  SCOPED_TRACE(testing::Message() << "saved by " << from << ", resumed by " << to);
  TemporaryFolder output;
  save_filled<From>(output.path(), 12, from, 99);
  with_parameters<To>(to, [&](comm::Group& group, store::Parameters<To>& parameters) {
    fill_state(parameters, 1);
    ASSERT_GOOD(resume_from(output.path(), parameters, group));
    EXPECT_EQ(differing_elements(parameters, 99), 0);
  });
}

TEST(Resume, any_world_resumes_any_other_bit_for_bit) {
  for (const int from : {1, 2, 3}) {
    for (const int to : {1, 2, 3, 4}) round_trip<bf16, bf16>(from, to);
  }
}

TEST(Resume, worlds_with_ranks_that_own_little_resume_each_other) {
  round_trip<bf16, bf16>(7, 2);
  round_trip<bf16, bf16>(1, 8);
  round_trip<bf16, bf16>(8, 7);
}

TEST(Resume, float32_state_survives_too_and_crosses_compute_types) {
  round_trip<float, float>(2, 3);
  round_trip<bf16, float>(2, 1);
  round_trip<float, bf16>(1, 2);
}

TEST(Resume, weights_alone_leave_the_moments_as_they_are) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 12, 2, 99);
  with_parameters<bf16>(3, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    fill_state(parameters, 1);
    ASSERT_GOOD(resume_from(output.path(), parameters, group, Restore::kWeights));
    EXPECT_EQ(differing_elements(parameters, 99, 1), 0);
    int64_t moments = 0;
    for_each_owned<bf16>(parameters,
                         [&](const store::OwnedRange& range, int kind, int64_t columns) {
                           if (kind > 0) moments += range.rows() * columns;
                         });
    // Masters are those of the checkpoint, moments none of its.
    EXPECT_GE(differing_elements(parameters, 1), moments / 2 - 100);
    EXPECT_GE(differing_elements(parameters, 99), moments - 100);
  });
}

TEST(Resume, the_training_state_comes_back_whole) {
  TemporaryFolder output;
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    fill_state(parameters, 5);
    TrainingState training = some_training(31);
    training.schedule = {"warmup_cosine", 1.0 / 3, 7, 900, 1e-9, false, 0.1, 0.05, 3e-4};
    training.data.seed = -5;
    ASSERT_GOOD(save(output.path(), training, small_model_config(), parameters, {}, group, {},
                     Deadline::never(), nullptr));
  });
  const auto manifest = open_checkpoint(output / "latest");
  ASSERT_GOOD(manifest);
  EXPECT_EQ(manifest->path, output / "step-000031");
  EXPECT_EQ(manifest->world_size, 2);
  const TrainingState& training = manifest->training;
  EXPECT_EQ(training.step, 31);
  EXPECT_EQ(training.total_steps, 1000);
  EXPECT_EQ(training.compute_dtype, "bfloat16");
  EXPECT_EQ(training.schedule.kind, "warmup_cosine");
  EXPECT_EQ(training.schedule.learning_rate, 1.0 / 3);
  EXPECT_EQ(training.schedule.warmup_steps, 7);
  EXPECT_EQ(training.schedule.total_steps, 900);
  EXPECT_EQ(training.schedule.warmup_min_lr, 1e-9);
  EXPECT_FALSE(training.schedule.warmup_log);
  EXPECT_EQ(training.schedule.warmup_min_ratio, 0.1);
  EXPECT_EQ(training.schedule.cosine_min_ratio, 0.05);
  EXPECT_EQ(training.schedule.fixed_rate, 3e-4);
  EXPECT_EQ(training.optimizer.beta2, 0.999);
  EXPECT_EQ(training.optimizer.decay, "all");
  EXPECT_EQ(training.optimizer.updates, 31);
  EXPECT_EQ(training.data.order, "feistel-1");
  EXPECT_EQ(training.data.seed, -5);
  EXPECT_EQ(training.data.position, 31 * 8);
  EXPECT_EQ(training.data.samples, 77);
  EXPECT_EQ(training.data.mode, "pack");
  EXPECT_EQ(training.data.fingerprint, 0xFEDCBA9876543210);
}

// Resuming on `world` ranks fails on all of them with the same error.
void expect_resume_error(const std::string& path, int world, Code code,
                         const std::vector<std::string>& texts,
                         const model::ModelConfig& config = small_model_config()) {
  std::mutex mutex;
  std::set<std::string> messages;
  const store::Layout layout(config, world);
  run_ranks(world, [&](comm::Group& group) {
    auto parameters = store::Parameters<bf16>::create(&layout, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    const auto resume = [&]() -> Status {
      AMXT_ASSIGN(const Manifest manifest, open_checkpoint(path, group, Deadline::never()));
      return restore(manifest, Restore::kState, config, **parameters, group, {}, Deadline::never(),
                     nullptr);
    };
    const Status status = resume();
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), code) << status.error().message();
    for (const std::string& text : texts) EXPECT_THAT(status.error().message(), HasSubstr(text));
    const std::lock_guard lock(mutex);
    messages.insert(status.error().message());
  });
  EXPECT_EQ(messages.size(), 1u) << testing::PrintToString(messages);
}

// Files know nothing of the order in memory.
TEST(Resume, a_state_goes_from_one_order_of_weights_to_the_other_bit_for_bit) {
  using Order = store::Layout::Order;
  for (const bool tied : {false, true}) {
    const model::ModelConfig& config = small_model_config(tied, 96);
    for (const auto& [from, to] : {std::pair(Order::kRowMajor, Order::kBlocked),
                                   {Order::kBlocked, Order::kRowMajor},
                                   {Order::kBlocked, Order::kBlocked}}) {
      TemporaryFolder output;
      with_parameters<bf16>(
          store::Layout(config, 3, from), [&](comm::Group& group, store::Parameters<bf16>& state) {
            fill_state(state, 11);
            EXPECT_EQ(differing_elements(state, 11), 0);
            ASSERT_GOOD(save(output.path(), some_training(5), config, state, small_chunks(), group,
                             {}, Deadline::never(), nullptr));
          });
      with_parameters<bf16>(
          store::Layout(config, 2, to), [&](comm::Group& group, store::Parameters<bf16>& state) {
            const auto manifest = open_checkpoint(output.path(), group, Deadline::never());
            ASSERT_GOOD(manifest);
            ASSERT_GOOD(restore(*manifest, Restore::kState, config, state, group, {},
                                Deadline::never(), nullptr));
            EXPECT_EQ(differing_elements(state, 11), 0);
            EXPECT_GT(differing_elements(state, 12), 0);
          });
    }
  }
}

TEST(Resume, another_models_checkpoint_is_refused_by_the_field_that_differs) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  auto wider = model::parse_config(small_config(false, 96), "config.json");
  ASSERT_GOOD(wider);
  expect_resume_error(output.path(), 2, Code::kMismatch,
                      {"step-000001", "'hidden_size' is 80 there and 96 in the model"}, *wider);
  expect_resume_error(output.path(), 1, Code::kMismatch,
                      {"'tie_word_embeddings' is false there and true in the model"},
                      small_model_config(true));
}

void change_byte(const std::string& path, int64_t from_end) {
  FILE* file = fopen(path.c_str(), "r+b");
  ASSERT_NE(file, nullptr);
  fseek(file, -from_end, SEEK_END);
  const int byte = fgetc(file);
  fseek(file, -from_end, SEEK_END);
  fputc(byte ^ 1, file);
  fclose(file);
}

int64_t size_of(const std::string& path) {
  const auto file = File::open_read(path);
  return *file->size();
}

TEST(Resume, a_changed_byte_is_found_by_whoever_needs_it_and_told_to_all) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 2, 1);
  const std::string name = output / "step-000001/rank-00000-of-00002.safetensors";
  const auto file = io::SafetensorsFile::open(name);
  ASSERT_GOOD(file);
  const io::TensorEntry* tensor = file->find("m/model.layers.0.self_attn.q_proj.weight/0-80");
  ASSERT_NE(tensor, nullptr);
  // Row 79 of 80, in the last of the chunks of 12 rows.
  change_byte(name, file->file_bytes() - tensor->end + 4);
  for (const int world : {1, 2, 3}) {
    expect_resume_error(
        output.path(), world, Code::kCorrupt,
        {"rank-00000-of-00002.safetensors",
         "tensor 'model.layers.0.self_attn.q_proj.weight', first moment, rows 72 to 80"});
  }
}

TEST(Resume, a_changed_table_or_header_is_found) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  const std::string name = output / "step-000001/rank-00000-of-00001.safetensors";
  change_byte(name, 3);  // in the table, which lies last
  expect_resume_error(output.path(), 1, Code::kCorrupt,
                      {"rank-00000-of-00001.safetensors", "table of checksums"});
  change_byte(name, 3);
  const auto whole = File::open_read(name);
  change_byte(name, *whole->size() - 30);  // in the header: the metadata's text
  expect_resume_error(output.path(), 1, Code::kCorrupt, {"rank-00000-of-00001.safetensors"});
}

TEST(Resume, files_of_another_step_in_place_of_ours_are_found) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 2, 1);
  save_filled<bf16>(output.path(), 2, 2, 2);
  ASSERT_GOOD(rename_path(output / "step-000001/rank-00001-of-00002.safetensors",
                          output / "step-000002/rank-00001-of-00002.safetensors"));
  expect_resume_error(output / "step-000002", 3, Code::kCorrupt,
                      {"rank-00001-of-00002.safetensors", "not what was written"});
}

TEST(Resume, swapped_files_are_found) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 2, 1);
  const std::string a = output / "step-000001/rank-00000-of-00002.safetensors",
                    b = output / "step-000001/rank-00001-of-00002.safetensors";
  ASSERT_GOOD(rename_path(a, output / "x"));
  ASSERT_GOOD(rename_path(b, a));
  ASSERT_GOOD(rename_path(output / "x", b));
  expect_resume_error(output / "step-000001", 1, Code::kCorrupt,
                      {"rank-00000-of-00002.safetensors"});
}

TEST(Resume, a_truncated_file_is_named_with_both_sizes) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  const std::string name = output / "step-000001/rank-00000-of-00001.safetensors";
  const int64_t bytes = size_of(name);
  ASSERT_EQ(truncate(name.c_str(), bytes - 1), 0);
  expect_resume_error(
      output / "step-000001", 2, Code::kCorrupt,
      {"rank-00000-of-00001.safetensors",
       std::to_string(bytes - 1) + " bytes, the manifest says " + std::to_string(bytes)});
}

TEST(Resume, a_missing_file_is_named) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 2, 1);
  ASSERT_GOOD(remove_tree(output / "step-000001/rank-00001-of-00002.safetensors"));
  expect_resume_error(output / "step-000001", 1, Code::kNotFound,
                      {"step-000001/rank-00001-of-00002.safetensors"});
}

TEST(Resume, a_path_that_is_not_there_or_no_checkpoint_is_said_to_be_so) {
  TemporaryFolder output;
  expect_resume_error(output / "nothing", 2, Code::kNotFound, {"nothing", "no such directory"});
  expect_resume_error(output.path(), 1, Code::kNotFound, {"no checkpoint there"});
  ASSERT_GOOD(write_text_file_atomically(output / "file", "x"));
  expect_resume_error(output / "file", 1, Code::kFormat, {"file"});
}

TEST(FindLatest, nothing_there_is_no_error) {
  TemporaryFolder output;
  for (const std::string& path : {output.path(), output / "missing"}) {
    const auto found = find_latest(path);
    ASSERT_GOOD(found);
    EXPECT_FALSE(found->manifest.has_value());
    EXPECT_TRUE(found->notes.empty());
  }
}

TEST(FindLatest, latest_is_honoured_where_it_points_to_an_older_one) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  save_filled<bf16>(output.path(), 2, 1, 2);
  ASSERT_GOOD(replace_symlink("step-000001", output / "latest"));
  const auto found = find_latest(output.path());
  ASSERT_GOOD(found);
  EXPECT_EQ(found->manifest->training.step, 1);
  EXPECT_TRUE(found->notes.empty());
}

// transformers #27820: a resume from a directory that a killed save had left incomplete.
TEST(FindLatest, broken_ones_are_passed_over_with_the_reason_each) {
  TemporaryFolder output;
  for (const int64_t step : {1, 2, 3, 4}) save_filled<bf16>(output.path(), step, 1, 1);
  ASSERT_GOOD(remove_tree(output / "step-000004/manifest.json"));
  ASSERT_EQ(truncate((output / "step-000003/rank-00000-of-00001.safetensors").c_str(), 100), 0);
  const auto found = find_latest(output.path());
  ASSERT_GOOD(found);
  ASSERT_TRUE(found->manifest.has_value());
  EXPECT_EQ(found->manifest->training.step, 2);
  EXPECT_EQ(found->manifest->path, output / "step-000002");
  EXPECT_THAT(found->notes, ElementsAre(HasSubstr("latest' names 'step-000004', passed over"),
                                        testing::AllOf(HasSubstr("step-000003 passed over"),
                                                       HasSubstr("100 bytes, the manifest says"))));
}

TEST(FindLatest, a_link_that_dangles_leaves_or_is_missing_leads_to_the_newest) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  save_filled<bf16>(output.path(), 20, 1, 1);
  for (const std::string target : {"step-000021", "../elsewhere", "", "final"}) {
    ASSERT_GOOD(remove_tree(output / "latest"));
    if (!target.empty()) ASSERT_GOOD(replace_symlink(target, output / "latest"));
    const auto found = find_latest(output.path());
    ASSERT_GOOD(found);
    ASSERT_TRUE(found->manifest.has_value()) << target;
    EXPECT_EQ(found->manifest->training.step, 20);
    EXPECT_EQ(found->notes.size(), 1u);
  }
}

TEST(FindLatest, when_all_are_broken_the_error_has_every_reason) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  ASSERT_GOOD(remove_tree(output / "step-000001/manifest.json"));
  const auto manifest = open_checkpoint(output.path());
  ASSERT_FALSE(manifest.ok());
  EXPECT_EQ(manifest.error().code(), Code::kNotFound);
  EXPECT_THAT(manifest.error().message(), HasSubstr("step-000001/manifest.json"));
}

}  // namespace
}  // namespace amxt::checkpoint
