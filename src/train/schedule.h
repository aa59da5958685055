// Learning-rate schedules: transformers' linear, cosine, constant (with warm-up), and DeepSpeed's WarmupLR, WarmupDecayLR and WarmupCosineLR.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace amxt::train {

enum class ScheduleKind : int32_t { kConstant = 0, kLinear = 1, kCosine = 2, kWarmup = 3, kWarmupDecay = 4, kWarmupCosine = 5 };

struct Schedule {
  ScheduleKind kind = ScheduleKind::kLinear;
  double learning_rate = 2e-5;
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;         // the horizon
  double warmup_min_lr = 0;        // DeepSpeed's
  bool warmup_log = true;          // DeepSpeed's warmup_type log or linear
  double warmup_min_ratio = 0, cosine_min_ratio = 0;  // WarmupCosineLR

  // Rate of step `step`, counted from 0 as transformers' get_scheduler does: the first step has lambda(0).
  double rate(int64_t step) const;
};

const char* schedule_name(ScheduleKind kind);
Result<ScheduleKind> schedule_from_name(std::string_view name);

}  // namespace amxt::train
