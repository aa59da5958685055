#include "checkpoint/load_model.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <mutex>
#include <set>

#include "base/dtype.h"
#include "kernels/optimizer.h"
#include "model/random_weights.h"
#include "small_model.h"
#include "thread_group.h"

namespace amxt::checkpoint {
namespace {

// The fp32 masters of all ranks together, gathered through the owners.
template <typename E>
void expect_masters(const store::Parameters<E>& parameters, const Values& expected) {
  const store::Layout& layout = parameters.layout();
  for (const store::OwnedRange& range : layout.ranges(parameters.owner(), -1)) {
    const model::TensorSpec& spec = layout.specs()[static_cast<size_t>(range.tensor)];
    std::vector<float> rows(static_cast<size_t>(range.rows() * spec.columns));
    parameters.read_rows(store::RowKind::kMaster, range, range.row_begin, range.rows(),
                         rows.data());
    const std::vector<float>& all = expected.at(spec.name);
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i], all[static_cast<size_t>(range.row_begin * spec.columns) + i])
          << spec.name << " element " << i << " of the range";
    }
  }
}

template <typename E>
void load_and_compare(DType dtype, int world, bool tied, bool sharded, int hidden = 80) {
  SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " to " << sizeof(E) << " bytes, world "
                                  << world << ", hidden " << hidden);
  TemporaryFolder folder;
  const Values expected = write_small_model(folder.path(), dtype, tied,
                                            7u + static_cast<unsigned>(world), sharded, hidden);
  const auto model = model::ModelDirectory::open(folder.path());
  ASSERT_GOOD(model);
  const store::Layout layout(model->config(), world,
                             store::Layout::order_for(model->config(), sizeof(E) == 2));
  EXPECT_EQ(layout.order() == store::Layout::Order::kBlocked, sizeof(E) == 2 && hidden == 96);
  run_ranks(world, [&](comm::Group& group) {
    typename store::Parameters<E>::Options options;
    auto parameters = store::Parameters<E>::create(&layout, &group, options, Deadline::never());
    ASSERT_GOOD(parameters);
    ASSERT_GOOD(load_model(*model, **parameters, group, {}, Deadline::never(), nullptr));
    expect_masters(**parameters, expected);
    // The compute weights of all ranks' rows can be read here: each is its master, rounded half up in magnitude.
    for (size_t tensor = 0; tensor < layout.specs().size(); ++tensor) {
      const std::vector<float>& values = expected.at(layout.specs()[tensor].name);
      const auto index = static_cast<int64_t>(tensor);
      const E* const weights = (*parameters)->tensor(index);
      const int64_t columns = layout.spec(index).columns;
      for (size_t i = 0; i < values.size(); ++i) {
        const auto element = static_cast<int64_t>(i);
        const E weight =
            weights[layout.locate(index, element / columns, element % columns).shared_offset -
                    layout.shared_offset(index)];
        if constexpr (sizeof(E) == 4) {
          ASSERT_EQ(weight, values[i]);
        } else {
          bf16 high{};
          uint16_t low = 0;
          kernels::split_master(values[i], &high, &low);
          ASSERT_EQ(weight.bits, high.bits) << layout.specs()[tensor].name << " element " << i;
        }
      }
    }
    ASSERT_GOOD(group.barrier(Deadline::never()));
  });
}

TEST(LoadModel, every_source_type_arrives_in_bf16_with_its_low_bits) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int world : {1, 2, 3}) {
      for (const int hidden : {80, 96})
        load_and_compare<bf16>(dtype, world, world != 2, world == 2, hidden);
    }
  }
}

TEST(LoadModel, every_source_type_arrives_in_float) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const int world : {1, 4}) load_and_compare<float>(dtype, world, world == 1, world == 4);
  }
}

TEST(LoadModel, more_ranks_than_rows_leave_some_with_nothing_and_lose_nothing) {
  load_and_compare<bf16>(DType::kBF16, 7, false, true);
}

TEST(LoadModel, forward_only_needs_no_low_bits) {
  TemporaryFolder folder;
  const Values expected = write_small_model(folder.path(), DType::kF32, true, 3);
  const auto model = model::ModelDirectory::open(folder.path());
  ASSERT_GOOD(model);
  const store::Layout layout(model->config(), 1);
  run_ranks(1, [&](comm::Group& group) {
    store::Parameters<bf16>::Options options;
    options.optimizer = false;
    auto parameters = store::Parameters<bf16>::create(&layout, &group, options, Deadline::never());
    ASSERT_GOOD(parameters);
    ASSERT_GOOD(load_model(*model, **parameters, group, {}, Deadline::never(), nullptr));
    const float first = expected.at(layout.specs()[0].name)[5];
    bf16 high{};
    uint16_t low = 0;
    kernels::split_master(first, &high, &low);
    EXPECT_EQ((*parameters)->tensor(0)[5].bits, high.bits);
  });
}

TEST(LoadModel, low_bits_of_an_earlier_load_do_not_stay) {
  TemporaryFolder folder;
  write_small_model(folder / "f32", DType::kF32, true, 3);
  const Values expected = write_small_model(folder / "bf16", DType::kBF16, true, 4);
  const auto first = model::ModelDirectory::open(folder / "f32"),
             second = model::ModelDirectory::open(folder / "bf16");
  ASSERT_GOOD(first);
  ASSERT_GOOD(second);
  const store::Layout layout(first->config(), 1);
  run_ranks(1, [&](comm::Group& group) {
    auto parameters = store::Parameters<bf16>::create(&layout, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    ASSERT_GOOD(load_model(*first, **parameters, group, {}, Deadline::never(), nullptr));
    ASSERT_GOOD(load_model(*second, **parameters, group, {}, Deadline::never(), nullptr));
    expect_masters(**parameters, expected);
  });
}

TEST(LoadModel, progress_names_each_shard_from_beginning_to_end_and_counts_each_byte_once) {
  TemporaryFolder folder;
  write_small_model(folder.path(), DType::kBF16, false, 3, true);
  const auto model = model::ModelDirectory::open(folder.path());
  ASSERT_GOOD(model);
  const int world = 3;
  const store::Layout layout(model->config(), world);
  int64_t tensor_bytes = 0;
  for (const model::TensorSpec& spec : layout.specs()) tensor_bytes += spec.elements() * 2;
  std::atomic<int64_t> read{0};
  run_ranks(world, [&](comm::Group& group) {
    auto parameters = store::Parameters<bf16>::create(&layout, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    std::vector<ProgressReport> reports;
    std::set<std::string> begun, ended;
    const Progress progress = [&](const ProgressReport& report) -> Status {
      EXPECT_EQ(report.items, 2);
      if (report.item_done == 0 || begun.count(std::string(report.name)) == 0)
        begun.insert(std::string(report.name));
      if (report.item_done == report.item_total) ended.insert(std::string(report.name));
      if (!reports.empty()) {
        EXPECT_GE(report.done, reports.back().done);
      }
      reports.push_back(report);
      return {};
    };
    ASSERT_GOOD(load_model(*model, **parameters, group, progress, Deadline::never(), nullptr));
    const std::set<std::string> both{"model-00001-of-00002.safetensors",
                                     "model-00002-of-00002.safetensors"};
    EXPECT_EQ(begun, both);
    EXPECT_EQ(ended, both);
    EXPECT_EQ(reports.back().done, reports.back().total);
    read += reports.back().done;
  });
  EXPECT_EQ(read.load(), tensor_bytes);
}

// An error of one rank is the same error on all.
void expect_same_error(int world,
                       const std::function<Status(comm::Group&, const model::ModelDirectory&,
                                                  store::Parameters<bf16>&)>& load,
                       Code code, const std::string& text) {
  TemporaryFolder folder;
  write_small_model(folder.path(), DType::kF32, false, 3, true);
  const auto model = model::ModelDirectory::open(folder.path());
  ASSERT_GOOD(model);
  const store::Layout layout(model->config(), world);
  run_ranks(world, [&](comm::Group& group) {
    auto parameters = store::Parameters<bf16>::create(&layout, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    const Status status = load(group, *model, **parameters);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), code);
    EXPECT_EQ(status.error().message().find(text), 0u) << status.error().message();
  });
}

TEST(LoadModel, a_refused_progress_ends_the_load_on_all_ranks) {
  expect_same_error(
      3,
      [](comm::Group& group, const model::ModelDirectory& model,
         store::Parameters<bf16>& parameters) {
        const Progress refuse = [](const ProgressReport&) -> Status {
          return Error(Code::kUser, "the host said no");
        };
        return load_model(model, parameters, group, group.rank() == 1 ? refuse : Progress(),
                          Deadline::never(), nullptr);
      },
      Code::kUser, "rank 1: the host said no");
}

TEST(LoadModel, a_cancel_on_one_rank_ends_the_load_on_all) {
  expect_same_error(
      2,
      [](comm::Group& group, const model::ModelDirectory& model,
         store::Parameters<bf16>& parameters) {
        const std::atomic<bool> cancel{group.rank() == 1};
        return load_model(model, parameters, group, {}, Deadline::never(), &cancel);
      },
      Code::kCancelled, "rank 1: loading the model: cancelled");
}

TEST(LoadModel, an_unreadable_shard_is_named_with_its_tensor_on_all_ranks) {
  expect_same_error(
      2,
      [&](comm::Group& group, const model::ModelDirectory& model,
          store::Parameters<bf16>& parameters) {
        if (group.rank() == 0)
          set_file_fault([&](std::string_view operation, const std::string& path) {
            return operation == "read" && path.find("00002-of") != std::string::npos ? EIO : 0;
          });
        (void)group.barrier(Deadline::never());
        Status status = load_model(model, parameters, group, {}, Deadline::never(), nullptr);
        EXPECT_NE(status.error().message().find("model-00002-of-00002.safetensors"),
                  std::string::npos)
            << status.error().message();
        EXPECT_NE(status.error().message().find("tensor 'model."), std::string::npos)
            << status.error().message();
        return status;
      },
      Code::kIo, "rank 0: ");
}

TEST(LoadModel, another_model_is_refused_by_the_tensor_that_differs) {
  expect_same_error(
      1,
      [](comm::Group& group, const model::ModelDirectory&, store::Parameters<bf16>& parameters) {
        TemporaryFolder other;
        write_small_model(other.path(), DType::kF32, true, 3);
        const auto tied = model::ModelDirectory::open(other.path());
        EXPECT_GOOD(tied);
        Status status = load_model(*tied, parameters, group, {}, Deadline::never(), nullptr);
        EXPECT_NE(status.error().message().find("tensor 'lm_head.weight' differs"),
                  std::string::npos)
            << status.error().message();
        return status;
      },
      Code::kMismatch, "");
}

// A number of /proc/self/`file`.
int64_t process_number(const char* file, const std::string& key) {
  std::ifstream in(std::string("/proc/self/") + file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(key)) return std::stoll(line.substr(key.size()));
  }
  return -1;
}

void reset_peak() { std::ofstream("/proc/self/clear_refs") << 5; }

// Tensors of many blocks: each byte is read once over all ranks, and nothing of the model's size is held beside the state.
TEST(LoadModel, a_large_model_is_read_once_and_in_blocks) {
  TemporaryFolder folder;
  model::RandomModelOptions options;
  options.config_text =
      R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 20000, "hidden_size": 1024,)"
      R"( "intermediate_size": 1056, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16,)"
      R"( "max_position_embeddings": 128, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": true})";
  options.config_name = "config.json";
  options.directory = folder / "model";
  options.shard_bytes = 30'000'000;
  ASSERT_GOOD(model::write_random_model(options, [](const model::WriteProgress&) { return true; }));
  const auto model = model::ModelDirectory::open(folder / "model");
  ASSERT_GOOD(model);
  const store::Layout layout(model->config(), 3);
  const int64_t read_before = process_number("io", "rchar:");
  reset_peak();
  [[maybe_unused]] const int64_t peak_before = process_number("status", "VmHWM:");
  run_ranks(3, [&](comm::Group& group) {
    auto parameters = store::Parameters<float>::create(&layout, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    ASSERT_GOOD(load_model(*model, **parameters, group, {}, Deadline::never(), nullptr));
    if (group.rank() == 0) {
      const int64_t read = process_number("io", "rchar:") - read_before;
      EXPECT_LE(read, model->total_bytes() + model->total_bytes() / 100);
      EXPECT_GE(read, model->total_bytes() - model->total_bytes() / 100);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
      // The weights as fp32, mapped by three ranks of one process; four blocks for each rank; and some for the process itself.
      const int64_t peak = (process_number("status", "VmHWM:") - peak_before) * 1024;
      EXPECT_LE(peak, 3 * layout.shared_elements() * 4 + 3 * (16 << 20) + (8 << 20));
#endif
      for (size_t tensor = 0; tensor < layout.specs().size(); ++tensor) {
        const model::TensorSpec& spec = layout.specs()[tensor];
        std::vector<uint16_t> expected(static_cast<size_t>(spec.elements()));
        model::random_elements(model->config(), spec, options.seed, 0, spec.elements(),
                               expected.data());
        const float* weights = (*parameters)->tensor(static_cast<int64_t>(tensor));
        for (size_t i = 0; i < expected.size(); ++i)
          ASSERT_EQ(weights[i], to_float(bf16{expected[i]})) << spec.name << " element " << i;
      }
    }
    ASSERT_GOOD(group.barrier(Deadline::never()));
  });
}

}  // namespace
}  // namespace amxt::checkpoint
