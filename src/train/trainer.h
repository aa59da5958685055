// Trainer: a training job as one rank runs it: options settled and agreed on, memory planned, weights loaded, steps taken, saved, resumed.
// The C functions amxt_trainer_* are this class and an engine thread.
//
// Thread-safety: one call at a time (the engine's thread), but state(), set_learning_rate(), options_json() and memory_report(), which any
// thread may call. Every call but these is collective. Limits: a deadline and a flag that another thread sets to cancel.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/log.h"
#include "base/result.h"
#include "checkpoint/progress.h"
#include "comm/group.h"
#include "io/dataset.h"
#include "model/directory.h"
#include "store/parameters.h"
#include "train/batch.h"
#include "train/options.h"
#include "train/plan.h"

namespace amxt::train {

struct CallLimits {
  Deadline deadline = Deadline::never();
  const std::atomic<bool>* cancel = nullptr;
};

struct TrainerSetup {
  std::shared_ptr<Log> log;
  std::shared_ptr<comm::Group> group;
  std::shared_ptr<const model::ModelDirectory> model;
  TrainOptions given;
  std::optional<std::string> ds_config;  // text
  std::string ds_config_name = "ds_config";
  int threads = 0;          // 0: from affinity, cgroup and ranks
  std::optional<bool> pin;  // unset: unless there are more threads than cores
  checkpoint::Progress progress;
};

struct StepMetrics {
  int64_t step = 0;
  double epoch = 0, loss = 0, grad_norm = 0, learning_rate = 0;
  int64_t tokens = 0;
  double seconds = 0, tokens_per_second = 0, model_tflops = 0;
  int64_t peak_rss_bytes = 0, peak_pss_bytes_all_ranks = 0;
  int64_t wire_bytes = 0;        // between nodes
  double wire_wait_seconds = 0;  // of the rank that waited longest
  // The collectives that passed between the nodes: bytes of all ranks, seconds as above.
  struct Traffic {
    std::string transport, collective;
    int64_t bytes = 0;
    double wait_seconds = 0;
  };
  std::vector<Traffic> traffic;
  int32_t world_size = 1;
  bool skipped = false;
};

struct Evaluation {
  double loss = 0, perplexity = 0;
  int64_t tokens = 0, samples = 0;
  double seconds = 0;
};

enum class TrainerStatus : int32_t { kCreated = 0, kReady = 1, kFailed = 2 };

struct TrainerState {
  TrainerStatus status = TrainerStatus::kCreated;
  int64_t step = 0, total_steps = 0, position = 0;
  double epoch = 0, learning_rate = 0;
};

// Memory when a stage was over.
struct MemoryStage {
  std::string stage;
  int64_t rank_private_bytes = 0, rank_shared_bytes = 0;
  int64_t all_private_bytes = 0, all_shared_bytes = 0;
  int64_t rank_peak_rss_bytes = 0, all_peak_pss_bytes = 0;
};

enum class EventKind : int32_t { kStep = 1, kSave = 2, kEvaluate = 3, kDone = 4 };
enum class RunVerdict : int32_t { kContinue = 0, kPause = 1, kStop = 2 };

struct Event {
  EventKind kind = EventKind::kStep;
  bool show = false;
  int64_t step = 0, total_steps = 0;
  const StepMetrics* metrics = nullptr;
  const Evaluation* evaluation = nullptr;
  std::string path;
};

struct RunOptions {
  bool save = true;
  std::optional<int64_t> steps;
  std::optional<double> epochs;
  int64_t save_steps = 100;
  int64_t keep = 2;
  int64_t eval_steps = 0;
  const io::Dataset* eval_data = nullptr;
  std::string output;           // empty: nothing is saved
  std::string resume;           // empty: afresh; "latest"; a path
  std::string metrics_path;     // empty: none
  std::string profile_path;     // empty: none
  std::string model_directory;  // of the final model's tokenizer files; empty: the trainer's
  std::function<Result<RunVerdict>(const Event&)> event;
};

class Trainer {
 public:
  static Result<std::unique_ptr<Trainer>> create(TrainerSetup setup, const CallLimits& limits);
  virtual ~Trainer() = default;

  virtual Status load(const std::string& directory, const CallLimits& limits) = 0;
  virtual Result<StepMetrics> step(const Batch& batch, const CallLimits& limits) = 0;
  // Forward and backward without the commit; the gradients can be read until the next step.
  virtual Result<StepMetrics> gradients(const Batch& batch, const CallLimits& limits) = 0;
  // [samples, sequence] log-probability of each position's target; any number of samples.
  virtual Status forward(const Batch& batch, std::span<float> log_probabilities,
                         const CallLimits& limits) = 0;
  virtual Result<Evaluation> evaluate(const io::Dataset& data, const CallLimits& limits) = 0;
  // Checks what run() will need; the checkpoint to resume from, or nothing to load afresh.
  virtual Result<std::optional<std::string>> prepare(const io::Dataset& data,
                                                     const RunOptions& options,
                                                     const CallLimits& limits) = 0;
  virtual Status run(const io::Dataset& data, const RunOptions& options,
                     const CallLimits& limits) = 0;
  // The path of the checkpoint.
  virtual Result<std::string> save(const std::string& output, const CallLimits& limits) = 0;
  virtual Status resume(const std::string& path, const CallLimits& limits) = 0;
  virtual Status export_model(const std::string& directory, const CallLimits& limits) = 0;
  // Every rank gets the rows, whoever owns them. `values` empty: this rank only takes part. A vector counts as rows of one element.
  virtual Status read_rows(const std::string& tensor, store::RowKind kind, int64_t first_row,
                           int64_t rows, std::span<float> values, const CallLimits& limits) = 0;
  virtual Status write_rows(const std::string& tensor, store::RowKind kind, int64_t first_row,
                            int64_t rows, std::span<const float> values,
                            const CallLimits& limits) = 0;

  virtual TrainerState state() const = 0;
  virtual Status set_learning_rate(std::optional<double> rate) = 0;
  virtual std::string options_json() const = 0;
  virtual std::vector<MemoryStage> memory_report() const = 0;
  virtual const EffectiveOptions& options() const = 0;
  virtual const model::ModelConfig& config() const = 0;
};

}  // namespace amxt::train
