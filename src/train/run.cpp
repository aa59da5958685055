// The loop of a job: samples in their order, steps, metrics, evaluations, checkpoints, the final model.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/agreement.h"
#include "checkpoint/save.h"
#include "train/metrics_file.h"
#include "train/trainer_core.h"

namespace amxt::train {
namespace {

// The step of a run that is profiled: by then buffers are warm.
constexpr int64_t kProfiledStep = 3;

}  // namespace

Result<int64_t> TrainerCore::steps_of(const io::Dataset& data, const RunOptions& options) const {
  if (options.steps && options.epochs) {
    return Error(Code::kInvalidArgument,
                 fmt::format("both steps ({}) and epochs ({}) are given; one of them decides",
                             *options.steps, *options.epochs));
  }
  if (options.steps && *options.steps < 1)
    return Error(Code::kInvalidArgument,
                 fmt::format("steps is {}; it is 1 or more", *options.steps));
  if (options.epochs && !(*options.epochs > 0 && std::isfinite(*options.epochs))) {
    return Error(Code::kInvalidArgument,
                 fmt::format("epochs is {}; it is above 0", *options.epochs));
  }
  // A horizon that was given, by a ds_config too, is how long the job is meant to be.
  if (parts_.options.horizon_given && !options.steps && !options.epochs)
    return std::max<int64_t>(1, parts_.options.schedule.total_steps);
  EffectiveOptions effective = parts_.options;
  if (options.steps) effective.steps = options.steps;
  if (options.epochs) effective.epochs = options.epochs;
  return job_steps(effective, data.samples());
}

// Ranks with other data would train apart unseen; ranks with other steps would wait for each other.
Result<int64_t> TrainerCore::agree_on_run(const io::Dataset& data, const RunOptions& options,
                                          const CallLimits& limits) const {
  int64_t steps = 0;
  const auto facts = [&]() -> Result<Facts> {
    AMXT_TRY(check_data(data));
    if (data.samples() < 1) return Error(Code::kFormat, "the data has no samples");
    AMXT_ASSIGN(steps, steps_of(data, options));
    const bool saves = options.save && !options.output.empty();
    Facts mine = facts_of(data, "the data");
    mine.emplace_back("the number of steps", std::to_string(steps));
    mine.emplace_back("saving", saves ? "on" : "off");
    if (saves) mine.emplace_back("steps between checkpoints", std::to_string(options.save_steps));
    if (options.eval_data != nullptr) {
      const Facts evaluation = facts_of(*options.eval_data, "the data to evaluate on");
      mine.insert(mine.end(), evaluation.begin(), evaluation.end());
      mine.emplace_back("steps between evaluations", std::to_string(options.eval_steps));
    }
    return mine;
  };
  AMXT_TRY(agree_on_facts(facts(), limits));
  return steps;
}

// The horizon of the schedule is part of the state: a resumed job keeps it.
Status TrainerCore::fix_horizon(int64_t steps) {
  std::lock_guard lock(mutex_);
  const int64_t wanted = parts_.options.horizon_given ? parts_.options.schedule.total_steps : steps;
  if (state_.step > 0) AMXT_TRY(check_horizon(state_.total_steps, wanted));
  if (steps > wanted && leads()) {
    log().warning(
        fmt::format("the schedule ends after step {} and the job after step {}", wanted, steps));
  }
  state_.total_steps = wanted;
  parts_.options.schedule.total_steps = wanted;
  return {};
}

Result<std::unique_ptr<Profile>> TrainerCore::begin_profile() {
  return Profile::begin(pool_.get(), parts_.isa->chosen);
}

Status TrainerCore::end_profile(std::unique_ptr<Profile> profile, int64_t step,
                                const std::string& path) {
  profile->end();
  const std::string table = profile->table(step);
  for (size_t at = 0; at < table.size();) {
    const size_t end = std::min(table.find('\n', at), table.size());
    log().info("profile: " + table.substr(at, end - at));
    at = end + 1;
  }
  return write_text_file_atomically(path, profile->chrome_trace(group().rank()));
}

Status TrainerCore::run(const io::Dataset& data, const RunOptions& options,
                        const CallLimits& limits) {
  AMXT_TRY(require_ready());
  AMXT_ASSIGN(const int64_t steps, agree_on_run(data, options, limits));
  AMXT_TRY(checkpoint::agree(group(), fix_horizon(steps), limits.deadline));
  const bool saves = options.save && !options.output.empty();
  int64_t step = 0, last_saved = -1;
  {
    std::lock_guard lock(mutex_);
    samples_of_epoch_ = data.samples();
    data_fingerprint_ = data.fingerprint();
    mode_name_ = mode_name(data.options().mode);
    step = state_.step;
    if (step > 0) last_saved = step;  // resumed: that checkpoint is there
  }
  std::optional<MetricsFile> metrics_file;
  const auto open_metrics = [&]() -> Status {
    if (!leads() || options.metrics_path.empty()) return {};
    AMXT_ASSIGN(metrics_file, MetricsFile::open(options.metrics_path, step));
    return {};
  };
  AMXT_TRY(checkpoint::agree(group(), open_metrics(), limits.deadline));
  // A step that is like those after it, if there is one.
  int64_t profiled = -1;
  if (leads() && !options.profile_path.empty()) profiled = std::min(step + kProfiledStep, steps);
  std::unique_ptr<Profile> profile;
  // What went wrong on this rank alone: all ranks hear of it at the next thing that they do together.
  Status mine;
  const auto agree_on_mine = [&] {
    return checkpoint::agree(group(), std::exchange(mine, Status()), limits.deadline);
  };
  // Resumed from before the newest: what came after belongs to a future that is taken again.
  if (saves && leads() && step > 0) mine = checkpoint::remove_later(options.output, step);

  if (step >= steps && leads()) {
    log().warning(fmt::format(
        "step {} is taken already, and the job ends after step {}: nothing to train", step, steps));
  }

  RunVerdict verdict = RunVerdict::kContinue;
  const auto tell = [&](Event event) -> Status {
    if (!options.event) return {};
    event.step = step;
    event.total_steps = steps;
    AMXT_ASSIGN(const RunVerdict answer, options.event(event));
    if (answer != RunVerdict::kContinue) verdict = answer;
    return {};
  };
  const auto evaluate_now = [&]() -> Status {
    AMXT_TRY(agree_on_mine());
    AMXT_ASSIGN(const Evaluation evaluation,
                during("evaluation", evaluate(*options.eval_data, limits)));
    Event event;
    event.kind = EventKind::kEvaluate;
    event.show = true;
    event.evaluation = &evaluation;
    mine = tell(event);
    return {};
  };
  const auto save_now = [&]() -> Status {
    AMXT_TRY(agree_on_mine());
    AMXT_ASSIGN(const std::string path,
                during("save", save_keeping(options.output, options.keep, limits)));
    last_saved = step;
    Event event;
    event.kind = EventKind::kSave;
    event.show = true;
    event.path = path;
    mine = tell(event);
    return {};
  };

  Batch batch;
  batch.resize(parts_.options.micro_batch * parts_.options.accumulate,
               parts_.options.sequence_length);
  bool evaluated = false;
  while (step < steps && verdict == RunVerdict::kContinue) {
    if (mine) mine = fill_batch(data, state().position, &batch);
    if (mine && step + 1 == profiled) {
      auto begun = begin_profile();
      if (begun) {
        profile = std::move(*begun);
      } else {
        mine = std::move(begun).error();
      }
    }
    AMXT_ASSIGN(const StepMetrics metrics,
                take_step(batch, true, limits, std::exchange(mine, Status())));
    step = metrics.step;
    if (profile != nullptr) mine = end_profile(std::move(profile), step, options.profile_path);
    if (mine && metrics_file) mine = metrics_file->add(metrics);
    Event event;
    event.kind = EventKind::kStep;
    event.show = step % parts_.options.log_steps == 0 || step == steps || metrics.skipped;
    event.metrics = &metrics;
    if (mine) mine = tell(event);
    evaluated = false;
    if (options.eval_data != nullptr && options.eval_steps > 0 && step % options.eval_steps == 0) {
      AMXT_TRY(evaluate_now());
      evaluated = true;
    }
    if (saves && options.save_steps > 0 && step % options.save_steps == 0 && step < steps &&
        verdict != RunVerdict::kPause)
      AMXT_TRY(save_now());
  }
  AMXT_TRY(agree_on_mine());
  if (verdict == RunVerdict::kPause) return {};
  if (options.eval_data != nullptr && !evaluated) AMXT_TRY(evaluate_now());
  Event done;
  done.kind = EventKind::kDone;
  done.show = true;
  if (saves) {
    if (last_saved != step) AMXT_TRY(save_now());
    AMXT_TRY(agree_on_mine());
    done.path = join_path(options.output, "final");
    AMXT_TRY(during("export", export_from(done.path, options.model_directory, limits)));
  }
  if (mine) mine = tell(done);
  return agree_on_mine();
}

}  // namespace amxt::train
