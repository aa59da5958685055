#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/text.h"
#include "train/ds_config.h"

namespace amxt::train {
namespace {

// DeepSpeed's own defaults, for keys that a file leaves out.
constexpr int64_t kDsAccumulate = 1;
constexpr double kDsClip = 1.0;
constexpr double kDsLearningRate = 1e-3;
constexpr double kDsWeightDecay = 0;          // of its CPU and fused Adam
constexpr double kDsTorchWeightDecay = 0.01;  // of torch's, with torch_adam
constexpr int64_t kDsWarmupSteps = 1000;
constexpr double kDsDecayMaxRate = 1e-3;  // WarmupDecayLR's; WarmupLR takes the optimizer's rate
constexpr double kDsCosineMinRatio = 1e-4;

class Resolver {
 public:
  Resolver(const TrainOptions& given, const DsConfig& file, EffectiveOptions& out,
           std::vector<std::string>* notes)
      : given_(given), file_(file), out_(out), notes_(notes) {}

  Status run() {
    compute();
    between_nodes();
    optimizer();
    scheduler();
    out_.clip = pick("gradient_clipping", file_.clip, "--clip", given_.clip, out_.clip, kDsClip);
    out_.log_steps = pick("steps_per_print", file_.steps_per_print, "--log-steps", given_.log_steps,
                          out_.log_steps, out_.log_steps);
    batch_settings();
    if (!contradictions_.empty()) {
      return error(
          fmt::format("contradicts the options given: {}; leave the option out or set the "
                      "key to \"auto\"",
                      fmt::join(contradictions_, "; ")));
    }
    return batch();
  }

 private:
  Error error(const std::string& message) const {
    return Error(Code::kInvalidArgument, fmt::format("{}: {}", quote(file_.file), message));
  }
  void note(const std::string& text) {
    if (notes_ != nullptr) notes_->push_back(fmt::format("{}: {}", quote(file_.file), text));
  }
  void contradict(std::string_view key, const std::string& value, std::string_view flag,
                  const std::string& flag_value) {
    contradictions_.push_back(fmt::format("ds {}={} vs {} {}", key, value, flag, flag_value));
  }

  // The rule of all values: the option; the file; "auto" and sections left out: `ours`; a key left
  // out: `theirs`. Two values that differ are noted.
  template <typename T>
  T pick(std::string_view key, const DsSetting<T>& setting, std::string_view flag,
         const std::optional<T>& option, T ours, T theirs) {
    if (setting.value && option && *setting.value != *option) {
      contradict(key, fmt::format("{}", *setting.value), flag, fmt::format("{}", *option));
    }
    if (option) return *option;
    if (setting.value) return *setting.value;
    return setting.present ? ours : theirs;
  }

  void compute() {
    if (file_.bf16.value && given_.compute_type) {
      const bool wants = *given_.compute_type == ComputeType::kBFloat16;
      if (wants != *file_.bf16.value) {
        contradict("bf16.enabled", fmt::format("{}", *file_.bf16.value), "--compute-dtype",
                   compute_type_name(*given_.compute_type));
      }
    }
    if (!given_.compute_type && !file_.bf16.is_auto()) {
      const bool bf16 = file_.bf16.value.value_or(false);
      out_.compute_type = bf16 ? ComputeType::kBFloat16 : ComputeType::kFloat32;
      if (!file_.bf16.present) {
        note(
            "bf16 is left out: computes in float32, as DeepSpeed does; \"bf16\": {\"enabled\": "
            "true} or --compute-dtype bfloat16 for bfloat16");
      }
    }
    gradient_type("data_types.grad_accum_dtype", file_.gradient_type, "--gradient-dtype",
                  given_.gradient_type, out_.gradient_type);
  }

  void gradient_type(std::string_view key, const DsSetting<GradientType>& setting,
                     std::string_view flag, const std::optional<GradientType>& option,
                     GradientType& out) {
    if (!setting.value) return;
    if (option && *option != *setting.value) {
      contradict(key, gradient_type_name(*setting.value), flag, gradient_type_name(*option));
    }
    out = *setting.value;
  }

  void between_nodes() {
    out_.prefetch_parameters =
        pick("zero_optimization.stage3_prefetch_bucket_size", file_.prefetch_parameters,
             "--prefetch-parameters", given_.prefetch_parameters, out_.prefetch_parameters,
             out_.prefetch_parameters);
    out_.live_parameters = pick("zero_optimization.stage3_max_live_parameters",
                                file_.live_parameters, "--live-parameters", given_.live_parameters,
                                out_.live_parameters, out_.live_parameters);
    gradient_type("communication_data_type", file_.wire_type, "--wire-dtype", given_.wire_type,
                  out_.wire_type);
  }

  void optimizer() {
    if (!file_.has_optimizer) return;
    const double decay = file_.torch_adam ? kDsTorchWeightDecay : kDsWeightDecay;
    double& rate = out_.schedule.learning_rate;
    rate = pick("optimizer.params.lr", file_.learning_rate, "--lr", given_.learning_rate, rate,
                kDsLearningRate);
    out_.epsilon = pick("optimizer.params.eps", file_.epsilon, "--epsilon", given_.epsilon,
                        out_.epsilon, out_.epsilon);
    out_.weight_decay = pick("optimizer.params.weight_decay", file_.weight_decay, "--weight-decay",
                             given_.weight_decay, out_.weight_decay, decay);
    DsSetting<double> beta1{file_.betas.present, {}};
    DsSetting<double> beta2{file_.betas.present, {}};
    if (file_.betas.value) {
      beta1.value = file_.betas.value->beta1;
      beta2.value = file_.betas.value->beta2;
    }
    out_.beta1 =
        pick("optimizer.params.betas[0]", beta1, "--beta1", given_.beta1, out_.beta1, out_.beta1);
    out_.beta2 =
        pick("optimizer.params.betas[1]", beta2, "--beta2", given_.beta2, out_.beta2, out_.beta2);
  }

  // transformers pairs these; the file then says how exactly.
  static bool agrees(ScheduleKind option, ScheduleKind file) {
    return option == file || (option == ScheduleKind::kConstant && file == ScheduleKind::kWarmup) ||
           (option == ScheduleKind::kLinear && file == ScheduleKind::kWarmupDecay) ||
           (option == ScheduleKind::kCosine && file == ScheduleKind::kWarmupCosine);
  }

  void scheduler() {
    Schedule& s = out_.schedule;
    if (!file_.schedule) {
      note(fmt::format(
          "scheduler is left out: {}, as without a file (DeepSpeed alone would keep the "
          "rate constant)",
          schedule_name(s.kind)));
      return;
    }
    if (given_.schedule && !agrees(*given_.schedule, *file_.schedule)) {
      contradict("scheduler.type", schedule_name(*file_.schedule), "--schedule",
                 schedule_name(*given_.schedule));
    }
    s.kind = *file_.schedule;
    s.warmup_steps = pick("scheduler.params.warmup_num_steps", file_.warmup_steps, "--warmup-steps",
                          given_.warmup_steps, s.warmup_steps, kDsWarmupSteps);
    s.warmup_log = file_.warmup_log.value.value_or(true);
    if (s.kind == ScheduleKind::kWarmupCosine) {
      s.warmup_min_ratio = file_.warmup_min_ratio.value.value_or(0);
      s.cosine_min_ratio = file_.cosine_min_ratio.value.value_or(kDsCosineMinRatio);
    } else {
      s.warmup_min_lr = file_.warmup_min_lr.value.value_or(0);
      top_rate(s);
    }
    horizon(s);
    if (s.rate(0) == 0 && s.learning_rate > 0) {
      note(fmt::format("{}: the first step has a learning rate of 0, as with DeepSpeed",
                       schedule_name(s.kind)));
    }
  }

  // WarmupLR and WarmupDecayLR have the rate themselves; the optimizer's is overruled.
  void top_rate(Schedule& s) {
    const double optimizer_rate = s.learning_rate;
    const double theirs = s.kind == ScheduleKind::kWarmupDecay ? kDsDecayMaxRate : optimizer_rate;
    s.learning_rate = pick("scheduler.params.warmup_max_lr", file_.warmup_max_lr, "--lr",
                           given_.learning_rate, optimizer_rate, theirs);
    if (file_.has_optimizer && s.learning_rate != optimizer_rate) {
      note(fmt::format("the scheduler's warmup_max_lr {} counts, not optimizer.params.lr {}",
                       s.learning_rate, optimizer_rate));
    }
  }

  void horizon(Schedule& s) {
    if (!file_.total_steps.value) return;
    if (given_.total_steps && *given_.total_steps != *file_.total_steps.value) {
      contradict("scheduler.params.total_num_steps", fmt::format("{}", *file_.total_steps.value),
                 "--steps", fmt::format("{}", *given_.total_steps));
    }
    s.total_steps = *file_.total_steps.value;
    out_.horizon_given = true;
  }

  void batch_settings() {
    const auto differs = [](const DsSetting<int64_t>& setting, const std::optional<int64_t>& o) {
      return setting.value && o && *setting.value != *o;
    };
    if (differs(file_.micro_batch, given_.micro_batch)) {
      contradict("train_micro_batch_size_per_gpu", fmt::format("{}", *file_.micro_batch.value),
                 "--micro-batch", fmt::format("{}", *given_.micro_batch));
    }
    if (differs(file_.accumulate, given_.accumulate)) {
      contradict("gradient_accumulation_steps", fmt::format("{}", *file_.accumulate.value),
                 "--accumulate", fmt::format("{}", *given_.accumulate));
    }
  }

  // A size that is known: from the option, the file, or our default for "auto".
  static std::optional<int64_t> known(const DsSetting<int64_t>& setting,
                                      const std::optional<int64_t>& option, int64_t ours) {
    if (option) return option;
    if (setting.value) return setting.value;
    if (setting.present) return ours;
    return {};
  }

  // Any two of the three sizes give the third.
  Status batch() {
    const auto micro = known(file_.micro_batch, given_.micro_batch, out_.micro_batch);
    const auto accumulate = known(file_.accumulate, given_.accumulate, out_.accumulate);
    const std::optional<int64_t>& train = file_.train_batch_size.value;
    if (train) return batch_of(*train, micro, accumulate);
    out_.micro_batch = micro.value_or(out_.micro_batch);
    out_.accumulate = accumulate.value_or(kDsAccumulate);
    return {};
  }

  Status batch_of(int64_t train, std::optional<int64_t> micro, std::optional<int64_t> accumulate) {
    const int64_t world = out_.world_size;
    if (!micro && !accumulate) accumulate = kDsAccumulate;
    if (!micro) {
      AMXT_ASSIGN(micro, divide(train, "gradient_accumulation_steps", *accumulate));
    } else if (!accumulate) {
      AMXT_ASSIGN(accumulate, divide(train, "train_micro_batch_size_per_gpu", *micro));
    }
    int64_t product = 0;
    const bool overflow = __builtin_mul_overflow(*micro, *accumulate, &product) ||
                          __builtin_mul_overflow(product, world, &product);
    if (overflow || product != train) {
      return error(
          fmt::format("train_batch_size {} is not train_micro_batch_size_per_gpu {} x "
                      "gradient_accumulation_steps {} x {} ranks{}",
                      train, *micro, *accumulate, world,
                      overflow ? std::string() : fmt::format(" = {}", product)));
    }
    out_.micro_batch = *micro;
    out_.accumulate = *accumulate;
    return {};
  }

  Result<int64_t> divide(int64_t train, std::string_view key, int64_t size) const {
    int64_t part = 0;
    if (size < 1 || __builtin_mul_overflow(size, out_.world_size, &part) || train % part != 0) {
      return error(fmt::format("train_batch_size {} can't be divided by {} {} x {} ranks", train,
                               key, size, out_.world_size));
    }
    return train / part;
  }

  const TrainOptions& given_;
  const DsConfig& file_;
  EffectiveOptions& out_;
  std::vector<std::string>* notes_;
  std::vector<std::string> contradictions_;
};

// What of the file an effective option that is out of its range comes from.
struct KeyOfOption {
  std::string_view option, key;
};
constexpr KeyOfOption kKeys[] = {{"micro_batch", "train_micro_batch_size_per_gpu"},
                                 {"accumulate", "gradient_accumulation_steps"},
                                 {"warmup_steps", "scheduler.params.warmup_num_steps"},
                                 {"total_steps", "scheduler.params.total_num_steps"},
                                 {"log_steps", "steps_per_print"},
                                 {"learning_rate", "the learning rate"},
                                 {"beta1", "optimizer.params.betas[0]"},
                                 {"beta2", "optimizer.params.betas[1]"},
                                 {"epsilon", "optimizer.params.eps"},
                                 {"weight_decay", "optimizer.params.weight_decay"},
                                 {"clip", "gradient_clipping"},
                                 {"gradient_dtype", "data_types.grad_accum_dtype"}};

// A message of check_ranges() in the words of the file.
Error in_file(const Error& error, const DsConfig& file) {
  std::string message = error.message();
  for (const KeyOfOption& each : kKeys) {
    if (!message.starts_with(fmt::format("{} ", each.option))) continue;
    message.replace(0, each.option.size(), each.key);
    break;
  }
  return Error(error.code(), fmt::format("{}: {}", quote(file.file), message));
}

template <typename T>
void take(const std::optional<T>& from, T& to) {
  if (from) to = *from;
}

EffectiveOptions with_defaults(const TrainOptions& given, int64_t world_size) {
  EffectiveOptions out;
  out.world_size = world_size;
  take(given.compute_type, out.compute_type);
  take(given.gradient_type, out.gradient_type);
  take(given.decay, out.decay);
  take(given.schedule, out.schedule.kind);
  take(given.loss_average, out.loss_average);
  take(given.nonfinite, out.nonfinite);
  take(given.keep, out.keep);
  take(given.mode, out.mode);
  take(given.sequence_length, out.sequence_length);
  take(given.micro_batch, out.micro_batch);
  take(given.accumulate, out.accumulate);
  take(given.wave, out.wave);
  take(given.warmup_steps, out.schedule.warmup_steps);
  take(given.total_steps, out.schedule.total_steps);
  take(given.save_steps, out.save_steps);
  take(given.keep_checkpoints, out.keep_checkpoints);
  take(given.log_steps, out.log_steps);
  take(given.eval_steps, out.eval_steps);
  take(given.seed, out.seed);
  take(given.memory_limit_bytes, out.memory_limit_bytes);
  take(given.threads, out.threads);
  take(given.prefetch_parameters, out.prefetch_parameters);
  take(given.live_parameters, out.live_parameters);
  take(given.wire_type, out.wire_type);
  take(given.learning_rate, out.schedule.learning_rate);
  take(given.beta1, out.beta1);
  take(given.beta2, out.beta2);
  take(given.epsilon, out.epsilon);
  take(given.weight_decay, out.weight_decay);
  take(given.clip, out.clip);
  out.steps = given.steps;
  out.epochs = given.epochs;
  out.forward_only = given.forward_only;
  out.reschedule = given.reschedule;
  out.horizon_given = given.total_steps.has_value();
  return out;
}

}  // namespace

Result<EffectiveOptions> resolve(const TrainOptions& given, const DsConfig* file,
                                 int64_t world_size, std::vector<std::string>* notes) {
  EffectiveOptions out = with_defaults(given, world_size);
  // What was given is checked first: a batch is divided by it below.
  AMXT_TRY(check_ranges(out));
  if (file != nullptr) {
    AMXT_TRY(Resolver(given, *file, out, notes).run());
    if (Status status = check_ranges(out); !status) {
      return in_file(status.error(), *file);
    }
  }
  if (!out.horizon_given) out.schedule.total_steps = out.steps.value_or(0);
  return out;
}

}  // namespace amxt::train
