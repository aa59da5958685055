// What of a trainer goes into a checkpoint besides tensors, and what a run checks before it begins.
#include <fmt/format.h>

#include <algorithm>

#include "base/file.h"
#include "base/text.h"
#include "checkpoint/agreement.h"
#include "checkpoint/export_model.h"
#include "checkpoint/resume.h"
#include "checkpoint/save.h"
#include "train/metrics_file.h"
#include "train/trainer_core.h"

namespace amxt::train {
namespace {

constexpr const char* kOrderName = "feistel-1";
Error moves_data(const char* what, const std::string& was, const std::string& is) {
  return Error(Code::kMismatch,
               fmt::format("the checkpoint was saved with {} {}, this job has {}: the order of its "
                           "data would change; give the same, or --reschedule to accept it",
                           what, was, is));
}

// Checkpoints whose room is asked for at most: beyond, the number of bytes means nothing.
constexpr int64_t kMostSaves = int64_t{1} << 20;

}  // namespace

Status TrainerCore::check_horizon(int64_t was, int64_t wanted) const {
  if (was == 0 || was == wanted || parts_.options.reschedule) return {};
  return Error(Code::kMismatch,
               fmt::format("the job was begun for {} steps and now asks for {}: the learning rate "
                           "would jump; give the same number, or --reschedule to accept it",
                           was, wanted));
}

checkpoint::TrainingState TrainerCore::training_state() const {
  const EffectiveOptions& options = parts_.options;
  std::lock_guard lock(mutex_);
  checkpoint::TrainingState t;
  t.step = state_.step;
  t.total_steps = state_.total_steps;
  t.compute_dtype = compute_type_name(options.compute_type);
  t.schedule.kind = schedule_name(options.schedule.kind);
  t.schedule.learning_rate = options.schedule.learning_rate;
  t.schedule.warmup_steps = options.schedule.warmup_steps;
  t.schedule.total_steps = state_.total_steps;
  t.schedule.warmup_min_lr = options.schedule.warmup_min_lr;
  t.schedule.warmup_log = options.schedule.warmup_log;
  t.schedule.warmup_min_ratio = options.schedule.warmup_min_ratio;
  t.schedule.cosine_min_ratio = options.schedule.cosine_min_ratio;
  t.schedule.fixed_rate = rate_override_;
  t.optimizer.beta1 = options.beta1;
  t.optimizer.beta2 = options.beta2;
  t.optimizer.epsilon = options.epsilon;
  t.optimizer.weight_decay = options.weight_decay;
  t.optimizer.decay = decay_name(options.decay);
  t.optimizer.clip = options.clip;
  t.optimizer.loss_average = loss_average_name(options.loss_average);
  t.optimizer.updates = updates_;
  t.data.order = kOrderName;
  t.data.seed = options.seed;
  t.data.position = state_.position;
  t.data.samples = samples_of_epoch_;
  t.data.sequence_length = options.sequence_length;
  t.data.mode = mode_name_;
  t.data.fingerprint = data_fingerprint_;
  t.data.global_batch = options.global_batch();
  return t;
}

Status TrainerCore::check_training_state(const checkpoint::TrainingState& t) const {
  const EffectiveOptions& options = parts_.options;
  if (!options.reschedule) {
    if (t.data.order != kOrderName)
      return moves_data("order", quote(t.data.order), quote(kOrderName));
    if (t.data.seed != options.seed)
      return moves_data("seed", std::to_string(t.data.seed), std::to_string(options.seed));
    if (t.data.sequence_length != options.sequence_length) {
      return moves_data("sequence length", std::to_string(t.data.sequence_length),
                        std::to_string(options.sequence_length));
    }
  }
  if (options.horizon_given) AMXT_TRY(check_horizon(t.total_steps, options.schedule.total_steps));
  const auto changed = [&](const char* what, const auto& was, const auto& is) {
    if (was != is)
      log().warning(
          fmt::format("{} was {} when the checkpoint was saved and is {} now", what, was, is));
  };
  changed("the schedule", t.schedule.kind, std::string(schedule_name(options.schedule.kind)));
  changed("the learning rate", t.schedule.learning_rate, options.schedule.learning_rate);
  changed("the number of warm-up steps", t.schedule.warmup_steps, options.schedule.warmup_steps);
  changed("weight decay", t.optimizer.weight_decay, options.weight_decay);
  changed("beta1", t.optimizer.beta1, options.beta1);
  changed("beta2", t.optimizer.beta2, options.beta2);
  changed("epsilon", t.optimizer.epsilon, options.epsilon);
  if (t.data.global_batch > 0)
    changed("the samples of a step", t.data.global_batch, options.global_batch());
  changed("what decays", t.optimizer.decay, std::string(decay_name(options.decay)));
  changed("clipping", t.optimizer.clip, options.clip);
  changed("the average of the loss", t.optimizer.loss_average,
          std::string(loss_average_name(options.loss_average)));
  if (t.compute_dtype != compute_type_name(options.compute_type)) {
    log().warning(fmt::format("the checkpoint was saved with compute in {}; it goes on in {}",
                              t.compute_dtype, compute_type_name(options.compute_type)));
  }
  return {};
}

void TrainerCore::take_training_state(const checkpoint::TrainingState& t) {
  std::lock_guard lock(mutex_);
  state_.step = t.step;
  state_.position = t.data.position;
  state_.total_steps = t.total_steps;
  if (!parts_.options.horizon_given) parts_.options.schedule.total_steps = t.total_steps;
  updates_ = t.optimizer.updates;
  rate_override_ = t.schedule.fixed_rate;
  samples_of_epoch_ = t.data.samples;
  data_fingerprint_ = t.data.fingerprint;
  mode_name_ = t.data.mode;
}

Result<std::string> TrainerCore::choose_checkpoint(const RunOptions& options) const {
  const bool saves = options.save && !options.output.empty();
  if (options.resume.empty()) {
    if (!saves) return std::string();
    AMXT_ASSIGN(const std::vector<int64_t> steps, checkpoint::checkpoint_steps(options.output));
    if (steps.empty()) return std::string();
    return Error(Code::kExists, fmt::format("{}: holds checkpoints already, the newest of step {}: "
                                            "resume from the latest, or choose another output",
                                            quote(options.output), steps.back()));
  }
  if (options.resume != "latest") {
    AMXT_ASSIGN(const checkpoint::Manifest manifest, checkpoint::open_checkpoint(options.resume));
    return manifest.path;
  }
  if (options.output.empty())
    return Error(Code::kInvalidArgument, "resume \"latest\" needs an output directory to look in");
  AMXT_ASSIGN(const checkpoint::Found found, checkpoint::find_latest(options.output));
  for (const std::string& note : found.notes) log().warning(note);
  if (found.manifest) return found.manifest->path;
  return std::string();
}

// What the job will add to its output at most: a checkpoint is whole before the oldest is removed.
int64_t TrainerCore::output_bytes(const RunOptions& options, int64_t steps) const {
  const Result<std::vector<int64_t>> there = checkpoint::checkpoint_steps(options.output);
  const int64_t have = there ? static_cast<int64_t>(there->size()) : 0,
                done = have > 0 ? std::min(there->back(), steps) : 0;
  const int64_t saves =
      options.save_steps > 0 ? steps / options.save_steps - done / options.save_steps + 1 : 1;
  const int64_t more = std::clamp<int64_t>(options.keep + 1 - have, 1, std::min(saves, kMostSaves));
  const int64_t model_bytes =
      layout_.shared_elements() * (parts_.options.compute_type == ComputeType::kBFloat16 ? 2 : 4);
  return more * checkpoint::checkpoint_bytes(layout_) + model_bytes;
}

Result<std::optional<std::string>> TrainerCore::prepare(const io::Dataset& data,
                                                        const RunOptions& options,
                                                        const CallLimits& limits) {
  if (state().status != TrainerStatus::kCreated)
    return Error(Code::kInvalidState, "weights are loaded already: prepare comes before");
  AMXT_ASSIGN(const int64_t steps, agree_on_run(data, options, limits));
  if (options.save && !options.output.empty()) {
    AMXT_TRY(checkpoint::check_output(options.output, output_bytes(options, steps), group(),
                                      limits.deadline, &output_lock_));
  }
  // Rank 0 chooses for all; the others bring an empty word.
  const auto choose = [&]() -> Result<std::string> {
    if (!leads()) return std::string();
    if (options.save && !options.output.empty())
      AMXT_TRY(checkpoint::check_replaceable(join_path(options.output, "final")));
    if (!options.metrics_path.empty()) AMXT_TRY(MetricsFile::probe(options.metrics_path));
    if (!options.profile_path.empty())
      AMXT_TRY(write_text_file_atomically(options.profile_path, "{\"traceEvents\":[]}"));
    AMXT_ASSIGN(const std::string path, choose_checkpoint(options));
    if (path.empty()) return path;
    AMXT_ASSIGN(const checkpoint::Manifest manifest, checkpoint::read_manifest(path));
    AMXT_TRY(checkpoint::check_same_model(manifest, config()));
    const int64_t wanted =
        parts_.options.horizon_given ? parts_.options.schedule.total_steps : steps;
    AMXT_TRY(check_horizon(manifest.training.total_steps, wanted));
    const std::string& mode = manifest.training.data.mode;
    if (!mode.empty() && mode != mode_name(data.options().mode) && !parts_.options.reschedule) {
      return moves_data("mode", mode, mode_name(data.options().mode));
    }
    if (manifest.training.data.fingerprint != 0 &&
        manifest.training.data.fingerprint != data.fingerprint()) {
      if (!parts_.options.reschedule) {
        return Error(Code::kMismatch,
                     fmt::format("{}: the data is not what it was when this was saved; give the "
                                 "same, or --reschedule to go on with other data",
                                 quote(path)));
      }
      log().warning("the data is not what it was when the checkpoint was saved");
    }
    return path;
  };
  AMXT_ASSIGN(const std::vector<std::string> chosen,
              checkpoint::agree(group(), choose(), limits.deadline));
  {
    std::lock_guard lock(mutex_);
    samples_of_epoch_ = data.samples();
    if (state_.total_steps == 0)
      state_.total_steps =
          parts_.options.horizon_given ? parts_.options.schedule.total_steps : steps;
    parts_.options.schedule.total_steps = state_.total_steps;
  }
  if (chosen[0].empty()) return std::optional<std::string>();
  return std::optional<std::string>(chosen[0]);
}

}  // namespace amxt::train
