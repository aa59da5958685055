#include "capi/trainer_options.h"

#include <fmt/format.h>

#include <cmath>

#include "capi/guard.h"

namespace amxt::capi {

namespace {

using train::ScheduleKind;

static_assert(static_cast<int32_t>(train::ComputeType::kBFloat16) == AMXT_COMPUTE_BFLOAT16 &&
              static_cast<int32_t>(train::ComputeType::kFloat32) == AMXT_COMPUTE_FLOAT32);
static_assert(static_cast<int32_t>(train::DecayScope::kAll) == AMXT_DECAY_ALL &&
              static_cast<int32_t>(train::DecayScope::kMatrices) == AMXT_DECAY_MATRICES);
static_assert(static_cast<int32_t>(train::LossAverage::kTokens) == AMXT_LOSS_AVERAGE_TOKENS &&
              static_cast<int32_t>(train::LossAverage::kMicroBatch) ==
                  AMXT_LOSS_AVERAGE_MICRO_BATCH);
static_assert(static_cast<int32_t>(train::Nonfinite::kStop) == AMXT_NONFINITE_STOP &&
              static_cast<int32_t>(train::Nonfinite::kSkip) == AMXT_NONFINITE_SKIP);
static_assert(static_cast<int32_t>(train::Keep::kAuto) == AMXT_KEEP_AUTO &&
              static_cast<int32_t>(train::Keep::kInputs) == AMXT_KEEP_INPUTS &&
              static_cast<int32_t>(train::Keep::kAttention) == AMXT_KEEP_ATTENTION &&
              static_cast<int32_t>(train::Keep::kAll) == AMXT_KEEP_ALL);
static_assert(static_cast<int32_t>(ScheduleKind::kConstant) == AMXT_SCHEDULE_CONSTANT &&
              static_cast<int32_t>(ScheduleKind::kLinear) == AMXT_SCHEDULE_LINEAR &&
              static_cast<int32_t>(ScheduleKind::kCosine) == AMXT_SCHEDULE_COSINE);

std::string field(std::string_view name) { return fmt::format("amxt_trainer_options.{}", name); }

template <typename E>
Status read_choice(int32_t value, int32_t last, std::string_view name, std::optional<E>* out) {
  AMXT_ASSIGN(const std::optional<int32_t> checked, given_choice(value, last, field(name)));
  if (checked) *out = static_cast<E>(*checked);
  return {};
}

Status read_count(int64_t value, int64_t least, std::string_view name,
                  std::optional<int64_t>* out) {
  AMXT_ASSIGN(*out, given_count(value, least, field(name)));
  return {};
}

Status read_real(double value, std::string_view name, std::optional<double>* out) {
  if (value != AMXT_UNSET_F64 && !std::isfinite(value)) {
    return Error(Code::kInvalidArgument, fmt::format("{} is {}", field(name), value));
  }
  *out = given(value);
  return {};
}

Status read_flag(int32_t value, std::string_view name, bool* out) {
  AMXT_ASSIGN(const std::optional<bool> flag, given_flag(value, field(name)));
  *out = flag.value_or(false);
  return {};
}

Status read_gradient_type(int32_t value, const char* name,
                          std::optional<train::GradientType>* out) {
  switch (value) {
    case AMXT_UNSET_I32:
      return {};
    case AMXT_DTYPE_BFLOAT16:
      *out = train::GradientType::kBFloat16;
      return {};
    case AMXT_DTYPE_FLOAT32:
      *out = train::GradientType::kFloat32;
      return {};
    default:
      return Error(Code::kInvalidArgument,
                   fmt::format("{} is {}, not AMXT_DTYPE_BFLOAT16 or AMXT_DTYPE_FLOAT32",
                               field(name), value));
  }
}

}  // namespace

Result<amxt_trainer_options> read_trainer_options(const amxt_trainer_options* options) {
  return read_struct<amxt_trainer_options>(options, AMXT_TRAINER_OPTIONS_INIT,
                                           "amxt_trainer_options");
}

Result<train::TrainOptions> train_options(const amxt_trainer_options& options) {
  train::TrainOptions result;
  AMXT_TRY(read_choice(options.compute_dtype, AMXT_COMPUTE_FLOAT32, "compute_dtype",
                       &result.compute_type));
  AMXT_TRY(read_gradient_type(options.gradient_dtype, "gradient_dtype", &result.gradient_type));
  AMXT_TRY(read_choice(options.decay, AMXT_DECAY_MATRICES, "decay", &result.decay));
  AMXT_TRY(read_choice(options.schedule, AMXT_SCHEDULE_COSINE, "schedule", &result.schedule));
  AMXT_TRY(read_choice(options.loss_average, AMXT_LOSS_AVERAGE_MICRO_BATCH, "loss_average",
                       &result.loss_average));
  AMXT_TRY(read_choice(options.nonfinite, AMXT_NONFINITE_SKIP, "nonfinite", &result.nonfinite));
  AMXT_TRY(read_choice(options.keep, AMXT_KEEP_ALL, "keep", &result.keep));
  AMXT_TRY(read_flag(options.forward_only, "forward_only", &result.forward_only));
  AMXT_TRY(read_flag(options.reschedule, "reschedule", &result.reschedule));
  AMXT_TRY(read_count(options.sequence_length, 1, "sequence_length", &result.sequence_length));
  AMXT_TRY(read_count(options.micro_batch, 1, "micro_batch", &result.micro_batch));
  AMXT_TRY(read_count(options.accumulate, 1, "accumulate", &result.accumulate));
  AMXT_TRY(read_count(options.wave, 1, "wave", &result.wave));
  AMXT_TRY(read_count(options.warmup_steps, 0, "warmup_steps", &result.warmup_steps));
  AMXT_TRY(read_count(options.total_steps, 1, "total_steps", &result.total_steps));
  AMXT_TRY(read_count(options.log_steps, 1, "log_steps", &result.log_steps));
  AMXT_TRY(read_count(options.seed, 0, "seed", &result.seed));
  AMXT_TRY(
      read_count(options.memory_limit_bytes, 1, "memory_limit_bytes", &result.memory_limit_bytes));
  AMXT_TRY(read_count(options.prefetch_parameters, 0, "prefetch_parameters",
                      &result.prefetch_parameters));
  AMXT_TRY(read_count(options.live_parameters, 0, "live_parameters", &result.live_parameters));
  AMXT_TRY(read_gradient_type(options.wire_dtype, "wire_dtype", &result.wire_type));
  AMXT_TRY(read_real(options.learning_rate, "learning_rate", &result.learning_rate));
  AMXT_TRY(read_real(options.beta1, "beta1", &result.beta1));
  AMXT_TRY(read_real(options.beta2, "beta2", &result.beta2));
  AMXT_TRY(read_real(options.epsilon, "epsilon", &result.epsilon));
  AMXT_TRY(read_real(options.weight_decay, "weight_decay", &result.weight_decay));
  AMXT_TRY(read_real(options.clip, "clip", &result.clip));
  return result;
}

}  // namespace amxt::capi
