// Options that several commands share, and what they mean to the library.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "session.h"

namespace CLI {
class App;
class Validator;
}  // namespace CLI

namespace command {

// What an option's value may be. They go to transform(), and each says what it wants of "OPTION VALUE".
inline constexpr int64_t kMostSteps = int64_t{1} << 53;
CLI::Validator whole(int64_t least, int64_t most = INT64_MAX);
CLI::Validator real(const char* range, bool (*allowed)(double));
CLI::Validator not_negative();
CLI::Validator one_of(std::vector<std::string> names);
// Bytes, 1 or more, such as 12GiB.
CLI::Validator size_in_bytes();

void add_common_options(CLI::App& app, CommonOptions& options);
// Of commands that join the group of a launcher.
void add_group_options(CLI::App& app, CommonOptions& options);

// Data files and how they are cut.
struct DataOptions {
  std::vector<std::string> paths;
  std::optional<std::string> mode;
  std::optional<int64_t> separator;
  std::optional<std::string> bin_dtype;
};
void add_data_options(CLI::App& app, DataOptions& options);
// `sequence_length`: AMXT_UNSET_I64 for the default.
Dataset open_dataset(const Session& session, amxt_model* model, const DataOptions& options,
                     const std::vector<std::string>& paths, int64_t sequence_length);

// How a step is made. Values that are not given stay unset, so that the library knows which were.
struct TrainerFlags {
  std::optional<std::string> ds_config;
  std::optional<int64_t> sequence_length, micro_batch, accumulate, wave, warmup_steps, seed,
      log_steps;
  std::optional<int64_t> memory_limit, prefetch_parameters, live_parameters;
  std::optional<double> learning_rate, weight_decay, clip, beta1, beta2, epsilon;
  std::optional<std::string> schedule, decay, compute_dtype, gradient_dtype, wire_dtype,
      loss_average, nonfinite, keep_forward;
};
// What a plan depends on.
void add_size_options(CLI::App& app, TrainerFlags& flags);
// And the rest of what train takes.
void add_recipe_options(CLI::App& app, TrainerFlags& flags);
// The pointers in it are borrowed from `flags` and `ds_config_text`.
amxt_trainer_options trainer_options(const TrainerFlags& flags, std::string& ds_config_text);

// The configuration of a preset, by the value of --preset.
std::string preset_config(const std::string& name);

// Shows the progress of loading, saving and the like: a bar for each item on a terminal, a line at each
// item's end otherwise; nothing when quiet.
class ItemProgress {
 public:
  explicit ItemProgress(bool quiet = false) : quiet_(quiet) {}
  void quiet(bool value) { quiet_ = value; }
  static int32_t callback(const amxt_progress* progress, void* user_data);

 private:
  void update(const amxt_progress& progress);

  bool quiet_;
  int32_t stage_ = 0;
  int64_t item_ = -1;
  bool ended_ = false;
  double begin_ = 0;
  Throttle throttle_{10};
};

// The parts of a plan, a rank and the node, and the limit.
void print_plan(const Json& plan);

}  // namespace command
