#include "train/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "base/json.h"
#include "base/text.h"

namespace amxt::train {
namespace {

// Products of sizes below this stay far from the end of int64.
constexpr int64_t kMostPositions = int64_t{1} << 31;
constexpr int64_t kMostSamples = int64_t{1} << 31;
constexpr int64_t kMostStepPositions = int64_t{1} << 40;
constexpr int64_t kMostParameters = int64_t{1} << 60;
constexpr int64_t kMostSteps = int64_t{1} << 53;

template <typename E>
struct Named {
  E value;
  const char* name;
};

constexpr Named<ComputeType> kComputeTypes[] = {{ComputeType::kBFloat16, "bfloat16"},
                                                {ComputeType::kFloat32, "float32"}};
constexpr Named<GradientType> kGradientTypes[] = {{GradientType::kAuto, "auto"},
                                                  {GradientType::kBFloat16, "bfloat16"},
                                                  {GradientType::kFloat32, "float32"}};
constexpr Named<DecayScope> kDecayScopes[] = {{DecayScope::kAll, "all"},
                                              {DecayScope::kMatrices, "matrices"}};
constexpr Named<LossAverage> kLossAverages[] = {{LossAverage::kTokens, "tokens"},
                                                {LossAverage::kMicroBatch, "micro_batch"}};
constexpr Named<Nonfinite> kNonfinites[] = {{Nonfinite::kStop, "stop"}, {Nonfinite::kSkip, "skip"}};
constexpr Named<Keep> kKeeps[] = {{Keep::kAuto, "auto"},
                                  {Keep::kInputs, "inputs"},
                                  {Keep::kAttention, "attention"},
                                  {Keep::kAll, "all"}};
constexpr Named<io::PackMode> kModes[] = {{io::PackMode::kPack, "pack"},
                                          {io::PackMode::kPad, "pad"}};

template <typename E, size_t n>
const char* name_of(const Named<E> (&names)[n], E value) {
  for (const Named<E>& named : names) {
    if (named.value == value) return named.name;
  }
  return "unknown";
}

template <typename E, size_t n>
Result<E> from_name(const Named<E> (&names)[n], const char* option, std::string_view name) {
  std::string all;
  for (const Named<E>& named : names) {
    if (name == named.name) return named.value;
    all += all.empty() ? named.name : fmt::format(", {}", named.name);
  }
  return Error(Code::kInvalidArgument,
               fmt::format("{} {}: not one of {}", option, quote(name), all));
}

// The checks of one set of options; the first failure stays.
class Ranges {
 public:
  void whole(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return;
    fail(value < least ? fmt::format("{} {}: must be {} or more", name, value, least)
                       : fmt::format("{} {}: must be at most {}", name, value, most));
  }
  void real(const char* name, double value, bool ok, const char* range) {
    if (std::isfinite(value) && ok) return;
    fail(fmt::format("{} {}: must be {}", name, value, range));
  }
  Status take() {
    if (!message_.empty()) return Error(Code::kInvalidArgument, std::move(message_));
    return {};
  }

 private:
  void fail(std::string message) {
    if (message_.empty()) message_ = std::move(message);
  }
  std::string message_;
};

template <typename T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

}  // namespace

const char* compute_type_name(ComputeType type) { return name_of(kComputeTypes, type); }
const char* gradient_type_name(GradientType type) { return name_of(kGradientTypes, type); }
const char* decay_name(DecayScope scope) { return name_of(kDecayScopes, scope); }
const char* loss_average_name(LossAverage average) { return name_of(kLossAverages, average); }
const char* nonfinite_name(Nonfinite policy) { return name_of(kNonfinites, policy); }
const char* keep_name(Keep keep) { return name_of(kKeeps, keep); }
const char* mode_name(io::PackMode mode) { return name_of(kModes, mode); }

Result<ComputeType> compute_type_from_name(std::string_view name) {
  return from_name(kComputeTypes, "compute_dtype", name);
}
Result<GradientType> gradient_type_from_name(std::string_view name) {
  return from_name(kGradientTypes, "gradient_dtype", name);
}
Result<DecayScope> decay_from_name(std::string_view name) {
  return from_name(kDecayScopes, "decay", name);
}
Result<LossAverage> loss_average_from_name(std::string_view name) {
  return from_name(kLossAverages, "loss_average", name);
}
Result<Nonfinite> nonfinite_from_name(std::string_view name) {
  return from_name(kNonfinites, "nonfinite", name);
}
Result<Keep> keep_from_name(std::string_view name) { return from_name(kKeeps, "keep", name); }
Result<io::PackMode> mode_from_name(std::string_view name) {
  return from_name(kModes, "mode", name);
}

Status check_ranges(const EffectiveOptions& o) {
  Ranges check;
  check.whole("sequence_length", o.sequence_length, 1, kMostPositions);
  check.whole("micro_batch", o.micro_batch, 1, kMostSamples);
  check.whole("accumulate", o.accumulate, 1, kMostSamples);
  check.whole("world_size", o.world_size, 1, kMostSamples);
  check.whole("wave", o.wave, 0, kMostSamples);
  check.whole("warmup_steps", o.schedule.warmup_steps, 0, kMostSteps);
  check.whole("total_steps", o.schedule.total_steps, 0, kMostSteps);
  if (o.steps) check.whole("steps", *o.steps, 0, kMostSteps);
  if (o.epochs) {
    check.real("epochs", *o.epochs, *o.epochs > 0 && *o.epochs <= kMostEpochs,
               "above 0 and at most 1000000");
  }
  check.whole("save_steps", o.save_steps, 0, kMostSteps);
  check.whole("keep", o.keep_checkpoints, 1, kMostSteps);
  check.whole("log_steps", o.log_steps, 1, kMostSteps);
  check.whole("eval_steps", o.eval_steps, 0, kMostSteps);
  check.whole("seed", o.seed, std::numeric_limits<int64_t>::min() + 1,
              std::numeric_limits<int64_t>::max());
  check.whole("memory_limit_bytes", o.memory_limit_bytes, 0, std::numeric_limits<int64_t>::max());
  check.whole("threads", o.threads, 0, 1 << 16);
  check.whole("prefetch_parameters", o.prefetch_parameters, 0, kMostParameters);
  check.whole("live_parameters", o.live_parameters, 0, kMostParameters);
  check.real("learning_rate", o.schedule.learning_rate,
             o.schedule.learning_rate >= 0 && o.schedule.learning_rate <= kMostLearningRate,
             "0 to 1000");
  check.real("beta1", o.beta1, o.beta1 >= 0 && o.beta1 < 1, "0 or more and below 1");
  check.real("beta2", o.beta2, o.beta2 >= 0 && o.beta2 < 1, "0 or more and below 1");
  check.real("epsilon", o.epsilon, o.epsilon > 0, "above 0");
  check.real("weight_decay", o.weight_decay, o.weight_decay >= 0, "0 or more");
  check.real("clip", o.clip, o.clip >= 0, "0 (off) or more");
  AMXT_TRY(check.take());
  if (o.steps && o.epochs) {
    return Error(
        Code::kInvalidArgument,
        fmt::format("steps {} and epochs {}: only one of them may be given", *o.steps, *o.epochs));
  }
  // The product of a step's positions must fit, too, and the bytes that a plan counts for each of them.
  int64_t positions = o.sequence_length;
  for (const int64_t factor : {o.micro_batch, o.accumulate, o.world_size}) {
    if (__builtin_mul_overflow(positions, factor, &positions) || positions > kMostStepPositions) {
      return Error(Code::kInvalidArgument,
                   fmt::format("sequence_length {} x micro_batch {} x accumulate {} x {}: more "
                               "positions in a step than {}",
                               o.sequence_length, o.micro_batch, o.accumulate,
                               counted(o.world_size, "rank"), kMostStepPositions));
    }
  }
  if (o.compute_type == ComputeType::kFloat32 && o.gradient_type == GradientType::kBFloat16) {
    return Error(Code::kInvalidArgument,
                 "gradient_dtype bfloat16: not with compute_dtype float32, whose gradients are "
                 "float32");
  }
  return {};
}

std::string options_json(const EffectiveOptions& o) {
  Json json;
  json["compute_dtype"] = compute_type_name(o.compute_type);
  json["gradient_dtype"] = gradient_type_name(o.gradient_type);
  json["decay"] = decay_name(o.decay);
  json["loss_average"] = loss_average_name(o.loss_average);
  json["nonfinite"] = nonfinite_name(o.nonfinite);
  json["keep"] = keep_name(o.keep);
  json["mode"] = mode_name(o.mode);
  json["sequence_length"] = o.sequence_length;
  json["micro_batch"] = o.micro_batch;
  json["accumulate"] = o.accumulate;
  json["world_size"] = o.world_size;
  json["global_batch"] = o.global_batch();
  json["wave"] = o.wave;
  json["schedule"] = schedule_name(o.schedule.kind);
  json["learning_rate"] = o.schedule.learning_rate;
  json["warmup_steps"] = o.schedule.warmup_steps;
  json["total_steps"] = o.schedule.total_steps;
  if (o.schedule.kind == ScheduleKind::kWarmup || o.schedule.kind == ScheduleKind::kWarmupDecay) {
    json["warmup_min_lr"] = o.schedule.warmup_min_lr;
  }
  if (o.schedule.kind == ScheduleKind::kWarmupCosine) {
    json["warmup_min_ratio"] = o.schedule.warmup_min_ratio;
    json["cos_min_ratio"] = o.schedule.cosine_min_ratio;
  }
  if (o.schedule.kind >= ScheduleKind::kWarmup) {
    json["warmup_type"] = o.schedule.warmup_log ? "log" : "linear";
  }
  json["beta1"] = o.beta1;
  json["beta2"] = o.beta2;
  json["epsilon"] = o.epsilon;
  json["weight_decay"] = o.weight_decay;
  json["clip"] = o.clip;
  json["steps"] = or_null(o.steps);
  json["epochs"] = or_null(o.epochs);
  json["save_steps"] = o.save_steps;
  json["keep_checkpoints"] = o.keep_checkpoints;
  json["log_steps"] = o.log_steps;
  json["eval_steps"] = o.eval_steps;
  json["seed"] = o.seed;
  json["memory_limit_bytes"] = o.memory_limit_bytes;
  json["threads"] = o.threads;
  json["prefetch_parameters"] = o.prefetch_parameters;
  json["live_parameters"] = o.live_parameters;
  json["wire_dtype"] = gradient_type_name(o.wire_type);
  json["forward_only"] = o.forward_only;
  json["reschedule"] = o.reschedule;
  return json.dump();
}

int64_t job_steps(const EffectiveOptions& options, int64_t samples) {
  if (options.steps) return *options.steps;
  const int64_t batch = options.global_batch();
  const double epochs = options.epochs.value_or(1.0);
  if (epochs == std::floor(epochs) && epochs < 1e9) {
    int64_t all = 0;
    if (!__builtin_mul_overflow(samples, static_cast<int64_t>(epochs), &all)) {
      return std::max<int64_t>(1, all / batch + (all % batch != 0));
    }
  }
  const double steps =
      std::ceil(epochs * static_cast<double>(samples) / static_cast<double>(batch));
  return static_cast<int64_t>(std::clamp(steps, 1.0, static_cast<double>(kMostSteps)));
}

}  // namespace amxt::train
