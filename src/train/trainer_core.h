// TrainerCore: what a trainer is apart from the element type of its weights. Internal to train/.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/cpu.h"
#include "base/file.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "checkpoint/manifest.h"
#include "kernels/gemm.h"
#include "store/layout.h"
#include "train/process_memory.h"
#include "train/profile.h"
#include "train/step.h"
#include "train/trainer.h"

namespace amxt::train {

// What is settled before the element type matters.
struct TrainerParts {
  TrainerSetup setup;
  EffectiveOptions options;
  MemoryPlan plan;
  const CpuIsa* isa = nullptr;
  int threads = 1;
  std::string threads_reason;
  std::vector<int> cpus;           // of this rank's threads; empty: unpinned
  std::vector<std::string> notes;  // of the ds_config
};

class TrainerCore : public Trainer {
 public:
  explicit TrainerCore(TrainerParts parts);

  Status forward(const Batch& batch, std::span<float> log_probabilities,
                 const CallLimits& limits) override;
  Result<Evaluation> evaluate(const io::Dataset& data, const CallLimits& limits) override;
  Result<StepMetrics> step(const Batch& batch, const CallLimits& limits) override;
  Result<StepMetrics> gradients(const Batch& batch, const CallLimits& limits) override;
  Result<std::optional<std::string>> prepare(const io::Dataset& data, const RunOptions& options,
                                             const CallLimits& limits) override;
  Status run(const io::Dataset& data, const RunOptions& options, const CallLimits& limits) override;
  TrainerState state() const override;
  Status set_learning_rate(std::optional<double> rate) override;
  std::string options_json() const override;
  std::vector<MemoryStage> memory_report() const override;
  const EffectiveOptions& options() const override { return parts_.options; }
  const model::ModelConfig& config() const override { return parts_.setup.model->config(); }

 protected:
  // By element type.
  struct LossSums {
    double loss = 0, weight = 0;
    int64_t counted = 0;
  };
  virtual Result<StepResult> run_step(const Batch& batch, const StepInput& input,
                                      const StepControl::Limits& limits) = 0;
  // `refused`: why this rank can't take part; then no rank does.
  virtual Result<LossSums> run_forward(const Batch& batch, float* log_probabilities,
                                       const StepControl::Limits& limits,
                                       const std::optional<Error>& refused) = 0;
  virtual Result<std::vector<ProcessMemory>> exchange_memory(const StepControl::Limits& limits) = 0;

  // Everything of the state that is not in tensors.
  checkpoint::TrainingState training_state() const;
  // A change that would move the data is kMismatch unless options.reschedule; other changes are warnings.
  Status check_training_state(const checkpoint::TrainingState& training) const;
  // Takes it back, when the tensors are there.
  void take_training_state(const checkpoint::TrainingState& training);
  // Saves, and lets the newest `keep` checkpoints stay.
  virtual Result<std::string> save_keeping(const std::string& output, int64_t keep,
                                           const CallLimits& limits) = 0;
  // Writes the model, tokenizer files taken from `model_directory` (empty: the trainer's).
  virtual Status export_from(const std::string& directory, const std::string& model_directory,
                             const CallLimits& limits) = 0;

  Status require_ready() const;
  // kMismatch naming the first thing that differs from this trainer's model.
  Status check_same_model(const model::ModelConfig& other, const std::string& path) const;
  // Records the memory of all ranks under the name of a stage. Collective.
  Status record_memory(const std::string& stage, const CallLimits& limits);
  // `ready`: an error that this rank has met before; all ranks get it, and none takes the step.
  Result<StepMetrics> take_step(const Batch& batch, bool commit, const CallLimits& limits,
                                Status ready = {});
  Status require_rate() const;
  double rate_of_next_step() const;  // with mutex_ held
  // Steps of the job that `options` asks for.
  Result<int64_t> steps_of(const io::Dataset& data, const RunOptions& options) const;
  // Checks the data and agrees with the other ranks on the run; its steps. Collective.
  Result<int64_t> agree_on_run(const io::Dataset& data, const RunOptions& options,
                               const CallLimits& limits) const;
  Status fix_horizon(int64_t steps);
  // The samples of this rank from `position` on.
  Status fill_batch(const io::Dataset& data, int64_t position, Batch* batch) const;
  Status check_data(const io::Dataset& data) const;
  // What all ranks must bring alike, by its name in messages.
  using Facts = std::vector<std::pair<std::string, std::string>>;
  // Collective. `mine`: the facts, or why this rank has none. kMismatch names the first that differs and its rank.
  Status agree_on_facts(Result<Facts> mine, const CallLimits& limits) const;
  static Facts facts_of(const io::Dataset& data, const std::string& name);
  // By rank 0: the checkpoint to go on from, empty for none.
  Result<std::string> choose_checkpoint(const RunOptions& options) const;
  // That the horizon of the schedule stays, or may change.
  Status check_horizon(int64_t was, int64_t wanted) const;
  // Of rank 0's operations in the next step, and its end: the trace is written, the table logged.
  Result<std::unique_ptr<Profile>> begin_profile();
  Status end_profile(std::unique_ptr<Profile> profile, int64_t step, const std::string& path);
  int64_t output_bytes(const RunOptions& options, int64_t steps) const;

  comm::Group& group() const { return *parts_.setup.group; }
  Log& log() const { return *parts_.setup.log; }
  bool leads() const { return parts_.setup.group->rank() == 0; }

  TrainerParts parts_;
  store::Layout layout_;
  std::unique_ptr<ThreadPool> pool_;
  bool loaded_ = false;
  std::optional<File> output_lock_;  // from prepare() on, by rank 0: no other job writes there

  mutable std::mutex mutex_;  // guards what follows
  TrainerState state_;
  std::optional<double> rate_override_;
  std::vector<MemoryStage> memory_;
  int64_t peak_pss_all_ranks_ = 0;
  int64_t samples_of_epoch_ = 0;  // of the data of a run; 0: a host's own batches
  uint64_t data_fingerprint_ = 0;
  std::string mode_name_;  // empty: not known
  int64_t updates_ = 0;    // that the moments have seen: skipped steps are none
};

// Trainers of either element type.
Result<std::unique_ptr<Trainer>> make_bfloat16_trainer(TrainerParts parts,
                                                       const CallLimits& limits);
Result<std::unique_ptr<Trainer>> make_float32_trainer(TrainerParts parts, const CallLimits& limits);

}  // namespace amxt::train
