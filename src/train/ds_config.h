// ds_config: DeepSpeed's JSON configuration, and what comes of it together with the options given.
//
// Every key is in one of three classes: honoured; accepted, with a note that says why it means nothing here; refused by name. A value comes
// from the option given, else from the file; "auto" takes the option, else our default; a key that the file leaves out takes the option,
// else DeepSpeed's default (accumulation 1, clipping 1.0); a section left out (optimizer, scheduler) takes the options' defaults. An option
// that contradicts the file is an error that lists both.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "train/options.h"

namespace amxt::train {

enum class DsClass : int32_t { kHonoured = 0, kAccepted = 1 };

// One line for the log.
struct DsNote {
  DsClass kind = DsClass::kHonoured;
  std::string text;
};

// A value of the file: not there, "auto", or given.
template <typename T>
struct DsSetting {
  bool present = false;    // there, "auto" included
  std::optional<T> value;  // empty: not there, or "auto"

  bool is_auto() const { return present && !value; }
};

struct DsBetas {
  double beta1 = 0.9;
  double beta2 = 0.999;
};

struct DsConfig {
  std::string file;  // as messages call it
  std::vector<DsNote> notes;

  DsSetting<int64_t> train_batch_size;
  DsSetting<int64_t> micro_batch;
  DsSetting<int64_t> accumulate;
  DsSetting<int64_t> steps_per_print;
  DsSetting<double> clip;
  DsSetting<bool> bf16;
  DsSetting<GradientType> gradient_type;
  DsSetting<GradientType> wire_type;
  DsSetting<int64_t> prefetch_parameters;
  DsSetting<int64_t> live_parameters;

  bool has_optimizer = false;
  bool torch_adam = false;  // its weight decay has another default
  DsSetting<double> learning_rate;
  DsSetting<DsBetas> betas;
  DsSetting<double> epsilon;
  DsSetting<double> weight_decay;

  std::optional<ScheduleKind> schedule;  // the scheduler section's type
  DsSetting<double> warmup_min_lr;
  DsSetting<double> warmup_max_lr;
  DsSetting<int64_t> warmup_steps;
  DsSetting<int64_t> total_steps;
  DsSetting<bool> warmup_log;
  DsSetting<double> warmup_min_ratio;
  DsSetting<double> cosine_min_ratio;
};

// Larger texts are refused.
inline constexpr int64_t kDsConfigLimit = 1 << 20;

// `file` is what messages call it. kFormat for what is no such file, an unknown key (with the nearest known one) or a value of another
// type; kUnsupported for what asks for something that is not done here. Several are listed in one line.
Result<DsConfig> parse_ds_config(std::string_view text, std::string_view file);

// Puts together what was given, the file (null: none) and the defaults, and checks the ranges. `notes` (may be null) gets a line for each
// thing that was decided and may surprise. kInvalidArgument lists contradictions as "ds KEY=VALUE vs --flag VALUE", or the four numbers of
// a batch that don't multiply.
Result<EffectiveOptions> resolve(const TrainOptions& given, const DsConfig* file,
                                 int64_t world_size, std::vector<std::string>* notes = nullptr);

}  // namespace amxt::train
