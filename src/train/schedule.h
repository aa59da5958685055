// Learning-rate schedules: transformers' linear, cosine and constant (with warm-up), and DeepSpeed's
// WarmupLR, WarmupDecayLR and WarmupCosineLR, each as that program really counts its steps.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace amxt::train {

enum class ScheduleKind : int32_t {
  kConstant = 0,
  kLinear = 1,
  kCosine = 2,
  kWarmup = 3,
  kWarmupDecay = 4,
  kWarmupCosine = 5
};

// A larger one is a mistake, and could make weights that are not finite.
constexpr double kMostLearningRate = 1000;

struct Schedule {
  ScheduleKind kind = ScheduleKind::kLinear;
  double learning_rate = 2e-5;  // at the top
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;      // the horizon
  double warmup_min_lr = 0;     // WarmupLR, WarmupDecayLR
  bool warmup_log = true;       // DeepSpeed's warmup_type log or linear
  double warmup_min_ratio = 0;  // WarmupCosineLR
  double cosine_min_ratio = 0;

  // Rate of step `step`, counted from 0 as transformers' get_scheduler does: the first step has
  // lambda(0). DeepSpeed's schedules lag one step behind: steps 0 and 1 both have the first rate.
  double rate(int64_t step) const;
  // Whether total_steps matters.
  bool has_horizon() const {
    return kind != ScheduleKind::kConstant && kind != ScheduleKind::kWarmup;
  }
};

const char* schedule_name(ScheduleKind kind);
Result<ScheduleKind> schedule_from_name(std::string_view name);

}  // namespace amxt::train
