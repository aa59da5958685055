#include "checkpoint/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "small_state.h"

namespace amxt::checkpoint {
namespace {

using testing::HasSubstr;

Status verify_all(const std::string& path) { return verify(path, {}, Deadline::never(), nullptr); }

void change_byte_at(const std::string& path, int64_t offset) {
  FILE* file = fopen(path.c_str(), "r+b");
  ASSERT_NE(file, nullptr);
  fseek(file, offset, SEEK_SET);
  const int byte = fgetc(file);
  fseek(file, offset, SEEK_SET);
  fputc(byte ^ 0x10, file);
  fclose(file);
}

TEST(Verify, a_byte_changed_anywhere_is_found) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 2, 1);
  const std::string name = output / "step-000001/rank-00001-of-00002.safetensors";
  const auto file = io::SafetensorsFile::open(name);
  ASSERT_GOOD(file);
  const int64_t data = file->tensors().front().begin;
  std::vector<int64_t> offsets{
      0, 1, 7, 8, 9, data - 1, data, data + 1, file->file_bytes() - 9, file->file_bytes() - 1};
  for (int64_t offset = 20; offset < data; offset += 501) offsets.push_back(offset);
  for (int64_t offset = data; offset < file->file_bytes(); offset += 40009)
    offsets.push_back(offset);
  for (const int64_t offset : offsets) {
    change_byte_at(name, offset);
    const Status status = verify_all(output.path());
    EXPECT_FALSE(status.ok()) << "offset " << offset;
    if (!status.ok()) {
      EXPECT_THAT(status.error().message(), HasSubstr("rank-00001-of-00002.safetensors"))
          << "offset " << offset;
    }
    change_byte_at(name, offset);
  }
  EXPECT_GOOD(verify_all(output.path()));
}

TEST(Verify, names_file_tensor_and_rows_that_come_first) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  const std::string name = output / "step-000001/rank-00000-of-00001.safetensors";
  const auto file = io::SafetensorsFile::open(name);
  ASSERT_GOOD(file);
  const io::TensorEntry* embedding = file->find("v/model.embed_tokens.weight/0-301");
  ASSERT_NE(embedding, nullptr);
  change_byte_at(name, embedding->begin + 25 * 80 * 4);  // row 25: chunks are of 12 rows
  change_byte_at(name, embedding->end - 1);
  const Status status = verify_all(output / "step-000001");
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Code::kCorrupt);
  EXPECT_EQ(status.error().message(),
            "'" + name +
                "': tensor 'model.embed_tokens.weight', second moment, rows 24 to 36: not what was "
                "written: the checksum differs");
}

TEST(Verify, reads_every_byte_and_reports_it) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 3, 1);
  int64_t done = 0, total = 0, items = 0;
  std::vector<std::string> ended;
  const Progress progress = [&](const ProgressReport& report) -> Status {
    done = report.done;
    total = report.total;
    items = report.items;
    if (report.item_done == report.item_total) ended.emplace_back(report.name);
    return {};
  };
  ASSERT_GOOD(verify(output.path(), progress, Deadline::never(), nullptr));
  EXPECT_EQ(items, 3);
  EXPECT_EQ(done, total);
  EXPECT_EQ(total, model::parameter_count(small_model_config()) * 12);
  ended.erase(std::unique(ended.begin(), ended.end()), ended.end());
  EXPECT_EQ(ended.size(), 3u);
}

TEST(Verify, a_cancel_and_a_deadline_are_told_apart) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 1, 1, 1);
  const std::atomic<bool> cancel{true};
  EXPECT_EQ(verify(output.path(), {}, Deadline::never(), &cancel).error().code(), Code::kCancelled);
  EXPECT_EQ(verify(output.path(), {}, Deadline::after(0), nullptr).error().code(), Code::kTimeout);
}

TEST(CheckpointInfo, has_the_fields_of_the_header) {
  TemporaryFolder output;
  save_filled<bf16>(output.path(), 5, 2, 1);
  const auto text = checkpoint_info(output.path());
  ASSERT_GOOD(text);
  const auto json = parse_json(*text);
  ASSERT_GOOD(json);
  EXPECT_EQ((*json)["path"], output / "step-000005");
  EXPECT_EQ((*json)["version"], 1);
  EXPECT_EQ((*json)["step"], 5);
  EXPECT_EQ((*json)["total_steps"], 1000);
  EXPECT_EQ((*json)["world_size"], 2);
  EXPECT_EQ((*json)["position"], 40);
  EXPECT_EQ((*json)["parameters"], model::parameter_count(small_model_config()));
  EXPECT_EQ((*json)["config_hash"].get<std::string>().size(), 32u);
  ASSERT_EQ((*json)["files"].size(), 2u);
  EXPECT_EQ((*json)["files"][1]["path"], "rank-00001-of-00002.safetensors");
  EXPECT_EQ(
      (*json)["files"][0]["bytes"].get<int64_t>() + (*json)["files"][1]["bytes"].get<int64_t>(),
      (*json)["bytes"].get<int64_t>());
}

}  // namespace
}  // namespace amxt::checkpoint
