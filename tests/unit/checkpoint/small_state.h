// Parameters of a small model with a state of which every bit is known, whoever owns it.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/save.h"
#include "model/config.h"
#include "small_model.h"
#include "store/parameters.h"
#include "thread_group.h"

namespace amxt::checkpoint {

inline const model::ModelConfig& small_model_config(bool tied = false, int hidden = 80) {
  static const auto make = [](bool with_tie, int of) {
    auto config = model::parse_config(small_config(with_tie, of), "config.json");
    EXPECT_GOOD(config);
    return std::move(*config);
  };
  static const model::ModelConfig untied = make(false, 80), with_tie = make(true, 80),
                                  even_untied = make(false, 96), even_with_tie = make(true, 96);
  if (hidden == 96) return tied ? even_with_tie : even_untied;
  return tied ? with_tie : untied;
}

// Any bits but those of NaN: what a master or a moment of (salt, kind, tensor, element) is.
inline float state_value(uint64_t salt, int kind, int64_t tensor, int64_t element) {
  uint64_t z = salt * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(kind) * 0xD1B54A32D192ED03 +
               static_cast<uint64_t>(tensor) * 0x2545F4914F6CDD1D + static_cast<uint64_t>(element);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  auto bits = static_cast<uint32_t>(z ^ (z >> 31));
  if (element % 5 == 0) bits |= 0x8000;  // a low half that rounds up
  if ((bits & 0x7F800000) == 0x7F800000) bits &= 0xBFFFFFFF;
  return std::bit_cast<float>(bits);
}

constexpr store::RowKind kStateKinds[] = {store::RowKind::kMaster, store::RowKind::kFirstMoment,
                                          store::RowKind::kSecondMoment};

// Calls body(range, values of the range, kind).
template <typename E>
void for_each_owned(
    const store::Parameters<E>& parameters,
    const std::function<void(const store::OwnedRange&, int kind, int64_t columns)>& body) {
  const store::Layout& layout = parameters.layout();
  for (const store::OwnedRange& range : layout.ranges(parameters.owner(), -1)) {
    for (int kind = 0; kind < 3; ++kind)
      body(range, kind, layout.specs()[static_cast<size_t>(range.tensor)].columns);
  }
}

template <typename E>
void fill_state(store::Parameters<E>& parameters, uint64_t salt) {
  for_each_owned<E>(parameters, [&](const store::OwnedRange& range, int kind, int64_t columns) {
    std::vector<float> values(static_cast<size_t>(range.rows() * columns));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = state_value(salt, kind, range.tensor,
                              range.row_begin * columns + static_cast<int64_t>(i));
    parameters.write_rows(kStateKinds[kind], range, range.row_begin, range.rows(), values.data());
  });
}

// Elements of this rank's state that are not what fill_state() gave them; `kinds` of them are looked at.
template <typename E>
int64_t differing_elements(const store::Parameters<E>& parameters, uint64_t salt, int kinds = 3) {
  int64_t differing = 0;
  for_each_owned<E>(parameters, [&](const store::OwnedRange& range, int kind, int64_t columns) {
    if (kind >= kinds) return;
    std::vector<float> values(static_cast<size_t>(range.rows() * columns));
    parameters.read_rows(kStateKinds[kind], range, range.row_begin, range.rows(), values.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const float expected = state_value(salt, kind, range.tensor,
                                         range.row_begin * columns + static_cast<int64_t>(i));
      differing += std::bit_cast<uint32_t>(values[i]) != std::bit_cast<uint32_t>(expected);
    }
  });
  return differing;
}

inline TrainingState some_training(int64_t step) {
  TrainingState training;
  training.step = step;
  training.total_steps = 1000;
  training.compute_dtype = "bfloat16";
  training.schedule = {"linear", 2e-5, 10, 1000, 0, true, 0, 0, std::nullopt};
  training.optimizer = {"adamw", 0.9, 0.999, 1e-8, 0.01, "all", 1.0, "tokens", step};
  training.data = {"feistel-1", 42, step * 8, 77, 512, "pack", 0xFEDCBA9876543210, 8};
  return training;
}

// body(group, parameters) on a thread for each rank.
template <typename E>
void with_parameters(const store::Layout& layout,
                     const std::function<void(comm::Group&, store::Parameters<E>&)>& body) {
  run_ranks(layout.owners(), [&](comm::Group& group) {
    auto parameters = store::Parameters<E>::create(&layout, &group, {}, Deadline::never());
    ASSERT_GOOD(parameters);
    body(group, **parameters);
    ASSERT_GOOD(group.barrier(Deadline::never()));  // the weights are shared
  });
}
// The layout is of the small model.
template <typename E>
void with_parameters(int world,
                     const std::function<void(comm::Group&, store::Parameters<E>&)>& body,
                     bool tied = false) {
  with_parameters<E>(store::Layout(small_model_config(tied), world), body);
}

// Chunks of a dozen rows, so that parts have several.
inline SaveOptions small_chunks(int64_t keep = 0) {
  SaveOptions options;
  options.keep = keep;
  options.chunk_bytes = 4096;
  return options;
}

template <typename E>
Result<Saved> save_step(const std::string& output, int64_t step, store::Parameters<E>& parameters,
                        comm::Group& group, int64_t keep = 0) {
  return save(output, some_training(step), small_model_config(), parameters, small_chunks(keep),
              group, {}, Deadline::never(), nullptr);
}

// Saves a checkpoint of a state filled with `salt` by `world` ranks.
template <typename E>
void save_filled(const std::string& output, int64_t step, int world, uint64_t salt,
                 int64_t keep = 0) {
  with_parameters<E>(world, [&](comm::Group& group, store::Parameters<E>& parameters) {
    fill_state(parameters, salt);
    ASSERT_GOOD(save_step(output, step, parameters, group, keep));
  });
}

}  // namespace amxt::checkpoint
