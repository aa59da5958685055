// Options of a training run: what was given (TrainOptions, every field empty unless somebody set it), and what came of it after the
// defaults and a ds_config file were put in (EffectiveOptions; resolve() in train/ds_config.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "io/dataset.h"
#include "train/schedule.h"

namespace amxt::train {

// Numeric values are those of the AMXT_* constants in include/amxtrain.h.
enum class ComputeType : int32_t { kBFloat16 = 0, kFloat32 = 1 };
enum class DecayScope : int32_t { kAll = 0, kMatrices = 1 };
enum class LossAverage : int32_t { kTokens = 0, kMicroBatch = 1 };
enum class Nonfinite : int32_t { kStop = 0, kSkip = 1 };
enum class Keep : int32_t { kAuto = 0, kInputs = 1, kAttention = 2, kAll = 3 };
// kAuto: bf16 when a step is one wave, fp32 when waves accumulate (and always in float32 compute).
enum class GradientType : int32_t { kAuto = 0, kBFloat16 = 1, kFloat32 = 2 };

// What was given, by flags or by the fields of amxt_trainer_options and amxt_run_options.
struct TrainOptions {
  std::optional<ComputeType> compute_type;
  std::optional<GradientType> gradient_type;
  std::optional<DecayScope> decay;
  std::optional<ScheduleKind> schedule;
  std::optional<LossAverage> loss_average;
  std::optional<Nonfinite> nonfinite;
  std::optional<Keep> keep;
  std::optional<io::PackMode> mode;
  std::optional<int64_t> sequence_length;
  std::optional<int64_t> micro_batch;
  std::optional<int64_t> accumulate;
  std::optional<int64_t> wave;  // micro-batches that pass a layer together
  std::optional<int64_t> warmup_steps;
  std::optional<int64_t> total_steps;  // horizon of the schedule
  std::optional<int64_t> steps;
  std::optional<double> epochs;
  std::optional<int64_t> save_steps;
  std::optional<int64_t> keep_checkpoints;
  std::optional<int64_t> log_steps;
  std::optional<int64_t> eval_steps;
  std::optional<int64_t> seed;
  std::optional<int64_t> memory_limit_bytes;
  std::optional<int64_t> threads;
  std::optional<int64_t> prefetch_parameters;
  std::optional<int64_t> live_parameters;
  std::optional<GradientType> wire_type;
  std::optional<double> learning_rate;
  std::optional<double> beta1;
  std::optional<double> beta2;
  std::optional<double> epsilon;
  std::optional<double> weight_decay;
  std::optional<double> clip;
  bool forward_only = false;
  bool reschedule = false;
};

// What a trainer goes by. The initial values are the defaults.
struct EffectiveOptions {
  ComputeType compute_type = ComputeType::kBFloat16;
  GradientType gradient_type = GradientType::kAuto;  // kAuto: the plan decides
  DecayScope decay = DecayScope::kAll;
  LossAverage loss_average = LossAverage::kTokens;
  Nonfinite nonfinite = Nonfinite::kStop;
  Keep keep = Keep::kAuto;  // kAuto: the plan decides
  io::PackMode mode = io::PackMode::kPack;
  int64_t sequence_length = 512;
  int64_t micro_batch = 1;
  int64_t accumulate = 4;
  int64_t wave = 0;  // micro-batches that pass a layer together; 0: the plan decides
  int64_t world_size = 1;
  Schedule schedule;           // learning rate, warm-up and horizon with it
  bool horizon_given = false;  // total_steps was named; else it is the number of steps of the run
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double clip = 1.0;             // largest norm of the gradient; 0: no clipping
  std::optional<int64_t> steps;  // neither steps nor epochs: one epoch
  std::optional<double> epochs;
  int64_t save_steps = 100;  // 0: only after the last
  int64_t keep_checkpoints = 2;
  int64_t log_steps = 1;
  int64_t eval_steps = 0;  // 0: after the last only
  int64_t seed = 42;
  int64_t memory_limit_bytes = 0;  // 0: what there is
  int64_t threads = 0;             // 0: as the runtime decides
  // Between nodes, as in DeepSpeed: parameters that are fetched ahead of use (0: none), and most that are there at a time; both in whole
  // layers, at least one. And the type in which gradients pass (kAuto: that in which they are kept).
  int64_t prefetch_parameters = 50'000'000;
  int64_t live_parameters = 1'000'000'000;
  GradientType wire_type = GradientType::kAuto;
  bool forward_only = false;
  bool reschedule = false;

  // Samples of one step over all ranks: world x micro-batch x accumulate.
  int64_t global_batch() const { return world_size * micro_batch * accumulate; }
};

const char* compute_type_name(ComputeType type);     // "bfloat16", "float32"
const char* gradient_type_name(GradientType type);   // "auto", "bfloat16", "float32"
const char* decay_name(DecayScope scope);            // "all", "matrices"
const char* loss_average_name(LossAverage average);  // "tokens", "micro_batch"
const char* nonfinite_name(Nonfinite policy);        // "stop", "skip"
const char* keep_name(Keep keep);                    // "auto", "inputs", "attention", "all"
const char* mode_name(io::PackMode mode);            // "pack", "pad"

// More epochs than anyone means; below it their samples are counted exactly enough.
inline constexpr double kMostEpochs = 1e6;

// Each error names the option, the value and what is allowed.
Result<ComputeType> compute_type_from_name(std::string_view name);
Result<GradientType> gradient_type_from_name(std::string_view name);
Result<DecayScope> decay_from_name(std::string_view name);
Result<LossAverage> loss_average_from_name(std::string_view name);
Result<Nonfinite> nonfinite_from_name(std::string_view name);
Result<Keep> keep_from_name(std::string_view name);
Result<io::PackMode> mode_from_name(std::string_view name);

// kInvalidArgument naming the first option out of its range, with the bound that it passes.
Status check_ranges(const EffectiveOptions& options);

// A JSON object with every option under the name that the C ABI gives it.
std::string options_json(const EffectiveOptions& options);

// Steps of the whole job over `samples` samples an epoch: steps, else epochs x samples / global batch rounded up (at least 1).
int64_t job_steps(const EffectiveOptions& options, int64_t samples);

}  // namespace amxt::train
