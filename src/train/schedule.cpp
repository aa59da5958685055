#include "train/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "base/text.h"

namespace amxt::train {
namespace {

struct Name {
  ScheduleKind kind;
  const char* name;
};

constexpr std::array<Name, 6> kNames{{
    {ScheduleKind::kConstant, "constant"},
    {ScheduleKind::kLinear, "linear"},
    {ScheduleKind::kCosine, "cosine"},
    {ScheduleKind::kWarmup, "WarmupLR"},
    {ScheduleKind::kWarmupDecay, "WarmupDecayLR"},
    {ScheduleKind::kWarmupCosine, "WarmupCosineLR"},
}};

// The part of transformers' get_scheduler that multiplies the rate.
double transformers_factor(const Schedule& s, int64_t step) {
  const auto span = [](int64_t from, int64_t to) {
    return static_cast<double>(std::max<int64_t>(1, to - from));
  };
  if (step < s.warmup_steps) return static_cast<double>(step) / span(0, s.warmup_steps);
  if (s.kind == ScheduleKind::kConstant) return 1;
  if (s.kind == ScheduleKind::kLinear) {
    const double left = static_cast<double>(s.total_steps - step);
    return std::max(0.0, left / span(s.warmup_steps, s.total_steps));
  }
  const double progress =
      static_cast<double>(step - s.warmup_steps) / span(s.warmup_steps, s.total_steps);
  // Half a wave; past the horizon it rises again, as it does there.
  return std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * progress)));
}

// DeepSpeed never warms up over fewer steps than two.
int64_t deepspeed_warmup(const Schedule& s) { return std::max<int64_t>(2, s.warmup_steps); }

double deepspeed_warmup_gamma(const Schedule& s, int64_t iteration) {
  const auto warmup = static_cast<double>(deepspeed_warmup(s));
  if (!s.warmup_log) return static_cast<double>(iteration) / warmup;
  return 1.0 / std::log(warmup) * std::log(static_cast<double>(iteration + 1));
}

// `iteration` is DeepSpeed's last_batch_iteration: the scheduler steps behind the optimizer, so a
// step is taken with the rate of the iteration before it.
double deepspeed_rate(const Schedule& s, int64_t iteration) {
  const double delta = s.learning_rate - s.warmup_min_lr;
  if (iteration < 0) return s.warmup_min_lr;
  const int64_t warmup = deepspeed_warmup(s);
  if (iteration < warmup) return s.warmup_min_lr + delta * deepspeed_warmup_gamma(s, iteration);
  if (s.kind == ScheduleKind::kWarmup) return s.learning_rate;
  const double left = static_cast<double>(s.total_steps - iteration);
  const double gamma =
      std::max(0.0, left / static_cast<double>(std::max<int64_t>(1, s.total_steps - warmup)));
  return s.warmup_min_lr + delta * gamma;
}

double deepspeed_cosine_ratio(const Schedule& s, int64_t iteration) {
  // Not warmup_min_ratio: DeepSpeed takes the very first step with nothing.
  if (iteration < 0) return 0;
  const int64_t warmup = deepspeed_warmup(s);
  if (iteration < warmup) {
    return s.warmup_min_ratio + deepspeed_warmup_gamma(s, iteration) * (1 - s.warmup_min_ratio);
  }
  const auto last = static_cast<double>(iteration - warmup + 1);
  const double progress =
      std::min(1.0, last / static_cast<double>(std::max<int64_t>(1, s.total_steps - warmup)));
  const double ratio = (1 + std::cos(std::numbers::pi * progress)) / 2;
  return std::max(0.0, s.cosine_min_ratio + (1 - s.cosine_min_ratio) * ratio);
}

}  // namespace

double Schedule::rate(int64_t step) const {
  switch (kind) {
    case ScheduleKind::kWarmup:
    case ScheduleKind::kWarmupDecay:
      return deepspeed_rate(*this, step - 1);
    case ScheduleKind::kWarmupCosine:
      return learning_rate * deepspeed_cosine_ratio(*this, step - 1);
    default:
      return learning_rate * transformers_factor(*this, step);
  }
}

const char* schedule_name(ScheduleKind kind) {
  for (const Name& n : kNames) {
    if (n.kind == kind) return n.name;
  }
  return "unknown";
}

Result<ScheduleKind> schedule_from_name(std::string_view name) {
  for (const Name& n : kNames) {
    if (name == n.name) return n.kind;
  }
  if (name == "constant_with_warmup") return ScheduleKind::kConstant;
  return Error(Code::kInvalidArgument,
               fmt::format("schedule {}: not one of linear, cosine, constant, WarmupLR, "
                           "WarmupDecayLR, WarmupCosineLR",
                           quote(name)));
}

}  // namespace amxt::train
