// Jobs of a few steps over the golden models, for the tests of what a step promises.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "golden_job.h"

namespace amxt::test {

// How a job runs that must give the same numbers all the same.
struct Setting {
  int world = 1;
  std::vector<int> nodes = {};  // node of each rank; empty: all on one
  int threads = 1;
  int64_t wave = 0;
  train::Keep keep = train::Keep::kAuto;
  train::GradientType gradient = train::GradientType::kFloat32;
  int64_t live_parameters = 0;  // 0: as by default
  int steps = 10;
};

inline constexpr int64_t kGlobalBatch = 8;

// Samples of rank `rank` in a global batch, in the order of the job: k = accumulation x world + rank.
inline train::Batch part_of_batch(const Golden& golden, int64_t step, int world, int rank,
                                  int64_t global_batch = kGlobalBatch) {
  const std::vector<int64_t> tokens = golden.integers("adamw.tokens"),
                             labels = golden.integers("adamw.labels");
  const int64_t T = golden.shape("adamw.tokens")[2], rows = static_cast<int64_t>(tokens.size()) / T;
  train::Batch batch;
  batch.resize(global_batch / world, T);
  for (int64_t a = 0; a < global_batch / world; ++a) {
    const int64_t k = a * world + rank;
    const train::Batch one = golden_batch(tokens, labels, T, (step * 3 + k) % rows, 1);
    const auto copy = [&](const auto& from, auto& to) {
      std::copy(from.begin(), from.end(), to.begin() + a * T);
    };
    copy(one.token, batch.token);
    copy(one.target, batch.target);
    copy(one.weight, batch.weight);
    copy(one.document_start, batch.document_start);
    copy(one.position, batch.position);
  }
  batch.tokens = batch.samples * T;
  return batch;
}

// Losses and norms of the steps.
template <typename E>
std::vector<double> curve(const std::string& name, const Setting& setting) {
  const Golden golden(name);
  const int64_t T = golden.shape("adamw.tokens")[2];
  std::vector<double> values;
  ThreadGroups groups(setting.nodes.empty() ? std::vector<int>(static_cast<size_t>(setting.world))
                                            : setting.nodes);
  groups.run([&](comm::Group& group) {
    train::EffectiveOptions options = golden_options(T, 1, kGlobalBatch / setting.world);
    options.wave = setting.wave;
    options.keep = setting.keep;
    options.gradient_type = setting.gradient;
    if (setting.live_parameters > 0) options.live_parameters = setting.live_parameters;
    Job<E> job(golden_path(name), group, options, setting.threads);
    for (int64_t step = 0; step < setting.steps; ++step) {
      const train::StepResult result =
          job.step(part_of_batch(golden, step, setting.world, group.rank()), step + 1, 1e-3);
      if (group.rank() == 0) {
        values.push_back(result.loss);
        values.push_back(result.grad_norm);
      }
    }
  });
  return values;
}

inline std::string hex(const std::vector<double>& values) {
  std::string text;
  char number[40];
  for (double value : values) {
    std::snprintf(number, sizeof number, "%a ", value);
    text += number;
  }
  return text;
}

// All of the state that a step could change, of this rank.
template <typename E>
std::vector<float> state_of(Job<E>& job) {
  std::vector<float> all;
  for (const store::OwnedRange& range : job.layout().ranges(job.parameters().owner(), -1)) {
    const int64_t n =
        range.rows() * job.layout().specs()[static_cast<size_t>(range.tensor)].columns;
    for (store::RowKind kind :
         {store::RowKind::kMaster, store::RowKind::kFirstMoment, store::RowKind::kSecondMoment}) {
      std::vector<float> values(static_cast<size_t>(n));
      job.parameters().read_rows(kind, range, range.row_begin, range.rows(), values.data());
      all.insert(all.end(), values.begin(), values.end());
    }
  }
  return all;
}

// What makes a rank's step fail.
using Spoil = std::function<void(comm::Group&, train::Batch&, train::StepControl::Limits&)>;

// Every rank of these nodes steps once, then tries `times` the step that `spoil` makes fail: each time it finds its state as it was, and
// the next step is as if nothing had happened.
inline void expect_nothing_changes(const std::vector<int>& nodes, int times, const Spoil& spoil,
                                   Code code, const std::string& words) {
  const Golden golden("llama3_1");
  const int64_t T = golden.shape("adamw.tokens")[2];
  const int world = static_cast<int>(nodes.size());
  std::vector<double> after(nodes.size()), undisturbed(nodes.size());
  for (const bool disturbed : {true, false}) {
    ThreadGroups groups(nodes);
    groups.run([&](comm::Group& group) {
      Job<bf16> job(golden_path("llama3_1"), group, golden_options(T, 1, kGlobalBatch / world));
      job.step(part_of_batch(golden, 0, world, group.rank()), 1, 1e-3);
      for (int again = 0; disturbed && again < times; ++again) {
        const std::vector<float> before = state_of(job);
        train::Batch batch = part_of_batch(golden, 1, world, group.rank());
        train::StepControl::Limits limits;
        spoil(group, batch, limits);
        train::StepInput input;
        input.step = input.update = 2;
        input.learning_rate = 1e-3;
        const Result<train::StepResult> result = job.runner().step(batch, input, limits);
        ASSERT_FALSE(result.ok()) << "rank " << group.rank();
        EXPECT_EQ(result.error().code(), code) << result.error().message();
        EXPECT_NE(result.error().message().find(words), std::string::npos)
            << result.error().message();
        EXPECT_EQ(state_of(job), before) << "rank " << group.rank();
      }
      (disturbed ? after : undisturbed)[static_cast<size_t>(group.rank())] =
          job.step(part_of_batch(golden, 1, world, group.rank()), 2, 1e-3).loss;
    });
  }
  EXPECT_EQ(hex(after), hex(undisturbed));
}

}  // namespace amxt::test
