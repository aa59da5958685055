#include "checkpoint/export_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <mutex>

#include "checkpoint/load_model.h"
#include "model/directory.h"
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

// A model directory with tokenizer files and things that are no part of a model.
void write_source(const std::string& path) {
  write_small_model(path, DType::kBF16, false, 5);
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
        "special_tokens_map.json", "generation_config.json", "chat_template.jinja", "README.md",
        "pytorch_model.bin", "optimizer.pt"}) {
    ASSERT_GOOD(write_text_file_atomically(path + "/" + name, std::string("text of ") + name));
  }
}

template <typename E>
Status export_to(const std::string& directory, const std::string& source,
                 store::Parameters<E>& parameters, comm::Group& group,
                 int64_t shard_bytes = 5'000'000'000) {
  ExportOptions options;
  options.shard_bytes = shard_bytes;
  return export_model(directory, source, small_model_config(), parameters, group, {},
                      Deadline::never(), nullptr, options);
}

template <typename E>
void expect_round_trip(int world, bool tied, int64_t shard_bytes, size_t shards, int hidden = 80) {
  SCOPED_TRACE(testing::Message() << "world " << world << ", " << sizeof(E) << " bytes, tied "
                                  << tied << ", hidden " << hidden);
  TemporaryFolder folder;
  ASSERT_GOOD(make_directories(folder / "source"));
  const model::ModelConfig& config = small_model_config(tied, hidden);
  const auto order = store::Layout::order_for(config, sizeof(E) == 2);
  const store::Layout layout(config, world, order);
  std::vector<E> weights(static_cast<size_t>(layout.shared_elements()));
  run_ranks(world, [&](comm::Group& group) {
    auto parameters = store::Parameters<E>::create(&layout, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    fill_state(**parameters, 3);
    ASSERT_GOOD(group.barrier(Deadline::never()));
    ExportOptions options;
    options.shard_bytes = shard_bytes;
    ASSERT_GOOD(export_model(folder / "final", folder / "source", config, **parameters, group, {},
                             Deadline::never(), nullptr, options));
    if (group.rank() == 0)
      std::copy_n((*parameters)->tensor(0) - layout.shared_offset(0), weights.size(),
                  weights.begin());
    ASSERT_GOOD(group.barrier(Deadline::never()));
  });
  const auto model = model::ModelDirectory::open(folder / "final");
  ASSERT_GOOD(model);
  EXPECT_EQ(model->files().size(), shards);
  EXPECT_EQ(model->specs().size(), layout.specs().size());
  for (const io::SafetensorsFile& file : model->files()) {
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(file.find("lm_head.weight") != nullptr && tied, false);
  }
  const auto text = read_text_file(folder / "final/config.json", 1 << 20);
  EXPECT_THAT(*text,
              HasSubstr(sizeof(E) == 2 ? "\"dtype\": \"bfloat16\"" : "\"dtype\": \"float32\""));
  // Loaded again by another number of ranks, each compute weight has its bits.
  const store::Layout again(config, 2, order);
  run_ranks(2, [&](comm::Group& group) {
    auto parameters = store::Parameters<E>::create(&again, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    ASSERT_GOOD(load_model(*model, **parameters, group, {}, Deadline::never(), nullptr));
    for (size_t tensor = 0; tensor < layout.specs().size(); ++tensor) {
      const auto index = static_cast<int64_t>(tensor);
      EXPECT_EQ(
          std::memcmp((*parameters)->tensor(index), weights.data() + layout.shared_offset(index),
                      static_cast<size_t>(layout.stored_elements(index, layout.spec(index).rows)) *
                          sizeof(E)),
          0)
          << layout.specs()[tensor].name;
    }
    ASSERT_GOOD(group.barrier(Deadline::never()));
  });
}

TEST(ExportModel, what_is_loaded_again_has_the_same_bits) {
  expect_round_trip<bf16>(1, false, 5'000'000'000, 1);
  expect_round_trip<bf16>(3, true, 5'000'000'000, 1);
  expect_round_trip<bf16>(2, false, 150'000, 3);
  expect_round_trip<float>(4, true, 5'000'000'000, 1);
  expect_round_trip<bf16>(3, true, 5'000'000'000, 1, 96);
  expect_round_trip<bf16>(1, false, 150'000, 3, 96);
  expect_round_trip<bf16>(7, false, 1, small_model_config().layers * 9 + 3);
}

TEST(ExportModel, companions_come_along_and_nothing_else) {
  TemporaryFolder folder;
  write_source(folder / "source");
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    fill_state(parameters, 3);
    ASSERT_GOOD(export_to(folder / "new/final/", folder / "source", parameters, group));
  });
  EXPECT_THAT(names_in(folder / "new"), ElementsAre("final"));
  EXPECT_THAT(
      names_in(folder / "new/final"),
      ElementsAre("chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
                  "model.safetensors", "special_tokens_map.json", "tokenizer.json",
                  "tokenizer.model", "tokenizer_config.json", "vocab.json"));
  EXPECT_EQ(*read_text_file(folder / "new/final/tokenizer.model", 100), "text of tokenizer.model");
}

TEST(ExportModel, an_exported_model_is_replaced_whole) {
  TemporaryFolder folder;
  write_source(folder / "source");
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    fill_state(parameters, 3);
    ASSERT_GOOD(export_to(folder / "final", folder / "source", parameters, group, 100'000));
    ASSERT_GOOD(export_to(folder / "final", "", parameters, group));
  });
  EXPECT_THAT(names_in(folder / "final"), ElementsAre("config.json", "model.safetensors"));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("final", "source"));
}

TEST(ExportModel, an_exported_model_is_replaced_where_names_can_not_be_exchanged) {
  TemporaryFolder folder;
  write_source(folder / "source");
  with_parameters<bf16>(1, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    fill_state(parameters, 3);
    ASSERT_GOOD(export_to(folder / "final", folder / "source", parameters, group));
    set_file_fault([](std::string_view operation, const std::string&) {
      return operation == "exchange" ? EINVAL : 0;
    });
    ASSERT_GOOD(export_to(folder / "final", "", parameters, group));
    set_file_fault({});
  });
  EXPECT_THAT(names_in(folder / "final"), ElementsAre("config.json", "model.safetensors"));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("final", "source"));
}

TEST(ExportModel, something_that_is_no_exported_model_is_never_replaced) {
  TemporaryFolder folder;
  write_source(folder / "source");
  ASSERT_GOOD(make_directories(folder / "notes"));
  ASSERT_GOOD(write_text_file_atomically(folder / "notes/today.txt", "x"));
  ASSERT_GOOD(write_text_file_atomically(folder / "file", "x"));
  ASSERT_GOOD(replace_symlink("source", folder / "link"));
  ASSERT_GOOD(make_directories(folder / "empty"));
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    fill_state(parameters, 3);
    for (const char* name : {"source", "notes", "file", "link"}) {
      const Status status = export_to(folder / name, folder / "source", parameters, group);
      ASSERT_FALSE(status.ok()) << name;
      EXPECT_EQ(status.error().code(), Code::kExists);
      EXPECT_THAT(status.error().message(), HasSubstr("is not an exported model"));
    }
    EXPECT_GOOD(export_to(folder / "empty", folder / "source", parameters, group));
  });
  EXPECT_THAT(names_in(folder.path()), ElementsAre("empty", "file", "link", "notes", "source"));
  EXPECT_EQ(*read_text_file(folder / "notes/today.txt", 10), "x");
  EXPECT_GOOD(model::ModelDirectory::open(folder / "source"));
}

struct Fault {
  const char* operation;
  const char* path;
  int error;
};
void PrintTo(const Fault& fault, std::ostream* out) {
  *out << fault.operation << " " << fault.path;
}

class ExportFault : public testing::TestWithParam<Fault> {};

TEST_P(ExportFault, leaves_the_model_that_was_there) {
  const Fault fault = GetParam();
  for (const int world : {1, 2}) {
    SCOPED_TRACE(world);
    TemporaryFolder folder;
    write_source(folder / "source");
    std::mutex mutex;
    std::set<std::string> messages;
    with_parameters<bf16>(world, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
      fill_state(parameters, 3);
      ASSERT_GOOD(export_to(folder / "final", folder / "source", parameters, group));
      if (group.rank() == 0) {
        set_file_fault([&](std::string_view operation, const std::string& path) {
          return operation == fault.operation && path.find(fault.path) != std::string::npos
                     ? fault.error
                     : 0;
        });
      }
      ASSERT_GOOD(group.barrier(Deadline::never()));
      const Status status = export_to(folder / "final", "", parameters, group, 100'000);
      ASSERT_GOOD(group.barrier(Deadline::never()));
      if (group.rank() == 0) set_file_fault({});
      ASSERT_FALSE(status.ok());
      const std::lock_guard lock(mutex);
      messages.insert(status.error().message());
    });
    EXPECT_EQ(messages.size(), 1u) << testing::PrintToString(messages);
    EXPECT_THAT(names_in(folder.path()), ElementsAre("final", "source"));
    EXPECT_TRUE(path_exists(folder / "final/tokenizer.json"));
    EXPECT_GOOD(model::ModelDirectory::open(folder / "final"));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Each, ExportFault,
    testing::Values(Fault{"create", ".tmp-export", EROFS}, Fault{"create", "config.json", EIO},
                    Fault{"sync", "config.json", EIO}, Fault{"write", "index.json", ENOSPC},
                    Fault{"reserve", "model-00001", ENOSPC}, Fault{"write", "model-00002", EIO},
                    Fault{"sync", "model-00001", EIO}, Fault{"sync_directory", ".tmp-export", EIO},
                    Fault{"exchange", "final", EIO}),
    [](const testing::TestParamInfo<Fault>& of) {
      std::string name = std::string(of.param.operation) + "_" + of.param.path;
      std::replace_if(
          name.begin(), name.end(),
          [](char c) { return isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
      return name;
    });

TEST(ExportModel, a_cancel_leaves_nothing_behind) {
  TemporaryFolder folder;
  ASSERT_GOOD(make_directories(folder / "out"));
  with_parameters<bf16>(2, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    const std::atomic<bool> cancel{group.rank() == 1};
    const Status status = export_model(folder / "out/final", "", small_model_config(), parameters,
                                       group, {}, Deadline::never(), &cancel);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Code::kCancelled);
  });
  EXPECT_TRUE(names_in(folder / "out").empty());
}

TEST(ExportModel, files_are_synced_before_the_name_appears) {
  TemporaryFolder folder;
  ASSERT_GOOD(make_directories(folder / "out"));
  std::mutex mutex;
  std::vector<std::string> seen;
  with_parameters<bf16>(1, [&](comm::Group& group, store::Parameters<bf16>& parameters) {
    set_file_fault([&](std::string_view operation, const std::string& path) {
      const std::lock_guard lock(mutex);
      if (operation == "sync" || operation == "sync_directory" || operation == "rename")
        seen.push_back(std::string(operation) + " " + base_name(path).substr(0, 16));
      return 0;
    });
    ASSERT_GOOD(export_to(folder / "out/final", "", parameters, group));
    set_file_fault({});
  });
  EXPECT_THAT(seen,
              ElementsAre("sync config.json", "sync model.safetensor", "sync model.safetensor",
                          "sync_directory .tmp-export-fina", "rename final", "sync_directory out"));
}

}  // namespace
}  // namespace amxt::checkpoint
